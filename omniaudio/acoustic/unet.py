"""Velocity estimator of the flow: a U-Net without resampling, causal convolutions, chunked attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.acoustic.attention import attend
from omniaudio.errors import UserError
from omniaudio.init import start_silent
from omniaudio.past import Past


@dataclass(frozen=True)
class Chunks:
    """How attention cuts a mel: the first ``first`` frames, then every ``size`` frames."""

    first: int
    size: int

    def __post_init__(self) -> None:
        if self.first < 1 or self.size < 1:
            raise UserError(f"flow: chunks of {self.first} and {self.size} frames; at least 1 each")

    def ends(self, frame_T: Tensor) -> Tensor:
        """First frame after the chunk of each frame."""
        later_T = (frame_T - self.first).div(self.size, rounding_mode="floor") + 1
        return self.first + self.size * later_T.clamp(min=0)


def chunk_visible(valid_BT: Tensor, chunks: Chunks, look_back: int | None = None) -> Tensor:
    """What each frame may attend to: its own chunk and what is before it, never padding.

    Args:
        valid_BT: True at valid frames.
        chunks: where they lie.
        look_back: frames before its chunk that a frame sees; None: all.

    Returns:
        (B, 1, T, T), True where query (third axis) sees key (fourth axis).
    """
    frame_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    end_T = chunks.ends(frame_T)
    visible_TT = frame_T[None, :] < end_T[:, None]
    if look_back is not None:
        begin_T = torch.where(end_T > chunks.first, end_T - chunks.size, 0)
        visible_TT = visible_TT & (frame_T[None, :] >= begin_T[:, None] - look_back)
    return visible_TT[None, None] & valid_BT[:, None, None, :]


class CausalConv1d(nn.Conv1d):
    """Convolution that sees the present and the past."""

    def forward(self, x_BDT: Tensor, past: Past | None = None) -> Tensor:
        """(B, D, T) -> (B, D', T), going on from ``past``."""
        before = (self.kernel_size[0] - 1) * self.dilation[0]
        if past is not None:
            return super().forward(past.before(self, x_BDT, before))
        return super().forward(F.pad(x_BDT, (before, 0)))


class TimeEmbedding(nn.Module):
    """Flow time in [0, 1] to a vector: sinusoids of 1000 t, then an MLP."""

    def __init__(self, num_sinusoids: int, width: int) -> None:
        super().__init__()
        half = num_sinusoids // 2
        rates = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        self.rates: Tensor
        self.register_buffer("rates", rates, persistent=False)
        self.linear_1 = nn.Linear(num_sinusoids, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, time_B: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        angle = 1000.0 * time_B[:, None] * self.rates[None]
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.sin(), angle.cos()], dim=-1))))


