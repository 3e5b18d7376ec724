"""How much of its codebooks a tokenizer uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BookUse:
    """Use of one codebook on a set of recordings."""

    size: int
    num_frames: int  # codes counted
    usage: float  # share of the entries that occur at least once, 0..1
    perplexity: float  # exp of the entropy (nats) of the distribution of entries, 1..size


def book_use(codes: Iterable[Tensor], codebook_sizes: Sequence[int]) -> list[BookUse]:
    """Usage and perplexity of every codebook.

    Args:
        codes: (S, K) or (B, S, K) int64 tensors, -1 at padding.
        codebook_sizes: entries of each of the K books.
    """
    counts = [torch.zeros(size, dtype=torch.int64) for size in codebook_sizes]
    for item in codes:
        codes_FK = item.reshape(-1, len(codebook_sizes)).cpu()
        for book, count in enumerate(counts):
            codes_F = codes_FK[:, book]
            count += torch.bincount(codes_F[codes_F >= 0], minlength=len(count))
    return [_book_use(count) for count in counts]


def _book_use(count_V: Tensor) -> BookUse:
    total = int(count_V.sum())
    share_V = count_V[count_V > 0].double() / max(total, 1)
    entropy = float(-(share_V * share_V.log()).sum())
    return BookUse(
        size=len(count_V),
        num_frames=total,
        usage=float((count_V > 0).double().mean()),
        perplexity=math.exp(entropy),
    )
