"""Causal attention over packed documents without a dense mask.

Several documents lie in one row; a position sees earlier positions of its own document only. A dense mask
would compute every pair of the row, so attention runs document by document: the cost is the sum of squares
of the documents' lengths. The function is registered with transformers, whose layers call it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omniaudio.sdpa import sdpa

PACKED = "packed_documents"
"""Name under which transformers' layers find ``packed_attention``."""


def register() -> str:
    """Make the attention known to transformers; doing it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    return PACKED


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    doc_len: Sequence[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' layers call.

    Args:
        module: the calling layer (unused; part of the form).
        query: (1 or B, H, L, Dh).
        key, value: (1 or B, Hkv, L or past + L, Dh); Hkv divides H.
        attention_mask: must be None, documents say it all.
        scaling: factor of the scores; default Dh ** -0.5.
        dropout: share of attention weights dropped.
        doc_len: lengths of the documents, sum L; None is a single document whose earlier keys may come
            from a cache.

    Returns:
        (1 or B, L, H, Dh) and None for the weights.
    """
    assert attention_mask is None, "packed attention takes doc_len, not a mask"
    query = query.to(value.dtype)  # rotary embeddings may have widened them
    key = key.to(value.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if doc_len is None or len(doc_len) == 1:
        out = _one_document(query, key, value, scaling, dropout)
    else:
        lengths = list(doc_len)
        assert sum(lengths) == query.shape[2] == key.shape[2], (
            f"documents {lengths} in {query.shape[2]} positions"
        )
        parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        out = torch.cat([_one_document(q, k, v, scaling, dropout) for q, k, v in parts], dim=2)
    return out.transpose(1, 2).contiguous(), None


def _one_document(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    new, total = query.shape[2], key.shape[2]
    visible = None
    if 1 < new < total:  # some keys come from a cache: the causal diagonal starts at their number
        visible = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
    is_causal = new == total and new > 1
    return sdpa(query, key, value, visible, is_causal=is_causal, scale=scaling, dropout=dropout)
