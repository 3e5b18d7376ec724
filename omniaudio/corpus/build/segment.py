"""What the steps of a build pass on: a stretch of text, of speech, or of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from omniaudio.data.chats import Written
from omniaudio.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a passage. A step returns new ones; it changes none."""

    key: str  # source/place, unique
    passage: (
        str  # of which it is a part; segments of a passage with places one after the other follow each other
    )
    place: int = 0
    language: str = ""  # ISO 639-1
    text: str = ""  # as written
    laid_out: str = ""  # the same with its line ends and tabs
    spoken: str = ""  # as it is to be read aloud: numbers and signs as words
    heard: str = ""  # what a recogniser wrote
    speaker: str = ""
    wav_N: np.ndarray | None = None
    rate_hz: int = 0
    start_sec: float = 0.0  # in its recording
    band_hz: float = 0.0  # highest frequency with sound, where that is known to be less than half the rate
    facts: dict[str, str] = field(
        default_factory=dict
    )  # what else is known: response, continuation, translation
    role: str = ""  # in a chat: user or assistant
    turn: int = 0  # message of the chat
    turns: int = 0  # messages of the chat
    turn_parts: int = 0  # segments and written parts of the message
    before: tuple[
        Written, ...
    ] = ()  # what is only written: since the segment before, and behind the chat's last
    after: tuple[Written, ...] = ()
    words: tuple[tuple[str, float, float], ...] = ()  # with start and end in seconds, where they were aligned
    scores: dict[str, float] = field(default_factory=dict)
    fault: str = ""  # the reason to leave it out
    goes_to: str = ""  # where it goes then: asr, tts, or nowhere

    @property
    def duration_sec(self) -> float:
        return len(self.wav_N) / self.rate_hz if self.wav_N is not None else 0.0

    def scored(self, **scores: float) -> Segment:
        """With more scores."""
        return replace(self, scores={**self.scores, **scores})

    def refused(self, fault: str, goes_to: str = "") -> Segment:
        """With the reason why it is left out."""
        return replace(self, fault=fault, goes_to=goes_to)


def device_for(device: str | None) -> str:
    """The torch device of a step's model: the one that it was given, else a GPU where there is one."""
    import torch

    found = torch.cuda.is_available()
    if device and device.startswith("cuda") and not found:
        raise UserError(
            f"config device={device}: torch {torch.__version__} sees no GPU; use device=cpu or device=null"
        )
    return device or ("cuda" if found else "cpu")


@runtime_checkable
class Step(Protocol):
    """One step of a build: all good segments of a passage in, in order, and what becomes of them out."""

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]: ...


class Gate:
    """Refuses what scores too low or too high.

    Args:
        score: name of the score.
        least, most: allowed; null does not ask.
        shown: range of the histogram in the report.
        goes_to: the set that refused segments join: asr, tts, or null for none.
    """

    def __init__(
        self,
        score: str,
        least: float | None = None,
        most: float | None = None,
        shown: Sequence[float] = (0.0, 1.0),
        goes_to: str | None = None,
    ) -> None:
        self.score, self.least, self.most, self.goes_to = score, least, most, goes_to or ""
        self.shown = (float(shown[0]), float(shown[1]))

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [self._judged(segment) for segment in segments]

    def _judged(self, segment: Segment) -> Segment:
        if self.score not in segment.scores:
            known = ", ".join(segment.scores) or "none"
            raise UserError(
                f"gate of {self.score!r}: no step before it gives this score (there are: {known})"
            )
        value = segment.scores[self.score]
        if self.least is not None and not value >= self.least:
            return segment.refused(f"{self.score} under {self.least:g}", self.goes_to)
        if self.most is not None and not value <= self.most:
            return segment.refused(f"{self.score} over {self.most:g}", self.goes_to)
        return segment
