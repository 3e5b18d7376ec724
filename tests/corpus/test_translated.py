import pytest

from omniaudio.corpus.translated import CoVoST2, read_tsv
from omniaudio.errors import UserError
from tests.corpus.make_trees import covost2


def test_speech_sentence_and_translation_by_split(tmp_path):
    root = covost2(tmp_path)
    corpus = CoVoST2("de", str(root))
    corpus.fetch(tmp_path / "raw")
    found = corpus.inventory(tmp_path / "raw")
    assert [(item.split, item.text, item.translation) for item in found.items] == [
        ("train", "Ein Satz Nummer 0.", "A sentence, number 0."),
        ("train", 'Ein "Satz" Nummer 1.', "A sentence, number 1."),
        ("dev", "Ein Satz Nummer 2.", "A sentence, number 2."),
        ("test", "Ein Satz Nummer 3.", "A sentence, number 3."),
    ]
    assert (found.items[0].path, found.items[0].speaker) == (
        root / "clips" / "common_voice_de_17300000.mp3",
        "client0",
    )
    assert [(entry.name, entry.reason) for entry in found.left_out] == [
        ("common_voice_de_17300004.mp3", "in no split of CoVoST (other)"),
        ("common_voice_de_9.mp3", "not in this version of Common Voice"),
    ]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="translations are into English"):
        CoVoST2("en", str(tmp_path))
    with pytest.raises(UserError, match="Common Voice is given out"):
        CoVoST2("de").fetch(tmp_path)
    with pytest.raises(UserError, match=r"covost_v2\.de_en\.tsv: no such file; run step=fetch"):
        CoVoST2("de", str(tmp_path)).inventory(tmp_path)
    (tmp_path / "t.tsv").write_text("path\tsentence\na\tb\tc\n")
    with pytest.raises(UserError, match="no column split; there are path, sentence"):
        list(read_tsv(tmp_path / "t.tsv", ("path", "split")))
    with pytest.raises(UserError, match=r"t\.tsv:2: 3 columns, expected 2"):
        list(read_tsv(tmp_path / "t.tsv", ("path",)))
