"""The pre-LN transformer layer that the speech encoder, the mel decoder and the flow prenet share.

Source: Whisper (arXiv:2212.04356, section 2.2). Parameter names are those of its published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.init import start_silent
from omniaudio.past import Past, band
from omniaudio.sdpa import sdpa

Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "silu", "relu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}


def sinusoids(num_positions: int, width: int, max_timescale: float = 10000.0) -> Tensor:
    """Whisper's position embedding: sines in the first half of the width, cosines in the second.

    Returns:
        (num_positions, width) float32.
    """
    if width % 2:
        raise ValueError(f"width {width} of a sinusoidal position embedding must be even")
    scale = torch.log(torch.tensor(max_timescale)) / (width // 2 - 1)
    frequency = torch.exp(-scale * torch.arange(width // 2))
    angle = torch.arange(num_positions)[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def make_norm(kind: Norm, width: int, eps: float = 1e-5) -> nn.Module:
    """LayerNorm or RMSNorm over the last axis."""
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else nn.RMSNorm(width, eps=eps)


class SelfAttention(nn.Module):
    """Multi-head attention with q/k/v/out projections; k has no bias.

    Args:
        width: model width D, a multiple of ``num_heads``.
        causal: a position sees itself and earlier ones only.
    """

    def __init__(self, width: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.causal = causal
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, visible_B11T: Tensor | None = None, past: Past | None = None) -> Tensor:
        """Attend.

        Args:
            x_BTD: input.
            visible_B11T: True where a key may be seen; None sees all. Causal attention needs none: padding
                stands on the right, where no valid query looks.
            past: of a stream that ``x_BTD`` goes on with, for causal attention; extended.

        Returns:
            (B, T, D).
        """
        query, key, value = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        mask, is_causal = (None if self.causal else visible_B11T), self.causal
        if past is not None:
            key, value = past.keys_values(self, key, value)
            mask, is_causal = band(query.shape[1], key.shape[1], past.look_back, x_BTD.device), False
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        y = sdpa(q, k, v, mask, is_causal=is_causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def run_layers(
    layers: nn.ModuleList, x_BTD: Tensor, visible_B11T: Tensor | None = None, *, recompute: bool = False
) -> Tensor:
    """Layers one after the other.

    Args:
        layers: of TransformerLayer.
        x_BTD, visible_B11T: as in TransformerLayer.forward.
        recompute: keep only the input of every layer for the backward pass and compute the rest again: the
            memory of one layer instead of all, for a third more work (arXiv:1604.06174).
    """
    for layer in layers:
        if recompute and torch.is_grad_enabled():
            x_BTD = checkpoint(layer, x_BTD, visible_B11T, use_reentrant=False)
        else:
            x_BTD = layer(x_BTD, visible_B11T)
    return x_BTD


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual.

    Args:
        width: model width D.
        num_heads: heads of attention.
        ffn_width: width between fc1 and fc2.
        causal: see SelfAttention.
        norm: "layer" or "rms".
        activation: between fc1 and fc2.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        ffn_width: int,
        *,
        causal: bool = False,
        norm: Norm = "layer",
        norm_eps: float = 1e-5,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, num_heads, causal=causal)
        self.self_attn_layer_norm = make_norm(norm, width, norm_eps)
        self.activation = _ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.final_layer_norm = make_norm(norm, width, norm_eps)
        start_silent(self.self_attn.out_proj, self.fc2)

    def forward(self, x_BTD: Tensor, visible_B11T: Tensor | None = None, past: Past | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); ``visible_B11T`` and ``past`` as in SelfAttention."""
        x_BTD = x_BTD + self.self_attn(self.self_attn_layer_norm(x_BTD), visible_B11T, past)
        return x_BTD + self.fc2(self.activation(self.fc1(self.final_layer_norm(x_BTD))))
