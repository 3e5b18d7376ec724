"""Scaled dot-product attention in the precision that is fast where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Torch's attention; on CPUs in float32 inside, where the bfloat16 backward pass is up to three times slower.

    Args:
        query: (B, H, L, Dh).
        key, value: (B, H, L or longer, Dh).
        visible: True where a query sees a key, broadcastable to (B, H, L, keys); None sees all, or what
            ``is_causal`` lets it.
        scale: factor of the scores; default Dh ** -0.5.
        dropout: share of attention weights dropped.

    Returns:
        (B, H, L, Dh) in the query's dtype.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, visible, dropout, is_causal, scale=scale)
    with torch.autocast("cpu", enabled=False):
        q, k, v = query.float(), key.float(), value.float()
        return F.scaled_dot_product_attention(q, k, v, visible, dropout, is_causal, scale=scale).to(
            query.dtype
        )
