from __future__ import annotations

import io

from omniaudio import progress
from omniaudio.progress import Progress, clock, track


def test_clock():
    assert [clock(s) for s in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


def test_track_yields_all_and_closes_on_error():
    assert list(track([1, 2, 3], "x")) == [1, 2, 3]
    assert list(track((i for i in range(2)), "x", total=2)) == [0, 1]


def test_a_terminal_sees_count_and_remaining_time(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    seconds = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    bar = Progress("train", total=10, start=4)
    bar.advance("loss 1")
    bar.close()
    assert "5/10 1.0/s ETA 0:05 loss 1" in terminal.getvalue()


def test_a_log_file_gets_a_line_only_now_and_then(monkeypatch, capsys):
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    bar = Progress("codes", total=None)
    for _ in range(4):
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("codes 2 ")
