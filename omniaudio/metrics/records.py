"""What a run wrote, read back: losses by step, stamps, proofs of freezing, rows of results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a table.

    Attributes:
        section: table that it stands in.
        name: what is measured.
        value: the number; None where it could not be measured.
        text: as printed.
        note: what one must know to read it.
        command: gives this number again.
    """

    section: str
    name: str
    value: float | None
    text: str
    note: str = ""
    command: str = ""


@dataclass
class StageRecord:
    """One stage's folder, as far as it is there."""

    name: str
    folder: Path
    stamp: dict[str, Any] = field(default_factory=dict)
    freeze: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)  # 'train/loss' -> (step, value)

    @property
    def done(self) -> bool:
        return bool(self.stamp)

    @property
    def num_steps(self) -> int | None:
        """Last training step that was logged."""
        steps = [curve[-1][0] for name, curve in self.curves.items() if name.startswith("train/") and curve]
        return int(max(steps)) if steps else None

    def last(self, name: str) -> float | None:
        """The last value of a curve."""
        curve = self.curves.get(name)
        return curve[-1][1] if curve else None


def read_stage(folder: Path) -> StageRecord:
    """Everything that a stage recorded; what is missing or half-written stays empty."""
    return StageRecord(
        name=folder.name,
        folder=folder,
        stamp=read_json(folder / "stamp.json"),
        freeze=read_json(folder / "freeze.json"),
        curves=read_curves(folder / "metrics.jsonl"),
    )


def held_out_rows(record: StageRecord, command: str) -> list[Row]:
    """The last held-out cross-entropies of a stage, in all and by kind of document; ``command`` makes them again."""
    names = sorted(name for name in record.curves if name.startswith("val/ce/") and "/book" not in name)
    return [
        Row(
            section=f"Language model: held-out losses of {record.name}",
            name=f"{record.name}: {name[4:]}",
            value=record.curves[name][-1][1],
            text=f"{record.curves[name][-1][1]:.3f}",
            note=f"nats; at first {record.curves[name][0][1]:.3f}",
            command=command,
        )
        for name in names
    ]


def read_curves(path: Path) -> dict[str, Curve]:
    """``metrics.jsonl`` to curves by name. A line cut by a kill is left out."""
    curves: dict[str, Curve] = {}
    for line in _lines(path):
        if "step" not in line:
            continue
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                curves.setdefault(name, []).append((float(line["step"]), float(value)))
    return curves


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table as text; the first line holds the titles of its columns."""
    titles, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *rest))


def read_json(path: Path) -> dict[str, Any]:
    """A json file's mapping; empty when it is not there or not whole."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
