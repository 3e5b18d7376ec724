"""Progress with rate and remaining time: a live bar on a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
LOG_EVERY_SEC = 15.0
FILE_WIDTH = 120


def table_console() -> Console:
    """Where tables are printed: as wide as the terminal, or wide enough for a file."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else FILE_WIDTH)


class Progress:
    """Counts steps of a known total and shows them with an estimate of the time that remains.

    Args:
        total: number of steps, or None when unknown.
        start: steps that an earlier run has done already.
        unit: of a step, as shown.
    """

    def __init__(self, description: str, total: int | None, start: int = 0, unit: str = "") -> None:
        self.unit = unit
        self.description, self.total, self.start, self.done = description, total, start, start
        self.began = self.last_line = time.monotonic()
        self.live = sys.stderr.isatty()
        self.width = 0

    def advance(self, note: str | Callable[[], str] = "", steps: int = 1) -> None:
        """Count; ``note`` stands at the end of the line (a function is called only when a line is shown)."""
        self.done += steps
        now = time.monotonic()
        last = self.done == self.total
        if now - self.last_line >= (0.2 if self.live else LOG_EVERY_SEC) or (last and self.live):
            self.last_line = now
            self._show(now, note() if callable(note) else note)

    def close(self) -> None:
        if self.live and self.width:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _show(self, now: float, note: str) -> None:
        rate = (self.done - self.start) / max(1e-9, now - self.began)
        if self.total:
            share = self.done / self.total
            bar = "━" * int(24 * share) + "─" * (24 - int(24 * share))
            eta = clock((self.total - self.done) / rate) if rate else "?"
            line = (
                f"{self.description} {bar} {self.done}/{self.total}{self.unit} {rate:.1f}/s ETA {eta} {note}"
            )
        else:
            line = f"{self.description} {self.done}{self.unit} {rate:.1f}/s {note}"
        if self.live:
            sys.stderr.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    progress = Progress(description, total)
    try:
        for item in iterable:
            yield item
            progress.advance()
    finally:
        progress.close()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
