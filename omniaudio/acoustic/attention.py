"""Multi-head attention of the acoustic models."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from omniaudio.sdpa import sdpa


def attend(
    query_BTD: Tensor,
    key_BTD: Tensor,
    value_BTD: Tensor,
    num_heads: int,
    visible: Tensor | None,
    is_causal: bool = False,
) -> Tensor:
    """Multi-head scaled dot-product attention.

    Args:
        query_BTD, key_BTD, value_BTD: (B, T, heads x head width).
        visible: True where a query (third axis) sees a key, broadcastable to (B, H, T, T); None sees all, or what
            ``is_causal`` lets it.

    Returns:
        (B, T, heads x head width).
    """
    query, key, value = (
        rearrange(x, "b t (h d) -> b h t d", h=num_heads) for x in (query_BTD, key_BTD, value_BTD)
    )
    mixed = sdpa(query, key, value, visible, is_causal)
    return rearrange(mixed, "b h t d -> b t (h d)")
