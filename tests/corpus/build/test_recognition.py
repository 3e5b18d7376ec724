import numpy as np
import pytest

from omniaudio.corpus.build import recognition
from omniaudio.corpus.build.recognition import CompareHeard, Recognise, Transcribe
from omniaudio.corpus.build.segment import Segment
from omniaudio.errors import UserError


class Parrot:
    """A judge that writes how long each waveform is; notes the batches. The words of a text share its time."""

    def __init__(self, source, device, dtype, batch_size):
        self.batches, self.device, self.dtype = [], device, dtype

    def transcribe_and_align(self, wavs, rate_hz, languages, texts):
        words = [
            [(f" {word}", float(i), float(i + 1)) for i, word in enumerate(text.split())] for text in texts
        ]
        return self.transcribe(wavs, rate_hz, languages), words

    def transcribe(self, wavs, rate_hz, languages):
        self.batches.append([len(wav) / rate_hz for wav in wavs])
        return [
            f"{len(wav) / rate_hz:g} in {language}" for wav, language in zip(wavs, languages, strict=True)
        ]


def segment(seconds, **facts):
    wav = np.zeros(int(1000 * seconds), np.float32)
    return Segment(**{"key": "a", "passage": "p", "language": "en", "wav_N": wav, "rate_hz": 1000, **facts})


def test_segments_are_heard_in_batches_of_similar_length_and_keep_their_order(monkeypatch):
    monkeypatch.setattr(recognition, "AsrJudge", Parrot)
    step = Recognise("m", batch_size=2)
    found = step([segment(4), segment(1), segment(31), segment(3, language="it")])
    assert [s.heard for s in found] == ["4 in en", "1 in en", "", "3 in it"]
    assert step._judge.batches == [[1, 3], [4]]
    assert (found[2].fault, found[2].goes_to) == ("longer than 30 s", "asr")
    assert step([]) == []
    with pytest.raises(UserError, match="has no sound to recognise"):
        step([Segment(key="a", passage="p")])


def test_words_of_the_known_text_get_times_and_models_their_device(monkeypatch):
    monkeypatch.setattr(recognition, "AsrJudge", Parrot)
    step = Recognise("m", batch_size=2, times=True, device="meta", dtype="bf16")
    found = step([segment(2, text="one two"), segment(1, text="three"), segment(31, text="four")])
    assert [s.heard for s in found] == ["2 in en", "1 in en", ""]
    assert [s.words for s in found] == [((" one", 0, 1), (" two", 1, 2)), ((" three", 0, 1),), ()]
    assert (step._judge.device, step._judge.dtype) == ("meta", "bf16")
    plain = Recognise("m")
    assert [s.words for s in plain([segment(1, text="three")])] == [()]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    step = Transcribe("m", device=None)
    monkeypatch.setattr(Parrot, "timed_words", lambda *facts: ([], 0.0), raising=False)
    step([segment(1)])
    assert step._judge.device == "cpu"


def test_edits_over_the_characters_that_should_be_said():
    segments = [
        segment(1, text="It is 3.", spoken="It is three.", heard="it is three"),
        segment(1, text="one", heard="one two"),
        segment(1, text="one", heard=""),
        segment(1, text="...", heard="one"),
    ]
    assert [s.scores["cer"] for s in CompareHeard()(segments)] == pytest.approx([0, 4 / 3, 1, 1])


def test_numbers_may_be_heard_as_digits_or_as_words():
    def cer(text, heard, language="en", spoken=""):
        (found,) = CompareHeard()([segment(1, text=text, heard=heard, language=language, spoken=spoken)])
        return found.scores["cer"]

    for spoken in ("", "It is nineteen eighty four."):
        assert cer("It is 1984.", "It is 1984.", spoken=spoken) == 0
        assert cer("It is 1984.", "It is nineteen eighty-four", spoken=spoken) == 0
        assert cer("It is 1984.", "It is 7984.", spoken=spoken) > 0.3, "one digit, but other words"
        assert cer("It is 1984.", "It is twenty-thirteen.", spoken=spoken) > 0.3
    assert cer("It is nineteen eighty-four.", "It is 1984.") == 0
    assert cer("气温25度", "气温二十五度", "zh") == cer("气温二十五度", "气温25度", "zh") == 0
    assert cer("Costa 12 euro", "Costa 12 euro", "it") == 0
    assert cer("Costa 12 euro", "Costa dodici euro", "it") == pytest.approx(6 / 13)


def test_a_transcript_with_times_becomes_the_text(monkeypatch):
    monkeypatch.setattr(recognition, "AsrJudge", Parrot)
    told = {1.0: ([(" hi", 0.0, 0.5), (" you", 0.5, 1.0)], 0.75), 2.0: ([], 0.5)}
    monkeypatch.setattr(
        Parrot, "timed_words", lambda self, wav, rate, language: told[len(wav) / rate], raising=False
    )
    one, two, three = Transcribe("m")([segment(1), segment(2), segment(40)])
    assert (one.text, one.heard, one.scores) == ("hi you", "hi you", {"confidence": 0.75}) and len(
        one.words
    ) == 2
    assert (two.fault, three.fault) == ("recogniser: no words", "longer than 30 s")
