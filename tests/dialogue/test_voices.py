import dataclasses

import numpy as np
import pytest

from omniaudio.data.shards import ShardWriter
from omniaudio.dialogue import voices
from omniaudio.dialogue.model import DialogueSettings
from omniaudio.dialogue.voices import SECTION, voice_rows
from omniaudio.frontend.audio import encode_audio

RATE = 16000
SPEAKERS = {"ann": 0.1, "bob": 0.3, "bea": 0.34, "cid": 0.6}
NAMED = {"low": ["ann"], "middle": ["bob", "bea"], "high": ["cid"]}
LEVELS = {"low": 0.1, "middle": 0.32, "high": 0.6}


def quiet(items, description):
    return items


class Level:
    """A voice is how loud it is: a direction in the plane."""

    def __call__(self, wav_N):
        angle = 2 * float(np.mean(wav_N))
        return np.array([np.cos(angle), np.sin(angle)]) if angle else None


@pytest.fixture(autouse=True)
def levels(monkeypatch):
    monkeypatch.setattr(voices, "Voices", Level)
    monkeypatch.setattr(voices, "find_spec", lambda name: True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    for split, num_clips in (("train", 3), ("test", 2)):
        with ShardWriter(folder, split) as writer:
            for speaker, level in {**SPEAKERS, "eve": 0.9}.items():
                for i in range(num_clips):
                    facts = {
                        "num_samples": RATE,
                        "sample_rate_hz": RATE,
                        "text": f"{speaker} says {i} {split}",
                    }
                    facts |= {"language": "en", "speaker": speaker, "corpus": "c"}
                    sound = {"flac": encode_audio(np.full(RATE, level, np.float32), RATE)}
                    writer.write(f"{split}-{speaker}-{i}", sound, facts)
    return folder


class Model:
    """Its replies have the level of the voice that it believes to be asked; codes are a recording's level."""

    sample_rate_hz = 24000

    def __init__(self, believes, decodes=lambda level: level):
        self.settings = DialogueSettings(voices=NAMED)
        self.believes, self.decodes, self.asked = believes, decodes, []

    def encode(self, wav_N, rate_hz):
        return float(np.mean(wav_N))

    def decode(self, level):
        return self._sound(self.decodes(level))

    def _sound(self, level):
        return np.full(self.sample_rate_hz, level, np.float32)

    def replies(self, chats, seeds, voice):
        self.asked += list(zip([chat[0]["content"] for chat in chats], seeds, voice, strict=True))
        believed = [self.believes(name) for name in voice]
        wavs = [None if name is None else self._sound(LEVELS[name]) for name in believed]
        return [{"text": "so", "wav": wav, "sample_rate_hz": self.sample_rate_hz} for wav in wavs]


def found(rows):
    return {row.name.removeprefix("nearest to the right voice, "): row for row in rows}


def test_a_reply_is_right_when_the_nearest_voice_is_the_one_that_was_asked_for(shards):
    model = Model(believes={"low": "low", "middle": "low", "high": None}.get)
    rows, told = voice_rows(model, shards, "test", 2, quiet, batch_size=4)
    assert {row.section for row in rows} == {SECTION}
    replies = found(rows)["replies"]
    assert replies.text == "6 of 18" and replies.value == pytest.approx(1 / 3)
    assert replies.note == "low 6 of 6, middle 0 of 6, high 0 of 6; 12 have speech"
    assert found(rows)["a guess"].value == pytest.approx(1 / 3)
    of_low = [np.cos(2 * abs(LEVELS[name] - LEVELS["low"])) for name in NAMED]
    near, far = (
        found(rows)[f"similarity to the {whose}, replies"].value for whose in ("right voice", "other voices")
    )
    assert near == pytest.approx((of_low[0] + of_low[1]) / 2, abs=1e-3), "of those that have speech"
    others = (of_low[1] + of_low[2]) / 2, (of_low[0] + of_low[2]) / 2
    assert far == pytest.approx(sum(others) / 2, abs=1e-3)
    assert [each["similarity"] for each in told if each["asked"] == "high"] == [None] * 6
    assert told[0]["similarity"] == pytest.approx(dict(zip(NAMED, of_low, strict=True)), abs=1e-3)


def test_every_text_is_read_in_all_voices_with_one_seed(shards):
    model = Model(believes=lambda name: name)
    rows, _ = voice_rows(model, shards, "test", 2, quiet, batch_size=5)
    assert found(rows)["replies"].text == "18 of 18"
    texts = {text: (seed, []) for text, seed, _ in model.asked}
    for text, seed, name in model.asked:
        assert texts[text][0] == seed
        texts[text][1].append(name)
    assert all(names == list(NAMED) for _, names in texts.values())
    assert sorted(seed for seed, _ in texts.values()) == list(range(6))
    assert all(text.startswith("Please read this aloud: ") and text.endswith(" test") for text in texts)
    assert not any("eve" in text for text in texts), "she has no name"


def test_what_codes_lose_of_the_voices_shows_in_the_recordings_made_from_them(shards):
    rows, _ = voice_rows(Model(lambda name: name, decodes=lambda _: 0.6), shards, "test", 2, quiet)
    assert found(rows)["held-out recordings"].text == "6 of 6"
    remade = found(rows)["the same made from their codes"]
    assert remade.text == "2 of 6" and "high 2 of 2" in remade.note


def test_a_voice_of_recordings_without_speech_cannot_be_told(tmp_path):
    for split in ("train", "test"):
        with ShardWriter(tmp_path, split) as writer:
            for speaker, level in (("ann", 0.1), ("mute", 0.0)):
                facts = {"num_samples": RATE, "sample_rate_hz": RATE, "text": "so", "language": "en"}
                sound = {"flac": encode_audio(np.full(RATE, level, np.float32), RATE)}
                writer.write(f"{split}-{speaker}", sound, {**facts, "speaker": speaker, "corpus": "c"})
    model = Model(lambda name: name)
    model.settings = DialogueSettings(voices={"low": ["ann"], "none": ["mute"]})
    (row,) = voice_rows(model, tmp_path, "test", 1, quiet)[0]
    assert row.text == "not measurable" and "no speech" in row.note


def test_what_cannot_be_told_says_so(shards, monkeypatch):
    model = Model(lambda name: name)
    for chosen, note in (
        ({"low": ["ann"], "odd": ["nobody"]}, "split 'train' has no clip of nobody"),
        (["low", "high"], "export again"),
    ):
        model.settings = DialogueSettings(voices=chosen)
        (row,) = voice_rows(model, shards, "test", 2, quiet)[0]
        assert row.value is None and row.text == "not measurable" and note in row.note
    model.settings = DialogueSettings(voices={"low": ["ann"]})
    assert voice_rows(model, shards, "test", 2, quiet) == ([], []), "one voice is every sound's nearest"
    monkeypatch.setattr(voices, "find_spec", lambda name: None)
    model.settings = DialogueSettings(voices=NAMED)
    assert voice_rows(model, shards, "test", 2, quiet)[0][0].text == "not installed"


def test_an_export_is_asked_in_batches_as_alone(model, trained, monkeypatch):
    named = {"a calm one": ["voice-en"], "a bright one": ["voice-it"]}
    monkeypatch.setattr(model, "settings", dataclasses.replace(model.settings, voices=named))
    results = [voice_rows(model, trained[1] / "shards", "test", 1, quiet, batch) for batch in (1, 3)]
    assert results[0] == results[1]
    assert [each["asked"] for each in results[0][1]] == [name for name in named for _ in range(2)]
