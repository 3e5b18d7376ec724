"""The bundle and the dialogues of the game, built here byte by byte."""

import struct
from pathlib import Path

import pytest
import soundfile

from omniaudio.corpus.fotaq import AmazonQueen, Bundle, read_dialogue
from omniaudio.corpus.items import Corpus
from omniaudio.errors import UserError
from tests.corpus.make_audio import tone


def counted(text):
    return bytes([len(text)]) + text.encode("latin-1")


def padded(content, align):
    return content + bytes(-len(content) % align)


def sentences(lines):
    """Entries (unused, number, text), each aligned to four bytes within the dialogue."""
    return b"".join(padded(struct.pack(">Hh", 0, number) + counted(text), 4) for number, text in lines)


def dialogue(talk_key, joe, other, again, levels=-2, tree=()):
    """``tree``: of each level (number, leads to) of up to six nodes."""
    nodes = b"".join(
        b"".join(struct.pack(">8h", 0, number, 0, leads_to, 0, 0, 0, 0) for number, leads_to in level).ljust(
            96, b"\0"
        )
        for level in tree
    )
    size = abs(levels) * 96
    offset = size + 32
    first, second = sentences(joe), sentences(other)
    last = padded(counted(again[0]), 2) + padded(counted(again[1]), 2)
    others = offset + len(first)
    head = struct.pack(
        ">11h3H", levels, 1, talk_key, len(joe), len(other), *[0] * 6, others, 0, others + len(second)
    )
    return bytes(20) + padded(head, 32) + nodes.ljust(size, b"\0") + first + second + last


def bundle(path, files, compression=1):
    """A game's file of ``files`` (name -> bytes)."""
    offset = 15 + 21 * len(files)
    rows, contents = b"", b""
    for name, content in files.items():
        rows += struct.pack(">12sBII", name.encode(), 1, offset + len(contents), len(content))
        contents += content
    head = b"QTBL" + b"CEM10\0" + b"\0\0" + bytes([compression]) + struct.pack(">H", len(files))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + rows + contents)
    return path


TALK = dialogue(
    7,
    joe=[(0, "*FRHi Bob.*03"), (0x1F, "Did you fly?*02*XY00(128,112)Really?"), (2, "Bye.")],
    other=[(0, "Howdy."), (0x1F, "Me? *01Yes.*05")],
    again=["Hello Joe.*04", "*15Hello again."],
)


@pytest.fixture
def mp3(tmp_path):
    path = tmp_path / "clip.mp3"
    soundfile.write(path, tone(0.5, rate_hz=11025), 11025)
    return path.read_bytes()


@pytest.fixture
def game(tmp_path, mp3):
    spoken = ["07SSSSJ2", "07001FJ1", "07001FJ3", "07001FP1", "07001FP2", "07XXXXP1", "07XXXXJ2", "JOE00221"]
    files = {"BOB2.DOG": TALK, **{f"{name}.SB": mp3 for name in spoken}, "X.PCX": b"picture"}
    return bundle(tmp_path / "queen.1c", files)


def test_every_segment_is_a_clip_of_its_own():
    lines = list(read_dialogue(TALK, "here"))
    assert [(line.by_joe, line.number, line.segments) for line in lines] == [
        (True, 0, (("07SSSSJ2", "Hi Bob."),)),
        (True, 31, (("07001FJ1", "Did you fly?"), ("07001FJ3", "Really?"))),
        (True, 2, (("070002J1", "Bye."),)),
        (False, 31, (("07001FP1", "Me?"), ("07001FP2", "Yes."))),
        (False, -1, (("07XXXXP1", "Hello Joe."),)),
        (True, -1, (("07XXXXJ2", "Hello again."),)),
    ]


def test_recordings_with_what_is_said_before_and_after(tmp_path, game):
    corpus = AmazonQueen(bundle=str(game))
    assert isinstance(corpus, Corpus)
    corpus.fetch(tmp_path / "raw")
    inventory = corpus.inventory(tmp_path / "raw")
    found = {i.key: (i.text, i.speaker, i.response, i.continuation) for i in inventory.items}
    assert found == {
        "07SSSSJ2": ("Hi Bob.", "joe", (), ""),
        "07001FJ1": ("Did you fly?", "joe", (), "Really?"),
        "07001FJ3": ("Really?", "joe", ("Me?", "Yes."), ""),
        "07001FP1": ("Me?", "bob", (), "Yes."),
        "07001FP2": ("Yes.", "bob", (), ""),
        "07XXXXP1": ("Hello Joe.", "bob", (), ""),
        "07XXXXJ2": ("Hello again.", "joe", ("Hello Joe.",), ""),
    }
    assert {(entry.name, entry.reason) for entry in inventory.left_out} == {
        ("BOB2.DOG/070002J1", "text without a recording"),
        ("JOE00221.SB", "recording without a text"),
    }
    assert {(item.sample_rate_hz, item.band_hz) for item in inventory.items} == {(11025, 4700)}
    assert all(soundfile.info(str(item.path)).samplerate == 11025 for item in inventory.items)
    assert "MODIFIED" in corpus.attribution()


