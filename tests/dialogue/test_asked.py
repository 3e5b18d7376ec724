import numpy as np
import pytest

from omniaudio.dialogue import asked
from omniaudio.dialogue.asked import RIGHT, asked_rows, right
from omniaudio.dialogue.evaluation import choose_clips
from omniaudio.metrics.asr_judge import NO_JUDGE

RATE = 24000


def quiet(items, description):
    return items


@pytest.fixture(scope="module")
def clips(trained):
    return choose_clips(trained[1] / "shards", "test", 4)


class Judge:
    """Knows each waveform by its first sample; the rest was never said."""

    name, batch_size = "judge", 3

    def __init__(self, heard):
        self.heard, self.calls = heard, []

    def transcribe(self, wavs, sample_rate_hz, languages):
        assert sample_rate_hz == RATE and len(wavs) == len(languages) <= self.batch_size
        self.calls += [len(wav) for wav in wavs]
        return [self.heard[int(wav[0])] for wav in wavs]


class Model:
    """Answers as it was told; its speech is a number that the judge knows."""

    def __init__(self, clips):
        self.number = {clip.text: i for i, clip in enumerate(clips)}
        self.asked = []

    def question(self, wav_N, rate_hz, task, language):
        return {"task": task, "length": len(wav_N)}

    def speak_all(self, texts, seeds):
        self.asked += [("read aloud", seed) for seed in seeds]
        return [reply(text="", first=self.number[text], seconds=40) for text in texts]

    def replies(self, chats, speak=True, seeds=None):
        (task,) = {chat[0]["task"] for chat in chats}
        self.asked += [(task, seed) for seed in seeds]
        if task == "language":
            assert not speak
            return [reply(text=" english") for _ in chats]
        if task == "repeat":  # right words, and no speech but for the first
            texts = list(self.number)
            return [reply(text=texts[seed], first=seed if seed == 0 else None) for seed in seeds]
        return [reply(text="well then" if seed else "", first=10) for seed in seeds]


def reply(text, first=None, seconds=1):
    wav_N = None if first is None else np.full(seconds * RATE, first, np.float32)
    return {"text": text, "wav": wav_N, "sample_rate_hz": RATE}


def test_every_reply_is_held_against_what_it_should_have_said(clips):
    heard = {i: clip.text for i, clip in enumerate(clips)} | {10: "well then"}
    heard[1] = "something else altogether"
    model, judge = Model(clips), Judge(heard)
    rows, told = asked_rows(model, clips, judge, quiet, batch_size=3)
    found = {row.name: row for row in rows}
    english = sum(clip.language == "en" for clip in clips)
    assert found["names the language"].text == f"{english} of 4"
    assert found["right when it reads aloud"].text == "3 of 4"
    assert 0 < found["CER, reading aloud"].value < found["WER, reading aloud"].value
    assert found["right when asked to repeat"].text == "1 of 4"
    assert "1 have speech" in found["right when asked to repeat"].note
    assert found["writes the right words when asked to repeat"].text == "4 of 4"
    assert (
        found["says what it writes when asked to go on"].text == "3 of 4"
    )  # of the first nothing was written
    assert max(judge.calls) == asked.HEARD_SEC * RATE
    assert sorted(set(model.asked)) == sorted((what, i) for what in ("language", *RIGHT) for i in range(4))
    assert [each["heard"] for each in told if each["asked"] == "repeat"] == [clips[0].text, "", "", ""]


def test_batches_change_nothing_and_without_a_judge_nothing_is_spoken(model, clips):
    judge = type("Ear", (Judge,), {"transcribe": lambda self, wavs, *_: [str(len(wav)) for wav in wavs]})({})
    results = [asked_rows(model, clips[:3], judge, quiet, batch_size) for batch_size in (1, 3)]
    assert results[0] == results[1]
    rows, told = asked_rows(model, clips[:1], None, quiet)
    assert not told and [row.text for row in rows if row.value is None] == [NO_JUDGE] * len(RIGHT)


def test_several_texts_are_read_as_each_alone(model, clips):
    texts = [clip.text for clip in clips]
    together = model.speak_all(texts, [3, 1, 2, 5])
    alone = [model.speak(text, seed) for text, seed in zip(texts, [3, 1, 2, 5], strict=True)]
    assert [r["events"] for r in together] == [r["events"] for r in alone]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one["wav"], other["wav"])


def test_nothing_to_say_is_never_right():
    assert right("hello there", "hello their", "en") and not right("hello there", "", "en")
    assert not right("", "", "en") and not right("...", "...", "en")
