"""How the next symbol is drawn from logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omniaudio.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Applied in this order: repetition penalty, temperature, top-k, top-p.

    Args:
        temperature: divides the logits; 0 takes the likeliest symbol.
        top_k: only the k likeliest symbols; 0 is off.
        top_p: only the likeliest symbols that together reach this probability; 1 is off.
        repetition: logits of symbols said before are divided by it if positive, multiplied if negative
            (arXiv:1909.05858); 1 is off.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        for name, (right, allowed) in ALLOWED.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not right(value):
                raise UserError(f"{name} {value!r}: must be {allowed}")


ALLOWED: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < math.inf, "a number, at least 0"),
    "top_k": (lambda value: isinstance(value, int) and value >= 0, "a whole number, at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "repetition": (lambda value: 0 < value < math.inf, "a number above 0"),
}
"""What the settings may be: a test, and words for it."""


def draw(
    logits_BV: Tensor,
    settings: SamplingSettings,
    said_BV: Tensor,
    generators: Sequence[torch.Generator | None],
) -> Tensor:
    """One symbol for each row, which depends on that row alone.

    Args:
        logits_BV: -inf where a symbol is not allowed.
        settings: see SamplingSettings.
        said_BV: True for symbols that the repetition penalty applies to.
        generators: one a row, on the CPU; None uses torch's own.

    Returns:
        symbol_B, int64, on the CPU.
    """
    logits_BV = logits_BV.float().cpu()
    if settings.repetition != 1.0:
        penalised_BV = torch.where(
            logits_BV < 0, logits_BV * settings.repetition, logits_BV / settings.repetition
        )
        logits_BV = torch.where(said_BV, penalised_BV, logits_BV)
    if settings.temperature == 0:
        return logits_BV.argmax(dim=-1)
    num_kept = min(settings.top_k or logits_BV.shape[1], logits_BV.shape[1])
    logits_BV, symbol_BV = (logits_BV / settings.temperature).topk(num_kept)  # likeliest first
    probability_BV = logits_BV.softmax(dim=-1)
    before_BV = probability_BV.cumsum(dim=-1) - probability_BV  # mass of the likelier symbols
    probability_BV = torch.where(before_BV < settings.top_p, probability_BV, 0.0)
    place_B1 = torch.stack(
        [
            torch.multinomial(probability_V, 1, generator=generator)
            for probability_V, generator in zip(probability_BV, generators, strict=True)
        ]
    )
    return symbol_BV.gather(1, place_B1)[:, 0]
