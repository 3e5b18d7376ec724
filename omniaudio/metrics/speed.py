"""Real-time factor: seconds of work for one second of speech."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(kw_only=True)
class Stopwatch:
    """Adds up the work and the speech of repeated calls.

    The clock is the wall's: with ``device`` on a GPU the caller synchronises before it leaves the block.
    """

    work_sec: float = 0.0
    speech_sec: float = 0.0

    @contextmanager
    def running(self, speech_sec: float | None = None) -> Iterator[None]:
        """Time the block; ``speech_sec`` is the length of the speech it treats (or add it afterwards)."""
        start = time.perf_counter()
        yield
        self.work_sec += time.perf_counter() - start
        self.speech_sec += speech_sec or 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Below 1 is faster than speech; None when there was no speech."""
        return self.work_sec / self.speech_sec if self.speech_sec > 0 else None
