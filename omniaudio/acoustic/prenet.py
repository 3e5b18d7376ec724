"""Prenet: hidden states of the tokenizer's decoder to a first guess of the mel, the condition of the flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.acoustic.attention import attend
from omniaudio.errors import UserError
from omniaudio.init import start_silent
from omniaudio.past import Past, band


class CausalSelfAttention(nn.Module):
    """Multi-head attention to the present and ``look_back`` steps of the past (None: all); keys have no bias, no
    positions."""

    def __init__(self, width: int, num_heads: int, look_back: int | None = None) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(
                f"flow.prenet.width {width} is not a multiple of flow.prenet.num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.look_back = look_back
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, past: Past | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), going on from ``past``. Padding at the right is invisible to valid steps."""
        query, key, value = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if past is not None:
            key, value = past.keys_values(self, key, value)
        if past is None and self.look_back is None:
            return self.out_proj(attend(query, key, value, self.num_heads, None, is_causal=True))
        visible = band(query.shape[1], key.shape[1], self.look_back, x_BTD.device)
        return self.out_proj(attend(query, key, value, self.num_heads, visible))


class PrenetLayer(nn.Module):
    """Pre-norm transformer layer with RMSNorm and GELU."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, look_back: int | None = None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = CausalSelfAttention(width, num_heads, look_back)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        start_silent(self.attention.out_proj, self.fc2)

    def forward(self, x_BTD: Tensor, past: Past | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), past)
        return x_BTD + self.fc2(F.gelu(self.fc1(self.ffn_norm(x_BTD))))


class Prenet(nn.Module):
    """MLP and causal transformer from hidden states to mel (arXiv:2502.17239, section 2.1).

    Args:
        hidden_width: D of the incoming hidden states.
        mlp_width: width of the hidden layer of the input MLP.
        width, num_layers, num_heads, ffn_width: size of the transformer.
        num_mels: M of the mel that is guessed.
        look_back: mel frames of the past that each layer attends to; None, as published: all.
    """

    def __init__(
        self,
        hidden_width: int,
        mlp_width: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        num_mels: int,
        look_back: int | None = None,
    ) -> None:
        super().__init__()
        self.hidden_width = hidden_width
        self.num_mels = num_mels
        self.look_back = look_back
        self.in_mlp = nn.Sequential(
            nn.Linear(hidden_width, mlp_width), nn.SiLU(), nn.Linear(mlp_width, width)
        )
        self.layers = nn.ModuleList(
            PrenetLayer(width, num_heads, ffn_width, look_back) for _ in range(num_layers)
        )
        self.final_norm = nn.RMSNorm(width, eps=1e-6)
        self.out_proj = nn.Linear(width, num_mels, bias=False)

    def forward(self, hidden_BTD: Tensor, hidden_len_B: Tensor, mel_len_B: Tensor) -> Tensor:
        """Guess the mel.

        Args:
            hidden_BTD: hidden states (B, T', hidden_width).
            hidden_len_B: valid steps of each item.
            mel_len_B: mel frames wanted for each item; each item is stretched by its own ratio.

        Returns:
            (B, M, T) with T = max(mel_len_B), zero beyond mel_len_B.
        """
        mel_BTM = self.guess(stretch(hidden_BTD, hidden_len_B, mel_len_B))
        valid_BT = torch.arange(mel_BTM.shape[1], device=mel_BTM.device)[None] < mel_len_B[:, None]
        return rearrange(mel_BTM * valid_BT[..., None], "b t m -> b m t")

    def guess(self, hidden_BTD: Tensor, past: Past | None = None) -> Tensor:
        """Hidden states at the mel's rate (B, T, hidden_width) to the mel (B, T, M), going on from ``past``."""
        x_BTD = self.in_mlp(hidden_BTD)
        x_BTD = x_BTD.to(self.final_norm.weight.dtype)  # under autocast the sum of residuals stays float32
        for layer in self.layers:
            x_BTD = layer(x_BTD, past)
        mel_BTM: Tensor = self.out_proj(self.final_norm(x_BTD))
        return mel_BTM


def stretch(x_BTD: Tensor, from_len_B: Tensor, to_len_B: Tensor) -> Tensor:
    """Nearest-neighbour interpolation in time, each item from its own length to its own length.

    Args:
        x_BTD: (B, T', D).
        from_len_B, to_len_B: valid steps before and after.

    Returns:
        (B, max(to_len_B), D); steps beyond an item's length repeat its last one.
    """
    step_BT = torch.arange(int(to_len_B.max()), device=x_BTD.device)[None]
    source_BT = (step_BT * from_len_B[:, None]) // to_len_B[:, None].clamp(min=1)
    source_BT = torch.minimum(source_BT, (from_len_B[:, None] - 1).clamp(min=0))
    return x_BTD.gather(1, source_BT[..., None].expand(-1, -1, x_BTD.shape[2]))