class ConvBlock(nn.Module):
    """Causal convolution, LayerNorm over width, Mish."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(in_width, width, 3)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BDT: Tensor, valid_B1T: Tensor, past: Past | None = None) -> Tensor:
        """(B, D, T) -> (B, D', T), zero at padding."""
        normed = self.norm(self.conv(x_BDT * valid_B1T, past).transpose(1, 2)).transpose(1, 2)
        return F.mish(normed.contiguous()) * valid_B1T  # Mish is slow on strided tensors


class ResnetBlock(nn.Module):
    """Two ConvBlocks with the time added between them, and a linear shortcut."""

    def __init__(self, in_width: int, width: int, time_width: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(in_width, width)
        self.time_proj = nn.Linear(time_width, width)
        self.block2 = ConvBlock(width, width)
        self.shortcut = nn.Conv1d(in_width, width, 1)

    def forward(self, x_BDT: Tensor, valid_B1T: Tensor, time_BD: Tensor, past: Past | None = None) -> Tensor:
        """(B, D, T) -> (B, D', T)."""
        h_BDT = self.block1(x_BDT, valid_B1T, past) + self.time_proj(F.mish(time_BD))[..., None]
        return self.block2(h_BDT, valid_B1T, past) + self.shortcut(x_BDT * valid_B1T)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and GELU feed-forward."""

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_width
        self.attention_norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        start_silent(self.to_out, self.fc2)

    def forward(self, x_BTD: Tensor, visible_B1TT: Tensor, past: Past | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); a chunk that goes on from ``past`` sees all that it holds."""
        normed = self.attention_norm(x_BTD)
        query, key, value = self.to_q(normed), self.to_k(normed), self.to_v(normed)
        if past is not None:
            key, value = past.keys_values(self, key, value)
            visible_B1TT = visible_B1TT.new_ones(1, 1, query.shape[1], key.shape[1])
        x_BTD = x_BTD + self.to_out(attend(query, key, value, self.num_heads, visible_B1TT))
        return x_BTD + self.fc2(F.gelu(self.fc1(self.ffn_norm(x_BTD))))


class UNetStage(nn.Module):
    """A ResnetBlock, some TransformerBlocks."""

    def __init__(
        self,
        in_width: int,
        width: int,
        time_width: int,
        num_transformers: int,
        num_heads: int,
        head_width: int,
    ) -> None:
        super().__init__()
        self.resnet = ResnetBlock(in_width, width, time_width)
        self.transformers = nn.ModuleList(
            TransformerBlock(width, num_heads, head_width) for _ in range(num_transformers)
        )

    def forward(
        self,
        x_BDT: Tensor,
        valid_B1T: Tensor,
        visible_B1TT: Tensor,
        time_BD: Tensor,
        past: Past | None = None,
    ) -> Tensor:
        """(B, D, T) -> (B, D', T)."""
        x_BTD = rearrange(self.resnet(x_BDT, valid_B1T, time_BD, past), "b d t -> b t d").contiguous()
        for block in self.transformers:
            x_BTD = block(x_BTD, visible_B1TT, past)
        return rearrange(x_BTD, "b t d -> b d t")


class ConditionalUNet(nn.Module):
    """Velocity of a mel on its way from noise to speech (arXiv:2502.17239, section 2.1).

    Args:
        num_mels: M of the mel and of its condition.
        width: channels of all stages.
        num_mid_stages: stages between the one that gives and the one that takes the skip connection.
        num_transformers: transformer blocks a stage.
        num_heads, head_width: attention.
        time_width: width of the time embedding.
        chunk_frames: attention sees its own chunk of this many frames and what is before.
        look_back: frames before its chunk that attention sees; None, as published: all.
    """

    def __init__(
        self,
        num_mels: int,
        width: int,
        num_mid_stages: int,
        num_transformers: int,
        num_heads: int,
        head_width: int,
        time_width: int,
        chunk_frames: int = 100,
        look_back: int | None = None,
    ) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.chunk_frames = chunk_frames
        self.look_back = look_back
        sizes = (width, time_width, num_transformers, num_heads, head_width)
        self.time_embedding = TimeEmbedding(2 * num_mels, time_width)
        self.down = UNetStage(2 * num_mels, *sizes)
        self.down_conv = CausalConv1d(width, width, 3)
        self.mids = nn.ModuleList(UNetStage(width, *sizes) for _ in range(num_mid_stages))
        self.up = UNetStage(2 * width, *sizes)
        self.up_conv = CausalConv1d(width, width, 3)
        self.final_block = ConvBlock(width, width)
        self.final_proj = nn.Conv1d(width, num_mels, 1)
        start_silent(self.final_proj)

    def forward(
        self,
        x_BMT: Tensor,
        mu_BMT: Tensor,
        time_B: Tensor,
        valid_BT: Tensor,
        chunks: Chunks | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Velocity at one time.

        Args:
            x_BMT: mel on its way (B, M, T).
            mu_BMT: condition (B, M, T); zeros mean "no condition".
            time_B: flow time in [0, 1].
            valid_BT: True at valid frames.
            chunks: of the attention; None: of ``chunk_frames``.
            past: of a stream of which these frames are the next chunk; extended. All of them are valid.

        Returns:
            (B, M, T), zero at padding.
        """
        valid_B1T = valid_BT[:, None].to(x_BMT.dtype)
        if past is None:
            chunks = chunks or Chunks(self.chunk_frames, self.chunk_frames)
            visible = chunk_visible(valid_BT, chunks, self.look_back)
        else:
            visible = valid_BT.new_ones(1, 1, 1, 1)
        sight = (valid_B1T, visible, self.time_embedding(time_B), past)
        skip = self.down(torch.cat([x_BMT, mu_BMT], dim=1), *sight)
        h_BDT = self.down_conv(skip * valid_B1T, past)
        for mid in self.mids:
            h_BDT = mid(h_BDT, *sight)
        h_BDT = self.up(torch.cat([h_BDT, skip], dim=1), *sight)
        h_BDT = self.up_conv(h_BDT * valid_B1T, past)
        return self.final_proj(self.final_block(h_BDT, valid_B1T, past)) * valid_B1T
