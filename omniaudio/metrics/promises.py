"""What a run is expected to show, held against what it did: each expectation is a row that says held or not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omniaudio.metrics.records import Curve, Row, read_stage

SECTION = "What a run should show"

LEAST_GAIN = 1e-6
"""By which a book must lower the mel error: more than rounding."""


def fall(curve: Curve, ends: float = 0.1) -> float:
    """Share by which a curve fell: the mean of its last tenth against the mean of its first.

    Args:
        curve: (step, value) pairs.
        ends: share of the points that make up either end; single steps are too noisy to compare. 0: one point.
    """
    values = [value for _, value in curve if value != 0]  # 0: no position of the step had this loss
    if not values:
        return 0.0
    width = max(1, round(ends * len(values)))
    return 1 - fmean(values[-width:]) / fmean(values[:width])


def loss_rows(exp_dir: Path, falls: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """One row a loss: stage -> loss -> least share by which it should fall; ``val/...`` is a held-out one."""
    rows = []
    for stage, losses in falls.items():
        curves = read_stage(exp_dir / stage).curves
        for name, least in losses.items():
            loss = name.removeprefix("val/")
            held_out = loss != name
            curve = curves.get(name if held_out else f"train/{name}", [])
            value = fall(curve, ends=0.0 if held_out else 0.1) if len(curve) > held_out else None
            what = f"{stage}: {'held-out ' * held_out}{loss} falls by {100 * least:g}% or more"
            rows.append(_row(what, value, least, at_least=True))
    return rows


def score_rows(rows: Sequence[Row], refined_mae: Sequence[float], limits: Mapping[str, float]) -> list[Row]:
    """Rows on the scores: every book helps, copy synthesis is near the original, the text model is kept.

    Args:
        rows: measured so far.
        refined_mae: mel error with 1, 2, ... books.
        limits: ``copy_cer_gap`` and ``perplexity_change``, as shares.
    """
    values = {row.name: row.value for row in rows}
    least_gain = min((before - after for before, after in itertools.pairwise(refined_mae)), default=None)
    found = [_row("every added book lowers the mel MAE", least_gain, LEAST_GAIN, at_least=True, form="+.4f")]
    original, copied = (_starting(values, f"CER, {variant}") for variant in ("original", "copy synthesis"))
    gap = None if original is None or copied is None else copied - original
    limit = limits["copy_cer_gap"]
    found.append(
        _row(f"CER of copy synthesis within {limit:.0%} of the original's", gap, limit, at_least=False)
    )
    limit = limits["perplexity_change"]
    name = f"text perplexity after stage 2 within {limit:.0%} of before"
    found.append(_row(name, values.get("change"), limit, at_least=False))
    return found


def _starting(values: Mapping[str, float | None], start: str) -> float | None:
    """The value whose name begins so; None if there is none."""
    return next((value for name, value in values.items() if name.startswith(start)), None)


def _row(name: str, value: float | None, limit: float, *, at_least: bool, form: str = "+.1%") -> Row:
    if value is None:
        return Row(section=SECTION, name=name, value=None, text="not measured")
    held = value >= limit if at_least else value <= limit
    return Row(
        section=SECTION, name=name, value=value, text=f"{'held' if held else 'NOT held'}: {value:{form}}"
    )


def all_rows(config: Mapping[str, Any], rows: Sequence[Row], refined_mae: Sequence[float]) -> list[Row]:
    """Every expectation of ``config['expected']``."""
    expected = config["expected"]
    return loss_rows(Path(config["exp_dir"]), expected["falls"]) + score_rows(rows, refined_mae, expected)
