import dataclasses
import json

import numpy as np
import pytest

from omniaudio.corpus.kaldi import KaldiFolder, write_kaldi
from omniaudio.data.chats import to_clips
from omniaudio.errors import UserError
from omniaudio.types import Utterance
from tests.corpus.make_audio import RATE_HZ, tone, write_audio

TABLES = {
    "wav.scp": "rec1 rec1.wav\nrec2 sub/rec2.wav\nrec3 sox a.wav -t wav - |\nrec4 raw.ark:17\n",
    "segments": "u1 rec1 0.5 1.25\nu2 rec1 1.25 -1\nu3 rec2 0 1\nu4 rec3 0 1\nu5 rec4 0 1\nu6 rec9 0 1\n",
    "text": "u1 one  word\nu2 two\nu3\nu9 nowhere\n",
    "utt2spk": "u1 ann\nu2 bob\n",
    "utt2lang": "u2 it\n",
}


CHAT = json.dumps(to_clips([("system", ["Two  spaces\nand a line"]), ("user", [0])], "c")[0][1])


def directory(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**TABLES, **changes}.items():
        if content is not None:
            (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_segments_texts_speakers_and_languages(tmp_path):
    found = KaldiFolder(str(directory(tmp_path)), "en").inventory(tmp_path)
    items = {item.key: item for item in found.items}
    assert (items["u1"].path, items["u1"].start_sec, items["u1"].duration_sec) == (
        tmp_path / "rec1.wav",
        0.5,
        0.75,
    )
    assert (items["u1"].text, items["u1"].speaker, items["u1"].language) == ("one  word", "ann", "en")
    assert (items["u2"].duration_sec, items["u2"].language, items["u2"].fault) == (None, "it", None)
    assert (
        items["u3"].path == tmp_path / "sub" / "rec2.wav"
        and items["u3"].text == ""
        and items["u3"].speaker == "u3"
    )
    assert items["u4"].fault == "a command in wav.scp (commands are not run)"
    assert items["u5"].fault == "an archive in wav.scp"
    assert items["u6"].fault == "no recording of this name in wav.scp"
    assert [(entry.name, entry.reason) for entry in found.left_out] == [("u9", "text without a recording")]


def test_splits_are_those_of_the_folders(tmp_path):
    for split in ("train", "test"):
        directory(tmp_path / split, segments=None)
    found = KaldiFolder(str(tmp_path), "en").inventory(tmp_path)
    assert {item.split for item in found.items} == {"train", "test"}
    assert [item.fault for item in found.items if item.key == "rec1"] == [None]
    assert [item.fault for item in found.items if item.key == "rec1__2"] == ["duplicate key"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": "u1 a\nu1 b\n"}, r"text:2: 'u1' comes twice"),
        ({"segments": "u1 rec1 a b\n"}, "expected recording, start and end"),
        ({"segments": "u1 rec1 2 1\n"}, "start 2.0 and end 1.0 are no stretch of time"),
        ({"utt2channel": "u1 left\n"}, "utt2channel: u1 'left': a whole number"),
        ({"utt2sample_rate_hz": "u1 8k\n"}, "utt2sample_rate_hz: u1 '8k': a whole number"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        KaldiFolder(str(directory(tmp_path, **changes)), "en").inventory(tmp_path)


def test_a_folder_without_tables_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no wav\.scp, neither here"):
        KaldiFolder(str(tmp_path), "en").inventory(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        KaldiFolder(str(tmp_path / "none"), "en").inventory(tmp_path)


def make_utterances(folder):
    """Two parts of one recording, and one channel of another, with every fact."""
    write_audio(folder / "raw" / "a.wav", tone(3.0))
    write_audio(folder / "raw" / "b.wav", np.stack([tone(1.0), tone(1.0, hz=500)], 1))
    common = {"sample_rate_hz": RATE_HZ, "language": "en", "corpus": "c"}
    return [
        Utterance(key="x/a-1", audio_path="../raw/a.wav", num_samples=12_345, text="one", speaker="ann", **common),
        Utterance(
            key="x/a-2", audio_path="../raw/a.wav", num_samples=20_000, text="two, ü", speaker="bob",
            start_sec=12_345 / RATE_HZ, band_hz=4000, response="yes.", continuation="three", translation="zwei",
            chat=CHAT,
            **common,
        ),
        Utterance(
            key="x/b", audio_path="../raw/b.wav", num_samples=RATE_HZ, text="b", speaker="bob", channel=1, **common
        ),
    ]  # fmt: skip


def check_round_trip(utterances, items, home):
    assert len(items) == len(utterances)
    for u, item in zip(
        sorted(utterances, key=lambda u: u.key), sorted(items, key=lambda i: i.key), strict=True
    ):
        facts = {**dataclasses.asdict(u), "channel": None if u.channel < 0 else u.channel}
        for name in (
            "key",
            "text",
            "language",
            "speaker",
            "corpus",
            "sample_rate_hz",
            "band_hz",
            "channel",
            "chat",
            "continuation",
            "translation",
        ):
            assert getattr(item, name) == facts[name], name
        assert item.path == (home / u.audio_path).resolve() and " ".join(item.response) == u.response
        assert round(item.start_sec * RATE_HZ) == round(u.start_sec * RATE_HZ)
        assert (
            round((item.start_sec + item.duration_sec) * RATE_HZ)
            == round(u.start_sec * RATE_HZ) + u.num_samples
        )


def test_what_is_written_is_read_back(tmp_path):
    utterances, home = make_utterances(tmp_path), tmp_path / "manifest"
    write_kaldi(utterances, home, tmp_path / "out")
    items = KaldiFolder(str(tmp_path / "out"), "de").inventory(tmp_path).items
    check_round_trip(utterances, items, home)
    assert (tmp_path / "out" / "spk2utt").read_text() == "ann x/a-1\nbob x/a-2 x/b\n"
    assert len((tmp_path / "out" / "wav.scp").read_text().splitlines()) == 2
    broken = dataclasses.replace(utterances[1], response="one\r\ntwo\u2028three")
    write_kaldi([broken], home, tmp_path / "lines")
    assert KaldiFolder(str(tmp_path / "lines"), "de").inventory(tmp_path).items[0].response == (
        "one two three",
    )


@pytest.mark.parametrize("speaker", ["a b", "50%", "a%20b c", "%", "a\u3000b", "%C3%BC", "ü\tx"])
def test_any_name_of_a_speaker_is_one_word_of_the_tables(tmp_path, speaker):
    (first, *_), home = make_utterances(tmp_path), tmp_path / "manifest"
    write_kaldi([dataclasses.replace(first, speaker=speaker)], home, tmp_path / "out")
    (word,) = {line.split()[1] for line in (tmp_path / "out" / "utt2spk").read_text().splitlines()}
    assert (tmp_path / "out" / "spk2utt").read_text() == f"{word} x/a-1\n"
    (item,) = KaldiFolder(str(tmp_path / "out"), "de").inventory(tmp_path).items
    assert item.speaker == speaker


def test_names_that_others_wrote_stay(tmp_path):
    found = KaldiFolder(str(directory(tmp_path, utt2spk="u1 50%\nu2 %C3%BC\n")), "en").inventory(tmp_path)
    assert [item.speaker for item in found.items[:2]] == ["50%", "%C3%BC"]
