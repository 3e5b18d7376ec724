"""Attention of the acoustic models, in the precision that is fast where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend(
    query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, num_heads: int, visible: Tensor | None
) -> Tensor:
    """Multi-head scaled dot-product attention.

    On CPUs it runs in float32 inside: torch's bfloat16 backward pass is three times slower there.

    Args:
        query_BTD, key_BTD, value_BTD: (B, T, heads x head width).
        visible: True where a query (third axis) sees a key, broadcastable to (B, H, T, T); None is causal.

    Returns:
        (B, T, heads x head width).
    """
    on_cpu = query_BTD.device.type == "cpu"
    query, key, value = (
        rearrange(x.float() if on_cpu else x, "b t (h d) -> b h t d", h=num_heads)
        for x in (query_BTD, key_BTD, value_BTD)
    )
    with torch.autocast(
        query.device.type, enabled=not on_cpu and torch.is_autocast_enabled(query.device.type)
    ):
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None
        )
    return rearrange(mixed, "b h t d -> b t (h d)").to(query_BTD.dtype)
