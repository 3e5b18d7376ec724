import tarfile

import pytest

from omniaudio.corpus.items import LeftOut
from omniaudio.corpus.readings import Aishell1, LibriSpeech, LibriTTS, LJSpeech
from omniaudio.errors import UserError
from tests.corpus.make_trees import aishell1, librispeech, libritts, ljspeech


def shown(item, root):
    return item.key, item.path.relative_to(root).as_posix(), item.text, item.speaker, item.split


def test_librispeech(tmp_path):
    root = librispeech(tmp_path)
    for given in (tmp_path, root):
        items = LibriSpeech(["train-clean-100", "test-clean"], str(given)).inventory(tmp_path).items
        assert shown(items[0], root) == (
            "train-clean-100/103-1240-0000", "train-clean-100/103/1240/103-1240-0000.flac", "CHAPTER ONE", "103",
            "train",
        )  # fmt: skip
        assert {item.split for item in items} == {"train", "test"}
    (root / "train-clean-100/103/1240/103-1240-0001.flac").unlink()
    (root / "test-clean/61/70968/61-70968-0009.flac").write_bytes(b"")
    items = {
        item.key: item
        for item in LibriSpeech(["train-clean-100", "test-clean"], str(root)).inventory(tmp_path).items
    }
    assert not items["train-clean-100/103-1240-0001"].path.exists(), "the gate names it"
    assert items["test-clean/61-70968-0009"].text is None
    with pytest.raises(UserError, match="leave dev-other out of"):
        LibriSpeech(["dev-other"], str(root)).inventory(tmp_path)
    with pytest.raises(UserError, match="corpus.parts: train; allowed are train-clean-100"):
        LibriSpeech(["train"], str(root))
    with pytest.raises(UserError, match="give the folder that holds LibriSpeech"):
        LibriSpeech(["dev-clean"], str(tmp_path / "train-clean-100")).inventory(tmp_path)


def test_libritts(tmp_path):
    root = libritts(tmp_path)
    items = LibriTTS(["train-clean-100", "dev-clean"], str(tmp_path)).inventory(tmp_path).items
    assert shown(items[0], root) == (
        "train-clean-100/103_1241_000000_000001", "train-clean-100/103/1241/103_1241_000000_000001.wav",
        "matthew Cuthbert is surprised", "103", "train",
    )  # fmt: skip
    assert items[0].sample_rate_hz == 24000
    items[0].path.with_suffix(".normalized.txt").unlink()
    assert LibriTTS(["train-clean-100"], str(tmp_path)).inventory(tmp_path).items[0].text is None


def test_ljspeech(tmp_path):
    root = ljspeech(tmp_path)
    items = LJSpeech(str(tmp_path)).inventory(tmp_path).items
    assert shown(items[1], root) == ("LJ001-0002", "wavs/LJ001-0002.wav", "in the year eighteen", "lj", "")
    (root / "metadata.csv").write_text("LJ001-0001|one\n")
    with pytest.raises(UserError, match=r"metadata\.csv:1: 2 columns, expected id\|text\|normalized text"):
        LJSpeech(str(tmp_path)).inventory(tmp_path)


def test_aishell1(tmp_path):
    root = aishell1(tmp_path)
    corpus = Aishell1(str(tmp_path))
    corpus.fetch(tmp_path)  # unpacks the speakers
    corpus.fetch(tmp_path)
    found = corpus.inventory(tmp_path)
    assert shown(found.items[0], root) == (
        "BAC009S0002W0122", "wav/train/S0002/BAC009S0002W0122.wav", "而对楼市成交", "S0002", "train",
    )  # fmt: skip
    assert [item.split for item in found.items] == ["train", "train", "dev", "test"]
    assert found.left_out == [LeftOut(name="BAC009S0002W9999", reason="transcript without a recording")]
    with tarfile.open(root / "wav" / "S0001.tar.gz", "w:gz"):
        pass
    (root / "wav" / "S0001.tar.gz").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"S0001\.tar\.gz: cannot be unpacked"):
        corpus.fetch(tmp_path)


@pytest.mark.parametrize(
    "corpus", [LibriSpeech(["dev-clean"]), LibriTTS(["dev-clean"]), LJSpeech(), Aishell1()]
)
def test_archives_are_named_and_a_missing_folder_too(corpus, tmp_path):
    assert all(url.startswith("https://") and ".t" in url for url in corpus.archives())
    with pytest.raises(UserError, match="run step=fetch first"):
        corpus.inventory(tmp_path)
    assert corpus.attribution()
