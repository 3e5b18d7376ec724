"""Cross-entropy over large vocabularies that never holds the logits of all positions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.types import NO_LABEL, is_sharded

MAX_LOGITS = 2**24
"""Logits held at once, in elements."""


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden_LD: Tensor,
    label_L: Tensor,
    num_classes: int,
) -> Tensor:
    """Cross-entropy by position; logits are made only where there is a label, some rows at a time.

    With more than one chunk the logits are made again in the backward pass instead of kept. Where ZeRO 3 has sharded
    the head, every use of it is a collective: all ranks then make as many chunks, some of them empty.

    Args:
        head: hidden states (N, D) -> logits (N, num_classes).
        hidden_LD: hidden states.
        label_L: class, or NO_LABEL.
        num_classes: to choose the chunk.

    Returns:
        (L,) float32 in nats, 0 where there is no label.
    """
    rows_N = (label_L != NO_LABEL).nonzero()[:, 0]
    hidden_ND, label_N = hidden_LD[rows_N], label_L[rows_N]
    chunk = max(1, MAX_LOGITS // num_classes)
    num_chunks = -(-len(rows_N) // chunk)
    if isinstance(head, nn.Module) and is_sharded(head):
        most = torch.tensor(num_chunks, device=label_L.device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        num_chunks = int(most)
    if num_chunks <= 1:
        loss_N = _cross_entropy(head, hidden_ND, label_N)
    else:
        bounds = [min(i * chunk, len(rows_N)) for i in range(num_chunks + 1)]
        pairs = [(hidden_ND[start:end], label_N[start:end]) for start, end in pairwise(bounds)]
        losses = [checkpoint(_cross_entropy, head, h, label, use_reentrant=False) for h, label in pairs]
        loss_N = torch.cat(losses)
    return torch.zeros(len(label_L), dtype=loss_N.dtype, device=loss_N.device).index_put((rows_N,), loss_N)


def _cross_entropy(head: Callable[[Tensor], Tensor], hidden_ND: Tensor, label_N: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden_ND).float(), label_N, reduction="none")
