import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from omniaudio.corpus.build.sources import Chats, Dialogues, Recordings, Texts
from omniaudio.corpus.folder import AudioFolder
from omniaudio.corpus.items import Inventory, LeftOut, RawItem
from omniaudio.corpus.texts import TextFile
from omniaudio.errors import UserError
from tests.corpus.make_audio import tone, write_audio


def test_every_text_is_a_passage(tmp_path):
    (tmp_path / "t.txt").write_text("One text.\nAnother text.\nA third.\n")
    source = Texts(TextFile(str(tmp_path / "t.txt")), "en", max_passages=2)
    found = list(source.sources(tmp_path))
    assert found == [
        {"key": "text-0000000", "text": "One text."},
        {"key": "text-0000001", "text": "Another text."},
    ]
    (segment,) = source(found[1])
    assert (segment.passage, segment.text, segment.language) == ("text-0000001", "Another text.", "en")


def test_every_recording_is_a_source(tmp_path):
    write_audio(tmp_path / "b" / "c.wav", np.stack([tone(0.5, rate_hz=8000)] * 2, 1), 8000)
    (tmp_path / "a.mp3").write_bytes(b"no audio")
    source = Recordings(str(tmp_path), "de")
    found = list(source.sources(tmp_path))
    assert [entry["key"][:5] for entry in found] == ["a_mp3", "b-c_w"] and json.dumps(found)
    for name in ("a.txt", "b/d.wma", "b/e.WMA", "b/e.json"):
        (tmp_path / name).write_text("")
    assert list(source.sources(tmp_path)) == found
    assert source.ignored() == {
        "files ending in .json are not read": 1,
        "files ending in .wma are not read": 2,
    }
    (bad,), (good,) = map(source, found)
    assert bad.fault == "unreadable audio"
    assert (good.rate_hz, len(good.wav_N), good.language, good.fault) == (16_000, 8000, "de", "")
    assert good.band_hz == 4000, "there is no sound above"
    bad_wav = np.full(800, 0.1, np.float32)
    bad_wav[3] = np.nan
    soundfile.write(tmp_path / "b" / "c.wav", bad_wav, 16_000, subtype="FLOAT")
    assert source(found[1])[0].fault == "audio not finite"
    (tmp_path / "b" / "c.wav").unlink()
    with pytest.raises(UserError, match="is not there any more"):
        source(found[1])
    with pytest.raises(UserError, match="no such folder"):
        list(Recordings(str(tmp_path / "none"), "de").sources(tmp_path))


def test_dialogues_are_passages_in_the_order_of_their_keys(tmp_path):
    for name in ("12b", "12a", "07x"):
        write_audio(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text(f"line {name}")
    write_audio(tmp_path / "12c.wav")
    source = Dialogues(AudioFolder(str(tmp_path), "en"), "[0-9]{2}")
    found = list(source.sources(tmp_path / "raw"))
    assert [entry["key"] for entry in found] == ["folder-07", "folder-12"]
    segments = source(found[1])
    assert [(s.key, s.place, s.text, s.fault) for s in segments] == [
        ("folder-12/0000", 0, "line 12a", ""), ("folder-12/0001", 1, "line 12b", ""),
        ("folder-12/0002", 2, "", "missing transcript"),
    ]  # fmt: skip
    assert all(s.duration_sec == 1.0 and s.speaker == "folder" for s in segments[:2])
    with pytest.raises(UserError, match="not a pattern"):
        Dialogues(AudioFolder(str(tmp_path), "en"), "[")


def test_the_lines_of_a_dialogue_are_messages_of_a_chat(tmp_path):
    keys = ["07a1J1", "07a1J2", "07a1P1", "07a2J1", "elsewhere"]
    for key in keys:
        write_audio(tmp_path / f"{key}.wav", tone(0.5))
    speakers = dict(zip(keys, ["joe", "joe", "ada", "joe", "joe"], strict=True))

    class Corpus:
        name = "c"

        def fetch(self, folder):
            pass

        def inventory(self, folder):
            items = [
                RawItem(key=k, path=tmp_path / f"{k}.wav", text=k, language="en", speaker=speakers[k])
                for k in keys
            ]
            return Inventory(items)

    source = Dialogues(Corpus(), "[0-9]{2}", turn="[0-9]{2}..[JP]", roles={"joe": "user", "*": "assistant"})
    rest, lines = source.sources(tmp_path)
    assert [(s.fault, s.key) for s in source(rest)] == [("in no passage", "c-rest/0000")]
    told = [(s.role, s.turn, s.turns) for s in source(lines)]
    assert told == [("user", 0, 3), ("user", 0, 3), ("assistant", 1, 3), ("user", 2, 3)]
    with pytest.raises(UserError, match=r"roles: 'host' is no role"):
        Dialogues(Corpus(), "[0-9]", turn=".", roles={"*": "host"})


class FewChats:
    def chats(self):
        return [
            [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B")],
            [("system", "only")],
        ]

    def attribution(self):
        return "mine"


def test_roles_that_are_not_spoken_stay_in_writing(tmp_path):
    source = Chats(FewChats(), "en", ["user"])
    first, second = map(source, source.sources(tmp_path))
    assert [(s.key, s.text, s.turn, s.turns, s.before, s.after) for s in first] == [
        ("chat-0000000/0000", "U", 1, 5, ((0, "system", "S"),), ()),
        ("chat-0000000/0001", "V", 3, 5, ((2, "assistant", "A"),), ((4, "assistant", "B"),)),
    ]
    assert [s.fault for s in second] == ["chat without a message to speak"]
    assert [
        s.text for s in Chats(FewChats(), "en", ["user", "assistant"])(next(source.sources(tmp_path)))
    ] == list("UAVB")
    with pytest.raises(UserError, match=r"spoken: \['system'\] must be user"):
        Chats(FewChats(), "en", ["system"])


def test_a_line_that_is_no_chat_is_refused_and_an_empty_message_that_is_only_written_goes(tmp_path):
    class Source(FewChats):
        def chats(self):
            chat = [("system", ""), ("user", "U"), ("assistant", ""), ("user", ""), ("assistant", "B")]
            return [LeftOut(name="file:1", reason="output is None"), chat]

    source = Chats(Source(), "en", ["user"])
    first, second = map(source, source.sources(tmp_path))
    assert [s.fault for s in first] == ["output is None"]
    assert [(s.text, s.turn, s.turns, s.before, s.after) for s in second] == [
        ("U", 0, 3, (), ()), ("", 1, 3, (), ((2, "assistant", "B"),)),
    ]  # fmt: skip


def test_a_channel_a_band_and_what_is_known_stay_with_a_line(tmp_path):
    write_audio(tmp_path / "a.wav", np.stack([tone(0.5), 0 * tone(0.5)], 1))
    item = RawItem(
        key="1a", path=tmp_path / "a.wav", text="t", language="en", speaker="s", channel=1, band_hz=4700
    )

    class Corpus:
        name = "c"

        def fetch(self, folder):
            pass

        def inventory(self, folder):
            return Inventory([item, replace(item, key="1b", channel=2, response=("yes",))])

    source = Dialogues(Corpus(), "[0-9]")
    first, second = source(next(iter(source.sources(tmp_path))))
    assert np.abs(first.wav_N).max() == 0 and first.band_hz == 4700
    assert second.fault == "no such channel" and second.facts == {"response": "yes"}
