"""Key-value caches of several documents as one batch that grows by a position of each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import Cache


class RowCache:
    """The pasts of the rows of a batch, which end together: shorter ones begin later, behind padding that nobody sees.

    Args:
        caches: of one document each, as ``CausalBackbone.step`` filled them. A single one is extended in place,
            several are copied.

    Attributes:
        lengths: positions of each row's past.
    """

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.lengths = [int(cache.get_seq_length()) for cache in caches]
        self.cache = caches[0] if len(caches) == 1 else _stacked(caches, max(self.lengths))

    def visible(self, device: torch.device) -> Tensor | None:
        """(B, 1, 1, past + 1) True at the past of a row and at its new position; None where no row has padding."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        first_B = torch.tensor([longest - length for length in self.lengths], device=device)
        return (torch.arange(longest + 1, device=device) >= first_B[:, None])[:, None, None]

    def grow(self) -> None:
        """Every row has one position more."""
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on; padding that they all have goes with the others."""
        self.lengths = [self.lengths[row] for row in rows]
        longest, kept = max(self.lengths), torch.tensor(rows)
        for layer in self.cache.layers:
            layer.keys = layer.keys[kept.to(layer.keys.device), :, -longest:]
            layer.values = layer.values[kept.to(layer.values.device), :, -longest:]


def _stacked(caches: Sequence[Cache], longest: int) -> Cache:
    """One cache with a row for each."""
    from transformers import DynamicCache

    def stack(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([functional.pad(part, (0, 0, longest - part.shape[2], 0)) for part in parts])

    stacked = DynamicCache()
    for i, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        stacked.update(stack([layer.keys for layer in layers]), stack([layer.values for layer in layers]), i)
    return stacked
