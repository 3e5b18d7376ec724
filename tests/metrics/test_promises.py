from __future__ import annotations

import json

import pytest

from omniaudio.metrics.promises import fall, loss_rows, score_rows
from omniaudio.metrics.records import Row


def test_fall_is_the_last_tenth_against_the_first():
    assert fall([(step, 4.0) for step in range(9)] + [(9, 1.0)]) == pytest.approx(0.75)
    assert fall([(step, 5.0 if step == 0 else 3.0) for step in range(18)] + [(18, 1.0), (19, 3.0)]) == 0.5
    assert fall([(0, 2.0), (1, 3.0)]) == pytest.approx(-0.5)
    assert fall([(0, 0.0), (1, 2.0), (2, 1.0)]) == pytest.approx(0.5)  # a step without such a position
    assert fall([(0, 0.0)]) == 0


def test_losses_are_held_against_their_share(tmp_path):
    (tmp_path / "lm").mkdir()
    lines = [{"step": step, "train/a": 10.0 - step, "train/b": 1.0} for step in range(6)]
    (tmp_path / "lm" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = loss_rows(tmp_path, {"lm": {"a": 0.4, "b": 0.1, "c": 0.1}})
    assert [row.text for row in rows] == ["held: +50.0%", "NOT held: +0.0%", "not measured"]


def test_held_out_losses_compare_the_first_validation_with_the_last(tmp_path):
    (tmp_path / "lm").mkdir()
    lines = [
        {"step": step, "train/a": 1.0, "val/a": value} for step, value in ((10, 8.0), (20, 9.0), (30, 6.0))
    ]
    lines.append({"step": 30, "val/b": 3.0})
    (tmp_path / "lm" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = loss_rows(tmp_path, {"lm": {"val/a": 0.2, "val/b": 0.1}})
    assert [row.text for row in rows] == ["held: +25.0%", "not measured"]
    assert rows[0].name == "lm: held-out a falls by 20% or more"


def rows_of(**values: float | None) -> list[Row]:
    names = {
        "original": "CER, original recording",
        "copy": "CER, copy synthesis (mel → vocoder)",
        "change": "change",
    }
    return [Row(section="", name=names[key], value=value, text="") for key, value in values.items()]


LIMITS = {"copy_cer_gap": 0.1, "perplexity_change": 0.1}


def test_scores():
    good = score_rows(rows_of(original=0.05, copy=0.14, change=-0.02), [0.5, 0.4, 0.39], LIMITS)
    assert [row.text[:5] for row in good] == ["held:"] * 3
    bad = score_rows(rows_of(original=0.05, copy=0.2, change=0.3), [0.5, 0.4, 0.41], LIMITS)
    assert [row.text[:8] for row in bad] == ["NOT held"] * 3


def test_without_a_judge_nothing_is_claimed():
    rows = score_rows(rows_of(original=None, copy=None), [0.5, 0.4], LIMITS)
    assert [row.value is None for row in rows] == [False, True, True]
