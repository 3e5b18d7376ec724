"""Pictures of the report, as PNG files. Nothing is drawn on import, no global state of matplotlib is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniaudio.metrics.codes import BookUse
from omniaudio.metrics.records import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1c2430", "#7b8794", "#e6e9ee"
BLUE, ORANGE, GREEN = "#2f6fde", "#e4693f", "#1f9d78"
DPI = 160


def loss_curves(path: Path, curves: Mapping[str, Curve], names: Sequence[str]) -> None:
    """Training (raw and smoothed) and held-out losses, one panel a loss, four in a row.

    Args:
        path: PNG to write.
        curves: 'train/<name>' and 'val/<name>' -> (step, value).
        names: losses to draw.
    """
    num_columns, num_rows = 4, -(-len(names) // 4)
    figure = _figure(2.9 * num_columns, 1.95 * num_rows)
    for i, name in enumerate(names):
        axes = figure.add_subplot(num_rows, num_columns, i + 1)
        train, val = curves.get(f"train/{name}", []), curves.get(f"val/{name}", [])
        if train:
            steps, values = np.array(train).T
            axes.plot(steps, values, color=BLUE, alpha=0.22, linewidth=0.8)
            axes.plot(steps, smoothed(values), color=BLUE, linewidth=1.5, label="training")
        if val:
            steps, values = np.array(val).T
            axes.plot(
                steps, values, color=ORANGE, linewidth=1.4, marker="o", markersize=2.8, label="held out"
            )
        _tidy(axes)
        axes.set_title(name, loc="left", fontsize=8.5, color=INK, fontweight="bold")
        axes.set_xlabel("step", fontsize=7, color=SOFT)
        if i == 0:
            axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    _save(figure, path)


def book_curves(path: Path, curves: Mapping[str, Curve]) -> bool:
    """How every book fared in training: codes in use, perplexity, error left, codes replaced.

    Args:
        path: PNG to write.
        curves: 'train/vq/usage/book0' -> (step, value), and so on.

    Returns:
        False, and nothing is drawn, if no book was logged.
    """
    titles = {
        "usage": "codes in use, %",
        "perplexity": "perplexity",
        "error": "error left (mean square)",
        "restarts": "codes replaced, a step",
    }
    found = {name: _by_book(curves, name) for name in titles}
    if not any(found.values()):
        return False
    figure = _figure(2.9 * len(titles), 2.2)
    for i, (name, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, len(titles), i + 1)
        for book, curve in enumerate(found[name]):
            steps, values = np.array(curve).T
            shade = 1 - 0.8 * book / max(1, len(found[name]) - 1)
            scale = 100 if name == "usage" else 1
            axes.plot(
                steps, scale * smoothed(values), color=BLUE, alpha=shade, linewidth=1.2, label=f"{book + 1}"
            )
        _tidy(axes)
        axes.set_title(title, loc="left", fontsize=8.5, color=INK, fontweight="bold")
        axes.set_xlabel("step", fontsize=7, color=SOFT)
        if i == 0:
            axes.legend(frameon=False, fontsize=6, labelcolor=INK, ncols=4, title="book", title_fontsize=6)
    _save(figure, path)
    return True


def _by_book(curves: Mapping[str, Curve], name: str) -> list[Curve]:
    found: list[Curve] = []
    while curve := curves.get(f"train/vq/{name}/book{len(found)}"):
        found.append(curve)
    return found


def spectrograms(
    path: Path, mels: Mapping[str, np.ndarray], seconds_a_frame: float, per_row: int | None = None
) -> None:
    """Log-mels (M, T) side by side on one scale of time and of colour: that of the first, however loud others are.

    Args:
        path: PNG to write.
        mels: title -> log-mel.
        seconds_a_frame: of all of them.
        per_row: panels in a row; None: all are in one.
    """
    from matplotlib.ticker import MaxNLocator

    loud = float(np.quantile(next(iter(mels.values())).astype(np.float32), 0.999))
    longest = max(mel.shape[1] for mel in mels.values()) * seconds_a_frame
    num_columns = per_row or len(mels)
    num_rows = -(-len(mels) // num_columns)
    figure = _figure(2.9 * num_columns, 2.0 * num_rows)
    for i, (title, mel) in enumerate(mels.items()):
        axes = figure.add_subplot(num_rows, num_columns, i + 1)
        extent = (0.0, mel.shape[1] * seconds_a_frame, 0.0, float(mel.shape[0]))
        axes.imshow(
            mel.astype(np.float32), origin="lower", aspect="auto", extent=extent, cmap="magma",
            vmin=loud - 9.0, vmax=loud, interpolation="nearest",
        )  # fmt: skip
        axes.set_xlim(0, longest)
        axes.set_facecolor("#f4f5f7")
        _tidy(axes, grid=False)
        axes.set_title(title, loc="left", fontsize=9, color=INK, fontweight="bold")
        axes.set_xlabel("seconds", fontsize=7, color=SOFT)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))
        if i == 0:
            axes.set_ylabel("mel bin", fontsize=7, color=SOFT)
    _save(figure, path)


def book_bars(path: Path, books: Sequence[BookUse]) -> None:
    """Share of the entries in use, and perplexity as a share of the size, of every book."""
    figure = _figure(5.6, 2.5)
    axes = figure.add_subplot()
    places = np.arange(len(books))
    used = [100 * book.usage for book in books]
    perplexity = [100 * book.perplexity / book.size for book in books]
    axes.bar(places - 0.2, used, width=0.38, color=BLUE, label="entries that occur, %")
    axes.bar(places + 0.2, perplexity, width=0.38, color=GREEN, label="perplexity / size, %")
    _tidy(axes)
    axes.set_ylim(0, 118)
    axes.set_xticks(places, [f"{i + 1}\n{book.size}" for i, book in enumerate(books)])
    axes.set_xlabel("book and its size", fontsize=7, color=SOFT)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=2, loc="upper right")
    _save(figure, path)


def mae_by_books(path: Path, mae: Mapping[str, Sequence[float]]) -> None:
    """Mean absolute error of the log-mel over the number of leading books that are read."""
    figure = _figure(5.6, 2.5)
    axes = figure.add_subplot()
    for (name, values), color in zip(mae.items(), (BLUE, SOFT), strict=False):
        places = np.arange(1, len(values) + 1)
        axes.plot(places, values, color=color, marker="o", markersize=4, linewidth=1.6, label=f"{name} mel")
        axes.annotate(
            f"{values[-1]:.3f}", (places[-1], values[-1]), textcoords="offset points", xytext=(0, -11),
            ha="center", fontsize=7, color=color,
        )  # fmt: skip
    _tidy(axes)
    axes.margins(y=0.2)
    axes.set_xticks(np.arange(1, max(map(len, mae.values())) + 1))
    axes.set_xlabel("books read", fontsize=7, color=SOFT)
    axes.set_ylabel("mean absolute error", fontsize=7, color=SOFT)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    _save(figure, path)


def quality_bars(path: Path, means: Mapping[str, Mapping[str, float | None]]) -> None:
    """One panel a measure, one bar a kind of speech; the kinds are named once, at the left.

    Args:
        path: PNG to write.
        means: measure -> kind of speech -> number; None where it could not be measured.
    """
    longest = max(means.values(), key=lambda of: len(of))
    kinds = list(longest)[::-1]  # matplotlib begins below
    figure = _figure(1.5 * len(means) + 2.4, 0.24 * len(kinds) + 0.7)
    for i, (name, of) in enumerate(means.items()):
        axes = figure.add_subplot(1, len(means), i + 1)
        values = [of.get(kind) for kind in kinds]
        axes.barh(range(len(kinds)), [value or 0.0 for value in values], color=BLUE, height=0.6)
        _tidy(axes)
        axes.set_title(name, loc="left", fontsize=8, color=INK, fontweight="bold")
        axes.set_yticks(range(len(kinds)), kinds if i == 0 else [""] * len(kinds))
    _save(figure, path)


def smoothed(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Running mean over a centred window, a twentieth of the curve unless given; ends use what is there."""
    size = window or max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    begin = np.arange(len(values)) - size // 2
    first, last = np.maximum(begin, 0), np.minimum(begin + size, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes, grid: bool = True) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom") and grid)
        spine.set_color(GRID)
    axes.tick_params(labelsize=7, colors=SOFT, length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=GRID, linewidth=0.7)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"dpi": DPI, "metadata": {"Software": None}}
    figure.savefig(path, **settings)
