"""The gate: what a recording and its transcript must satisfy before anything is made of them."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omniaudio.corpus.items import RawItem
from omniaudio.errors import UserError
from omniaudio.frontend.audio import decode_audio, resample
from omniaudio.frontend.text import NOT_TEXT, normalise_text

FULL_SCALE = 0.999
SHORT_SEC, SHORT_SHARE = 0.1, 0.01  # what a recording may lack of its listed duration


@dataclass(frozen=True)
class Finding:
    """What the gate says of one item: ``reason`` is None for a good one."""

    reason: str | None
    detail: str = ""
    num_samples: int = 0
    sample_rate_hz: int = 0


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Limits of the gate; a choice of the config.

    Args:
        sample_rate_hz: of the shards.
        resample: take other rates than the one that the corpus states, or else that of the shards.
        downmix: take several channels too, as their mean.
        min_sec, max_sec: allowed duration.
        min_level_db: a quieter recording (RMS, against full scale) is silence.
        max_clipped_share: share of samples at full scale.
        min_chars_per_sec, max_chars_per_sec: outside, the transcript is hardly that of the recording.
        max_text_chars: a longer transcript, response, continuation or translation is a mistake.
        max_bad_share: the run stops when a larger share of the items fails.
    """

    sample_rate_hz: int
    resample: bool
    downmix: bool
    min_sec: float
    max_sec: float
    min_level_db: float
    max_clipped_share: float
    min_chars_per_sec: float
    max_chars_per_sec: float
    max_text_chars: int
    max_bad_share: float

    def check(self, item: RawItem) -> Finding:
        """Judge one item; never raises for what is wrong with it."""
        times = (item.start_sec, item.duration_sec if item.duration_sec is not None else 1.0)
        if not all(map(math.isfinite, times)) or times[0] < 0 or times[1] <= 0 or (item.channel or 0) < 0:
            return Finding("no stretch of time", f"start {item.start_sec} s, duration {item.duration_sec} s")
        fault = Finding(item.fault) if item.fault else self._text_fault(item) or self._answer_fault(item)
        if fault is not None:
            return fault
        if not Path(item.path).is_file():
            return Finding("missing file", str(item.path))
        try:
            wav_CN, rate_hz = _decode(item)
        except UserError as error:
            return Finding(audio_reason(error), str(error))
        there_sec = wav_CN.shape[1] / rate_hz
        if item.duration_sec is not None and item.duration_sec - there_sec > max(
            SHORT_SEC, SHORT_SHARE * there_sec
        ):
            return Finding(
                "shorter than listed", f"{item.duration_sec:.2f} s listed, {there_sec:.2f} s there"
            )
        expected_hz = item.sample_rate_hz or self.sample_rate_hz
        reason, detail = self._audio_fault(wav_CN, rate_hz, expected_hz) or self._pace_fault(
            item, wav_CN.shape[1] / rate_hz
        )
        return Finding(reason, detail, num_samples=wav_CN.shape[1], sample_rate_hz=rate_hz)

    def load(self, item: RawItem) -> np.ndarray:
        """The waveform wav_N of an item that passed, at ``sample_rate_hz``."""
        wav_CN, rate_hz = _decode(item)
        return resample(wav_CN.mean(axis=0), rate_hz, self.sample_rate_hz)

    def _text_fault(self, item: RawItem) -> Finding | None:
        if item.wordless:
            return None
        if item.text is None:
            return Finding("missing transcript")
        if not normalise_text(item.text[: self.max_text_chars], item.language):
            return Finding("empty transcript", repr(item.text[:40]))
        return self._written_fault("transcript", item.text)

    def _answer_fault(self, item: RawItem) -> Finding | None:
        answers = {
            "response": " ".join(item.response),
            "continuation": item.continuation,
            "translation": item.translation,
        }
        faults = (self._written_fault(name, text) for name, text in answers.items())
        return next((fault for fault in faults if fault is not None), None)

    def _written_fault(self, name: str, text: str) -> Finding | None:
        if len(text) > self.max_text_chars:
            return Finding(f"{name} too long", f"{len(text)} characters, at most {self.max_text_chars}")
        if any(unicodedata.category(char) in NOT_TEXT for char in text):
            return Finding(f"control characters in the {name}", repr(text[:40]))
        return None

    def _audio_fault(self, wav_CN: np.ndarray, rate_hz: int, expected_hz: int) -> tuple[str, str] | None:
        if not np.isfinite(wav_CN).all():
            return "audio not finite", f"{int((~np.isfinite(wav_CN)).sum())} samples are NaN or Inf"
        if rate_hz != expected_hz and not self.resample:
            return (
                "wrong sample rate",
                f"{rate_hz} Hz, expected {expected_hz} (checks.resample=true converts)",
            )
        if wav_CN.shape[0] != 1 and not self.downmix:
            return "several channels", f"{wav_CN.shape[0]}, expected 1 (checks.downmix=true takes the mean)"
        duration_sec = wav_CN.shape[1] / rate_hz
        if duration_sec < self.min_sec:
            return "too short", f"{duration_sec:.2f} s, at least {self.min_sec} s"
        if duration_sec > self.max_sec:
            return "too long", f"{duration_sec:.2f} s, at most {self.max_sec} s"
        level_db = 10 * np.log10(float(np.square(wav_CN, dtype=np.float64).mean()) + 1e-20)
        if level_db < self.min_level_db:
            return "silence", f"{level_db:.0f} dB, at least {self.min_level_db:.0f} dB"
        clipped = float((np.abs(wav_CN) >= FULL_SCALE).mean())
        if clipped > self.max_clipped_share:
            return "clipped", f"{clipped:.1%} of the samples, at most {self.max_clipped_share:.1%}"
        return None

    def _pace_fault(self, item: RawItem, duration_sec: float) -> tuple[str | None, str]:
        if item.wordless:
            return None, ""
        pace = len(normalise_text(item.text or "", item.language)) / duration_sec
        if not self.min_chars_per_sec <= pace <= self.max_chars_per_sec:
            allowed = f"{self.min_chars_per_sec} to {self.max_chars_per_sec}"
            return "text does not fit the duration", f"{pace:.1f} characters a second, allowed {allowed}"
        return None, ""


def audio_reason(error: UserError) -> str:
    """Why a recording could not be decoded, in the words of the reports."""
    known = {"(0 samples": "empty audio", "no such channel": "no such channel", "cut off": "cut off"}
    return next((reason for words, reason in known.items() if words in str(error)), "unreadable audio")


def _decode(item: RawItem) -> tuple[np.ndarray, int]:
    """The part of a file, and the channel, that an item is."""
    return decode_audio(item.path, item.start_sec, item.duration_sec, item.channel)
