"""Velocity estimator of the flow: a transformer that the time steers, in the place of the U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks, Estimator, TimeEmbedding
from omniaudio.acoustic.timbre import Timbre
from omniaudio.errors import UserError
from omniaudio.init import start_silent
from omniaudio.past import Past
from omniaudio.sdpa import sdpa

ROTARY_BASE = 10_000.0


class DiTBlock(nn.Module):
    """Attention and feed-forward whose scales, shifts and gates the time gives (arXiv:2212.09748, section 3.2)."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, time_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.modulation = nn.Linear(time_width, 6 * width)
        start_silent(self.modulation)  # gates of zero: the stack starts as the identity

    def forward(
        self,
        x_BTD: Tensor,
        time_BD: Tensor,
        rates_D: Tensor,
        visible_B1TT: Tensor | None,
        past: Past | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), going on from ``past``; ``rates_D`` are the angles from one rotary position to the
        next, and positions count from the first that is seen: only their differences matter."""
        steered = self.modulation(F.silu(time_BD))[:, None].chunk(6, dim=-1)
        shift, scale, gate = steered[:3]
        normed = self.attention_norm(x_BTD) * (1 + scale) + shift
        query, key, value = self.to_qkv(normed).chunk(3, dim=-1)
        if past is not None:
            key, value = past.keys_values(self, key, value)
        turns_TD = torch.arange(key.shape[1], device=key.device)[:, None] * rates_D
        query, key, value = (
            rearrange(x, "b t (h d) -> b h t d", h=self.num_heads) for x in (query, key, value)
        )
        mixed = sdpa(rotated(query, turns_TD[-query.shape[2] :]), rotated(key, turns_TD), value, visible_B1TT)
        x_BTD = x_BTD + gate * self.to_out(rearrange(mixed, "b h t d -> b t (h d)"))
        shift, scale, gate = steered[3:]
        normed = self.ffn_norm(x_BTD) * (1 + scale) + shift
        return x_BTD + gate * self.fc2(F.gelu(self.fc1(normed)))


def rotated(x: Tensor, turns_TD: Tensor) -> Tensor:
    """Halves of each head turned by the angles of its position (arXiv:2104.09864): (B, H, T, 2 D) -> the same."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = turns_TD.cos().to(x.dtype), turns_TD.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class ConditionalDiT(Estimator):
    """A transformer in the place of the U-Net.

    Args:
        num_mels, chunk_frames, look_back, timbre: see Estimator.
        width: D.
        num_layers: blocks.
        num_heads: of the attention; the width of a head is even.
        ffn_width: of the feed-forward.
        time_width: width of the time embedding.

    Raises:
        UserError: the width does not part into heads of even width.
    """

    rates: Tensor

    def __init__(
        self,
        num_mels: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        time_width: int,
        chunk_frames: int = 100,
        look_back: int | None = None,
        timbre: Timbre | None = None,
    ) -> None:
        super().__init__(num_mels, chunk_frames, look_back, timbre)
        if width % (2 * num_heads):
            raise UserError(f"dit.width {width} is not a multiple of twice dit.num_heads {num_heads}")
        half = width // num_heads // 2
        self.register_buffer("rates", ROTARY_BASE ** -(torch.arange(half) / half), persistent=False)
        self.time_embedding = TimeEmbedding(self.in_width, time_width)
        self.in_proj = nn.Linear(self.in_width, width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads, ffn_width, time_width) for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_modulation = nn.Linear(time_width, 2 * width)
        self.final_proj = nn.Linear(width, num_mels)
        start_silent(self.final_modulation, self.final_proj)

    def forward(
        self,
        x_BMT: Tensor,
        condition_BCT: Tensor,
        time_B: Tensor,
        valid_BT: Tensor,
        chunks: Chunks | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """See Estimator."""
        visible = self.visible(valid_BT, chunks, past)
        time_BD = self.time_embedding(time_B)
        h_BTD = self.in_proj(rearrange(torch.cat([x_BMT, condition_BCT], dim=1), "b m t -> b t m"))
        for block in self.blocks:
            h_BTD = block(h_BTD, time_BD, self.rates.float(), visible, past)
        shift, scale = self.final_modulation(F.silu(time_BD))[:, None].chunk(2, dim=-1)
        out_BTM = self.final_proj(self.final_norm(h_BTD) * (1 + scale) + shift)
        return rearrange(out_BTM, "b t m -> b m t") * valid_BT[:, None].to(out_BTM.dtype)
