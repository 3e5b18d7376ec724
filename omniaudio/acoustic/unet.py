"""Velocity estimator of the flow: a U-Net without resampling, causal convolutions, chunked attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.acoustic.attention import attend
from omniaudio.acoustic.estimator import Chunks, Estimator, TimeEmbedding
from omniaudio.acoustic.timbre import Timbre
from omniaudio.init import start_silent
from omniaudio.past import Past


class CausalConv1d(nn.Conv1d):
    """Convolution that sees the present and the past."""

    def forward(self, x_BDT: Tensor, past: Past | None = None) -> Tensor:
        """(B, D, T) -> (B, D', T), going on from ``past``."""
        before = (self.kernel_size[0] - 1) * self.dilation[0]
        if past is not None:
            return super().forward(past.before(self, x_BDT, before))
        return super().forward(F.pad(x_BDT, (before, 0)))


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

    def forward(self, x_BTD: Tensor, visible_B1TT: Tensor | None, past: Past | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), going on from ``past``; see ``Estimator.visible``."""
        # Under autocast what is added up is float32, and ZeRO's weights are not.
        x_BTD = x_BTD.to(self.attention_norm.weight.dtype)
        normed = self.attention_norm(x_BTD)
        query, key, value = self.to_q(normed), self.to_k(normed), self.to_v(normed)
        if past is not None:
            key, value = past.keys_values(self, key, value)
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
        visible_B1TT: Tensor | None,
        time_BD: Tensor,
        past: Past | None = None,
    ) -> Tensor:
        """(B, D, T) -> (B, D', T)."""
        x_BTD = rearrange(self.resnet(x_BDT, valid_B1T, time_BD, past), "b d t -> b t d").contiguous()
        for block in self.transformers:
            x_BTD = block(x_BTD, visible_B1TT, past)
        return rearrange(x_BTD, "b t d -> b d t")


class ConditionalUNet(Estimator):
    """The published estimator (arXiv:2502.17239, section 2.1).

    Args:
        num_mels, chunk_frames, look_back, timbre: see Estimator.
        width: channels of all stages.
        num_mid_stages: stages between the one that gives and the one that takes the skip connection.
        num_transformers: transformer blocks a stage.
        num_heads, head_width: attention.
        time_width: width of the time embedding.
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
        timbre: Timbre | None = None,
    ) -> None:
        super().__init__(num_mels, chunk_frames, look_back, timbre)
        sizes = (width, time_width, num_transformers, num_heads, head_width)
        self.time_embedding = TimeEmbedding(self.in_width, time_width)
        self.down = UNetStage(self.in_width, *sizes)
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
        condition_BCT: Tensor,
        time_B: Tensor,
        valid_BT: Tensor,
        chunks: Chunks | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """See Estimator."""
        valid_B1T = valid_BT[:, None].to(x_BMT.dtype)
        sight = (valid_B1T, self.visible(valid_BT, chunks, past), self.time_embedding(time_B), past)
        skip = self.down(torch.cat([x_BMT, condition_BCT], dim=1), *sight)
        h_BDT = self.down_conv(skip * valid_B1T, past)
        for mid in self.mids:
            h_BDT = mid(h_BDT, *sight)
        h_BDT = self.up(torch.cat([h_BDT, skip], dim=1), *sight)
        h_BDT = self.up_conv(h_BDT * valid_B1T, past)
        return self.final_proj(self.final_block(h_BDT, valid_B1T, past)) * valid_B1T
