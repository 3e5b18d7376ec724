from __future__ import annotations

import tracemalloc

import pytest

from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.frontend.vocabulary import make_vocabulary


def test_learns_once_and_names_its_digest(tmp_path):
    texts, path = tmp_path / "texts.txt", tmp_path / "new" / "tokenizer.json"
    texts.write_text("hello world hello\n\nпривет мир\n")
    facts = make_vocabulary(path, texts, 280)
    assert facts == {"text_tokenizer": TextTokenizer.from_file(path).digest}
    written = path.read_bytes()
    texts.write_text("something else entirely\n")
    assert make_vocabulary(path, texts, 280) == facts and path.read_bytes() == written
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]


def test_texts_are_learned_from_line_by_line(tmp_path):
    """Of a file larger than what the library takes at once, a piece is held, not the whole."""
    texts = tmp_path / "texts.txt"
    texts.write_text(f"{'hello world ' * 100}\n" * 2_000)
    tracemalloc.start()
    make_vocabulary(tmp_path / "t.json", texts, 260)
    assert tracemalloc.get_traced_memory()[1] < texts.stat().st_size
    tracemalloc.stop()


def test_takes_the_tokenizer_of_a_pretrained_model(tmp_path):
    from transformers import PreTrainedTokenizerFast

    texts = tmp_path / "texts.txt"
    texts.write_text("hello world\n" * 3)
    make_vocabulary(tmp_path / "own.json", texts, 270)
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "own.json")).save_pretrained(tmp_path / "model")
    make_vocabulary(tmp_path / "copy.json", "unread", 0, pretrained=str(tmp_path / "model"))
    own, copy = (TextTokenizer.from_file(tmp_path / f"{name}.json") for name in ("own", "copy"))
    assert own.encode("hello") == copy.encode("hello")


def test_missing_texts_and_models_are_named(tmp_path):
    with pytest.raises(UserError, match="nothing.txt is missing; run: omniaudio prepare"):
        make_vocabulary(tmp_path / "t.json", tmp_path / "nothing.txt", 300)
    with pytest.raises(UserError, match=r"backbone.pretrained: no fast tokenizer in"):
        make_vocabulary(tmp_path / "t.json", "unread", 0, pretrained=str(tmp_path / "nowhere"))
