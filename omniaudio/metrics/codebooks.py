"""Whether the books of a quantizer are in good health, and what to change when one is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HealthLimits:
    """What a healthy book stays above.

    Args:
        usage: share of its codes in use.
        perplexity: as a share of its size.
        explained: variance that a book must explain of what the books before it left.
    """

    usage: float = 0.3
    perplexity: float = 0.1
    explained: float = 0.005


def book_numbers(stats: Mapping[str, Any], name: str, prefix: str = "vq/") -> list[float]:
    """The values of ``<prefix><name>/book0, 1, ...`` in order."""
    values: list[float] = []
    while (value := stats.get(f"{prefix}{name}/book{len(values)}")) is not None:
        values.append(float(value))
    return values


def complaints(stats: Mapping[str, Any], sizes: Sequence[int], limits: HealthLimits) -> dict[int, str]:
    """What is wrong with which book.

    Args:
        stats: of a training step, as a tokenizer logs them ('vq/usage/book0', ...).
        sizes: codes of every book.
        limits: below these a book is ill.

    Returns:
        number of the book from 1 -> one sentence with the value and the key to change.
    """
    found: dict[int, str] = {}
    explained = book_numbers(stats, "explained")
    left = [1.0, *(1 - share for share in explained)]
    for book, (usage, perplexity) in enumerate(
        zip(book_numbers(stats, "usage"), book_numbers(stats, "perplexity"), strict=True)
    ):
        said = ""
        if usage < limits.usage:
            said = (
                f"{usage:.0%} of its {sizes[book]} codes are in use: lower quantizer.restart_after, "
                "raise quantizer.gumbel_temperature, or give it fewer codes"
            )
        elif perplexity < limits.perplexity * sizes[book]:
            said = (
                f"perplexity {perplexity:.1f} of {sizes[book]} codes: few codes take nearly all frames; "
                "raise quantizer.gumbel_temperature or lower task.commit_scale"
            )
        elif book < len(explained) and left[book] - left[book + 1] < limits.explained * max(left[book], 0.0):
            said = (
                f"it explains {left[book] - left[book + 1]:.4f} of the variance where {left[book]:.4f} was left: "
                "the books before it suffice, or their codes move too fast (books.decay)"
            )
        if said:
            found[book + 1] = f"book {book + 1} of {len(sizes)}: {said}"
    return found