def test_lines_are_said_in_the_order_of_the_tree(tmp_path, mp3):
    """Joe's second choice has the lower number; the first leads to another level, and back to this one,
    where it became another."""
    from omniaudio.corpus.build.sources import Dialogues

    talk = dialogue(
        7,
        joe=[
            (0, "Hi."),
            (3, "Three?"),
            (4, "Never."),
            (5, "Five?"),
            (6, "Six?"),
            (8, "Eight?"),
            (9, "Nine?"),
        ],
        other=[(1, "Welcome."), (3, "Three."), (5, "Five."), (6, "Six."), (9, "Nine.")],
        again=["Back again?", "Hello again."],
        levels=3,
        tree=[
            [(1, 0), (9, 9), (3, 6)],
            [(9, 8), (5, 1)],
            [(2, 0), (6, -1)],
        ],
    )
    stems = [
        "SSSSJ",
        "0001P",
        "0009J",
        "0009P",
        "0005J",
        "0005P",
        "0008J",
        "0003J",
        "0003P",
        "0006J",
        "0006P",
        "0004J",
    ]
    keys = [f"07{stem}1" for stem in (*stems, "XXXXJ", "XXXXP")]
    game = bundle(tmp_path / "q", {"BOB.DOG": talk, **{f"{key}.SB": mp3 for key in keys}})
    corpus = AmazonQueen(bundle=str(game))
    (source,) = Dialogues(corpus, "[0-9]{2}").sources(tmp_path / "raw")
    assert [line["path"].rpartition("/")[2] for line in source["lines"]] == [f"{key}.mp3" for key in keys]
    assert [item.key for item in corpus.inventory(tmp_path / "raw").items] == sorted(keys)


def test_two_texts_for_one_recording_are_told(tmp_path, mp3):
    other = dialogue(7, joe=[(2, "Farewell.")], other=[], again=["0", "0"])
    files = {"A.DOG": TALK, "B.DOG": other, "070002J1.SB": mp3}
    inventory = AmazonQueen(bundle=str(bundle(tmp_path / "q", files))).inventory(tmp_path)
    assert [(item.key, item.text) for item in inventory.items] == [("070002J1", "Bye.")]
    assert ("B.DOG/070002J1", "another text for one recording") in {
        (entry.name, entry.reason) for entry in inventory.left_out
    }


def test_what_is_there_is_not_written_again(tmp_path, game):
    corpus = AmazonQueen(bundle=str(game))
    corpus.fetch(tmp_path / "raw")
    clips = sorted((tmp_path / "raw" / "clips").iterdir())
    clips[0].write_bytes(b"cut")
    times = [path.stat().st_mtime_ns for path in clips]
    corpus.fetch(tmp_path / "raw")
    changed = [path.stat().st_mtime_ns != time for path, time in zip(clips, times, strict=True)]
    assert changed == [True] + [False] * (len(clips) - 1)


def test_bad_bundles_are_one_line(tmp_path, game):
    whole = game.read_bytes()
    for content, words in (
        (b"RIFF" + whole[4:], "not a data file of the game"),
        (whole[:12] + b"\0" + whole[13:], "its voices are not MP3"),
        (whole[:60], "the table of files is cut off at row 2 of 10"),
    ):
        path = tmp_path / "bad.1c"
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            Bundle(path)
    with pytest.raises(UserError, match="run step=fetch first"):
        Bundle(Path(tmp_path / "none"))
    game.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"X\.PCX is cut off \(2 of 7 bytes\)"):
        Bundle(game).read("X.PCX")
    for end in (30, 250, len(TALK) - 3):
        with pytest.raises(UserError, match=r"here: the dialogue is cut off"):
            list(read_dialogue(TALK[:end], "here"))
