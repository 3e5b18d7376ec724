"""How the next symbol is drawn from logits."""

from __future__ import annotations

from collections.abc import Collection
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
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition <= 0:
            raise UserError(f"{self}: temperature and top_k are >= 0, top_p is in (0, 1], repetition > 0")


def draw(
    logits_V: Tensor, settings: SamplingSettings, said: Collection[int], generator: torch.Generator | None
) -> int:
    """One symbol.

    Args:
        logits_V: -inf where a symbol is not allowed.
        settings: see SamplingSettings.
        said: symbols that the repetition penalty applies to.
        generator: on the CPU; None uses torch's own.
    """
    logits_V = logits_V.float().cpu()
    if said and settings.repetition != 1.0:
        index = torch.tensor(sorted(set(said)))
        values = logits_V[index]
        penalised = torch.where(values < 0, values * settings.repetition, values / settings.repetition)
        logits_V = logits_V.index_copy(0, index, penalised)
    if settings.temperature == 0:
        return int(logits_V.argmax())
    logits_V, symbol_V = (logits_V / settings.temperature).sort(descending=True)
    probability_V = logits_V[: settings.top_k or None].softmax(0)
    before_V = probability_V.cumsum(0) - probability_V  # mass of the likelier symbols
    probability_V = torch.where(before_V < settings.top_p, probability_V, 0.0)
    return int(symbol_V[torch.multinomial(probability_V, 1, generator=generator)])
