"""Recognition as a step: what a recogniser writes, how far that is from the text, and when each word was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omniaudio.corpus.build.segment import Segment
from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.frontend.text import normalise_text
from omniaudio.metrics.asr_judge import AsrJudge

MAX_SEC = 30.0  # of Whisper's window


class Recognise:
    """Whisper's reading of every segment into ``heard``.

    Args:
        model: hub name or local folder of a Whisper checkpoint.
        batch_size: segments at once.
    """

    def __init__(self, model: str, batch_size: int = 8) -> None:
        self.model, self.batch_size = model, batch_size
        self._judge: AsrJudge | None = None

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        if self._judge is None and segments:
            self._judge = AsrJudge(self.model, batch_size=self.batch_size)
        found = list(segments)
        able = [i for i, segment in enumerate(found) if segment.duration_sec <= MAX_SEC]
        able.sort(key=lambda i: found[i].duration_sec)  # similar lengths write similarly much
        for start in range(0, len(able), self.batch_size):
            part = able[start : start + self.batch_size]
            assert self._judge is not None
            texts = self._judge.transcribe(
                [_wav(found[i]) for i in part], found[part[0]].rate_hz, [found[i].language for i in part]
            )
            for i, text in zip(part, texts, strict=True):
                found[i] = replace(found[i], heard=text)
        return [s if s.duration_sec <= MAX_SEC else s.refused("longer than 30 s", "asr") for s in found]


class CompareHeard:
    """Scores ``cer``: edits between what should be said and what was heard, over the characters of the former."""

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        import jiwer

        compared = []
        for segment in segments:
            expected = normalise_text(segment.spoken or segment.text, segment.language)
            heard = normalise_text(segment.heard, segment.language)
            compared.append(segment.scored(cer=float(jiwer.cer(expected, heard)) if expected else 1.0))
        return compared


class Transcribe:
    """Whisper with times: text and words of recordings of any length, and how sure it was.

    Scores ``confidence``: exp of the mean log probability of its tokens.

    Args:
        model: hub name or local folder of a Whisper checkpoint.
        language: ISO 639-1; null takes the segment's.
    """

    def __init__(self, model: str, language: str | None = None) -> None:
        self.model, self.language = model, language
        self._judge: AsrJudge | None = None

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        if self._judge is None and segments:
            self._judge = AsrJudge(self.model, batch_size=1)
        return [self._transcribed(segment) for segment in segments]

    def _transcribed(self, segment: Segment) -> Segment:
        if segment.duration_sec > MAX_SEC:
            return segment.refused("longer than 30 s", "asr")
        assert self._judge is not None
        language = self.language or segment.language
        words, confidence = timed_words(self._judge, _wav(segment), segment.rate_hz, language)
        text = "".join(word for word, _, _ in words).strip()
        if not text:
            return segment.refused("recogniser: no words", "asr")
        return replace(segment, text=text, heard=text, words=tuple(words), language=language).scored(
            confidence=confidence
        )


def timed_words(
    judge: AsrJudge, wav_N: Any, rate_hz: int, language: str
) -> tuple[list[tuple[str, float, float]], float]:
    """Words of a waveform of at most 30 s with start and end in seconds, and the recogniser's confidence."""
    import torch

    at_judge = resample(wav_N, rate_hz, judge.sample_rate_hz)
    processor, model = judge._processor, judge._model
    features = processor(
        at_judge, sampling_rate=judge.sample_rate_hz, return_tensors="pt", return_attention_mask=True
    )
    seconds = len(at_judge) / judge.sample_rate_hz
    with torch.inference_mode():
        found = model.generate(
            features["input_features"].to(judge.dtype), attention_mask=features["attention_mask"],
            language=language, task="transcribe", do_sample=False, num_beams=1, return_timestamps=True,
            return_token_timestamps=True, return_dict_in_generate=True, output_scores=True,
            max_new_tokens=min(400, int(10 + 8 * seconds)),
        )  # fmt: skip
    ids = found["sequences"][0].tolist()
    times = found["token_timestamps"][0].tolist()
    special = processor.tokenizer.all_special_ids
    first_time = processor.tokenizer.convert_tokens_to_ids("<|0.00|>")
    pieces: list[tuple[str, float]] = []
    bytes_so_far: list[int] = []
    for token_id, at in zip(ids, times, strict=False):
        if token_id in special or (first_time is not None and token_id >= first_time):
            continue
        bytes_so_far.append(token_id)
        text = processor.tokenizer.decode(bytes_so_far)
        if "\ufffd" in text:
            continue  # a letter of several tokens
        pieces.append((text, min(float(at), seconds)))
        bytes_so_far = []
    made = {
        id(part["result"]): part["result"] for part in found["segments"][0]
    }  # one a window, of several parts
    logs = [
        float(torch.log_softmax(score.reshape(-1).float(), -1).max())
        for result in made.values()
        for score in result["scores"]
    ]
    confidence = float(np.exp(np.mean(logs))) if logs else 0.0
    return words_of(pieces, seconds), confidence


def words_of(pieces: Sequence[tuple[str, float]], seconds: float) -> list[tuple[str, float, float]]:
    """Tokens to words: a new one begins with a space, or with every piece where a language writes none."""
    words: list[tuple[str, float, float]] = []
    ends = [at for _, at in pieces[1:]] + [seconds] * bool(pieces)
    spaced = any(piece.startswith(" ") for piece, _ in pieces[1:])
    for (piece, start), end in zip(pieces, ends, strict=True):
        if words and spaced and not piece.startswith(" "):
            words[-1] = (words[-1][0] + piece, words[-1][1], max(end, words[-1][1]))
        else:
            words.append((piece, start, max(start, end)))
    return words


def _wav(segment: Segment) -> Any:
    if segment.wav_N is None:
        raise UserError(
            f"{segment.key}: has no sound to recognise; the pipeline needs a step that gives it some"
        )
    return segment.wav_N
