"""Recognition as a step: what a recogniser writes, how far that is from the text, and when each word was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omniaudio.corpus.build.segment import Segment, device_for
from omniaudio.corpus.build.text_steps import Normalise
from omniaudio.errors import UserError
from omniaudio.frontend.text import normalise_text
from omniaudio.metrics.asr_judge import AsrJudge

MAX_SEC = 30.0  # of Whisper's window


class Recognise:
    """Whisper's reading of every segment into ``heard``.

    Args:
        model: hub name or local folder of a Whisper checkpoint.
        batch_size: segments at once.
        times: also find when the words of the segment's text are said, into ``words``.
        device: torch device; null takes a GPU where there is one.
        dtype: fp32 or bf16, which is nearly twice as fast where the processor has it.
    """

    def __init__(
        self,
        model: str,
        batch_size: int = 8,
        times: bool = False,
        device: str | None = None,
        dtype: str = "fp32",
    ) -> None:
        self.model, self.batch_size, self.times = model, batch_size, times
        self.device, self.dtype = device, dtype
        self._judge: AsrJudge | None = None

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        if self._judge is None and segments:
            self._judge = AsrJudge(self.model, device_for(self.device), self.dtype, self.batch_size)
        found = list(segments)
        able = [i for i, segment in enumerate(found) if segment.duration_sec <= MAX_SEC]
        able.sort(key=lambda i: found[i].duration_sec)  # similar lengths write similarly much
        for start in range(0, len(able), self.batch_size):
            part = able[start : start + self.batch_size]
            for i, heard in zip(part, self._heard([found[i] for i in part]), strict=True):
                found[i] = heard
        return [s if s.duration_sec <= MAX_SEC else s.refused("longer than 30 s", "asr") for s in found]

    def _heard(self, segments: Sequence[Segment]) -> list[Segment]:
        """A batch."""
        assert self._judge is not None
        wavs, languages = [_wav(segment) for segment in segments], [segment.language for segment in segments]
        rate_hz = segments[0].rate_hz
        if not self.times:
            texts = self._judge.transcribe(wavs, rate_hz, languages)
            return [replace(s, heard=text) for s, text in zip(segments, texts, strict=True)]
        known = [segment.text for segment in segments]
        texts, words = self._judge.transcribe_and_align(wavs, rate_hz, languages, known)
        told = zip(segments, texts, words, strict=True)
        return [replace(s, heard=text, words=tuple(timed)) for s, text, timed in told]


class CompareHeard:
    """Scores ``cer``: the fewest edits between what should be said and what was heard, each as written and as read
    aloud, over the characters of the former. A recogniser is free to write "1984" or "nineteen eighty-four"."""

    def __init__(self) -> None:
        self._normalise = Normalise()

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [segment.scored(cer=self.cer(segment)) for segment in segments]

    def cer(self, segment: Segment) -> float:
        """Share of wrong characters; 1 where nothing should be said."""
        import jiwer

        language = segment.language
        spoken = segment.spoken or self._normalise.spoken(segment.text, language)
        read = self._normalise.spoken(segment.heard, language)
        pairs = [(text, heard) for text in (segment.text, spoken) for heard in (segment.heard, read)]
        # 1984 and 7984 are a letter apart as written, and words apart when read: these count, where there are words
        alike = [(text, heard) for text, heard in pairs if _numbers(text) == _numbers(heard)] or pairs
        plain = [(normalise_text(text, language), normalise_text(heard, language)) for text, heard in alike]
        return min((float(jiwer.cer(text, heard)) for text, heard in plain if text), default=1.0)


def _numbers(text: str) -> str:
    return "".join(char for char in text if char.isdecimal())


class Transcribe:
    """Whisper with times: text and words of segments of at most 30 s, and how sure it was.

    Scores ``confidence``: exp of the mean log probability of its tokens.

    Args:
        model: hub name or local folder of a Whisper checkpoint.
        language: ISO 639-1; null takes the segment's.
        device: torch device; null takes a GPU where there is one.
        dtype: fp32 or bf16, which is nearly twice as fast where the processor has it.
    """

    def __init__(
        self, model: str, language: str | None = None, device: str | None = None, dtype: str = "fp32"
    ) -> None:
        self.model, self.language, self.device, self.dtype = model, language, device, dtype
        self._judge: AsrJudge | None = None

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        if self._judge is None and segments:
            self._judge = AsrJudge(self.model, device_for(self.device), self.dtype, batch_size=1)
        return [self._transcribed(segment) for segment in segments]

    def _transcribed(self, segment: Segment) -> Segment:
        if segment.duration_sec > MAX_SEC:
            return segment.refused("longer than 30 s", "asr")
        assert self._judge is not None
        language = self.language or segment.language
        words, confidence = self._judge.timed_words(_wav(segment), segment.rate_hz, language)
        text = "".join(word for word, _, _ in words).strip()
        if not text:
            return segment.refused("recogniser: no words", "asr")
        return replace(segment, text=text, heard=text, words=tuple(words), language=language).scored(
            confidence=confidence
        )


def _wav(segment: Segment) -> Any:
    if segment.wav_N is None:
        raise UserError(
            f"{segment.key}: has no sound to recognise; the pipeline needs a step that gives it some"
        )
    return segment.wav_N
