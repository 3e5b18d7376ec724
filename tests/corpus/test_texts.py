import pytest

from omniaudio.corpus import texts as module
from omniaudio.corpus.texts import ChitchatTexts, NoTexts, TextFile, TextSource, limit_words
from omniaudio.errors import UserError


def test_limit_takes_whole_texts():
    assert limit_words(["a b", " ", "c\t d  e", "f"], 3) == ["a b", "c d e"]
    assert limit_words(["a b", "c"], None) == ["a b", "c"]
    assert limit_words(["a b", "c"], 0) == []


def test_chitchat_is_read_from_its_package(tmp_path, monkeypatch):
    message = '{"messages": [[{"text": "Hi\\u0007"}, {"text": "you\\n two"}], [{"text": "%s"}]]}'
    (tmp_path / "dataset.json").write_text(f'{{"b": {message % "later"}, "a": {message % "first"}}}')

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(module, "find_spec", lambda name: Spec)
    assert ChitchatTexts().texts() == ["Hi you two first", "Hi you two later"]
    assert ChitchatTexts(max_words=4).texts() == ["Hi you two first"]
    assert "MIT" in ChitchatTexts().attribution()


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install chitchat-dataset"):
        ChitchatTexts().texts()


def test_a_file_of_texts(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("\ufeffeins zwei\n\ndrei\n", "utf-8")
    assert TextFile(str(path)).texts() == ["eins zwei", "drei"]
    assert TextFile(str(path), max_words=1).texts() == ["eins zwei"]
    path.write_bytes(b"a\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 1"):
        TextFile(str(path)).texts()
    with pytest.raises(UserError, match="No such file"):
        TextFile(str(tmp_path / "none")).texts()


def test_no_texts():
    assert NoTexts().texts() == [] and NoTexts().attribution() == ""
    assert isinstance(NoTexts(), TextSource) and isinstance(ChitchatTexts(), TextSource)
