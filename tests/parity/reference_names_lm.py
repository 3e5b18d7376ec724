"""Names of the published checkpoint (arXiv:2502.17239) -> ours, for the parity test of the audio LLM."""

from __future__ import annotations

import re

import torch
from torch import Tensor

RENAMED = [
    (r"^model\.embed_tokens\.", "backbone.embed_tokens."),
    (r"^model\.layers\.", "backbone.layers."),
    (r"^model\.norm\.", "backbone.norm."),
    (r"^lm_head\.", "backbone.lm_head."),
    (r"^model\.audio_embed_layers\.", "audio_embed."),
    (r"^audio_head\.transformer_layers\.", "audio_head.layers."),
    (r"\.self_attention\.in_proj_", ".attention.qkv."),
    (r"\.self_attention\.out_proj\.", ".attention.out."),
    (r"\.layernorm([12])\.", r".norm\1."),
    (r"^audio_head\.headnorm\.", "audio_head.norm."),
]
UNUSED = re.compile(r"^audio_head\.transformer_layers\.\d+\.linear[12]\.bias$")
"""Tensors that the reference holds and never reads."""


def from_reference(
    state: dict[str, Tensor], num_heads: int, num_kv_heads: int, head_dim: int
) -> dict[str, Tensor]:
    """A reference state dict under our names; W_pack is split into q, k, v."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if UNUSED.match(name):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".W_pack." in name:
            sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
            for part, piece in zip("qkv", torch.split(tensor, sizes), strict=True):
                ours[name.replace("W_pack", f"{part}_proj")] = piece
        else:
            ours[name] = tensor
    return ours
