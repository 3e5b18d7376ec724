"""Cross-entropy over large vocabularies that never holds the logits of all positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.types import NO_LABEL

MAX_LOGITS = 2**24
"""Logits held at once, in elements."""


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden_LD: Tensor, label_L: Tensor, num_classes: int
) -> Tensor:
    """Cross-entropy by position; logits are made only where there is a label, some rows at a time.

    With more than one chunk the logits are made again in the backward pass instead of kept.

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
    if len(rows_N) <= chunk:
        loss_N = _cross_entropy(head, hidden_ND, label_N)
    else:
        pairs = zip(hidden_ND.split(chunk), label_N.split(chunk), strict=True)
        losses = [checkpoint(_cross_entropy, head, h, label, use_reentrant=False) for h, label in pairs]
        loss_N = torch.cat(losses)
    return torch.zeros(len(label_L), dtype=loss_N.dtype, device=loss_N.device).index_put((rows_N,), loss_N)


def _cross_entropy(head: Callable[[Tensor], Tensor], hidden_ND: Tensor, label_N: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden_ND).float(), label_N, reduction="none")
