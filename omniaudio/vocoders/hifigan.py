"""HiFi-GAN generator: transposed convolutions and multi-receptive-field residual blocks (V1 to V3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.layers import (
    LEAK,
    FoldableVocoder,
    ResBlock1,
    ResBlock2,
    init_conv,
    maybe_weight_norm,
    steps_reached,
)


class HiFiGAN(FoldableVocoder):
    """Mel to waveform (arXiv:2010.05646).

    Args:
        mel_spec: the mel it reads; the product of ``upsample_rates`` is its hop.
        base_channels: channels before the first upsampling; each stage halves them.
        upsample_rates, upsample_kernels: of the transposed convolutions.
        resblock_kernels, resblock_dilations: one residual block for each, averaged.
        pairs: residual blocks of convolution pairs (V1, V2) instead of single convolutions (V3).
        weight_norm: False builds the folded form.
    """

    def __init__(
        self,
        mel_spec: MelSpec,
        base_channels: int,
        upsample_rates: Sequence[int],
        upsample_kernels: Sequence[int],
        resblock_kernels: Sequence[int],
        resblock_dilations: Sequence[Sequence[int]],
        pairs: bool,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        check_upsampling(mel_spec, upsample_rates, upsample_kernels)
        block = ResBlock1 if pairs else ResBlock2
        self.mel_spec = mel_spec
        self.num_blocks = len(resblock_kernels)
        self.conv_pre = maybe_weight_norm(
            nn.Conv1d(mel_spec.num_mels, base_channels, 7, padding=3), weight_norm
        )
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        channels = base_channels
        for rate, kernel in zip(upsample_rates, upsample_kernels, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            init_conv(up)
            self.ups.append(maybe_weight_norm(up, weight_norm))
            channels //= 2
            for res_kernel, dilations in zip(resblock_kernels, resblock_dilations, strict=True):
                self.resblocks.append(block(channels, res_kernel, dilations, weight_norm=weight_norm))
        conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        init_conv(conv_post)
        self.conv_post = maybe_weight_norm(conv_post, weight_norm)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Log-mel (B, M, T) to waveform (B, T * hop) in [-1, 1]."""
        x_BDN = self.conv_pre(mel_BMT)
        for stage, up in enumerate(self.ups):
            x_BDN = up(F.leaky_relu(x_BDN, LEAK))
            x_BDN = mean_of_blocks(self.resblocks, stage, self.num_blocks, x_BDN)
        return torch.tanh(self.conv_post(F.leaky_relu(x_BDN)).float()).squeeze(1)

    @property
    def reach_frames(self) -> tuple[int, int]:
        """Mel frames before and after its own that a sample depends on, at most."""
        reach, per_frame = float(steps_reached(self.conv_pre)), 1
        for stage, up in enumerate(self.ups):
            reach, per_frame = stage_reach(reach, per_frame, up, self.resblocks, stage, self.num_blocks)
        frames = math.ceil(reach + steps_reached(self.conv_post) / per_frame)
        return frames, frames


def stage_reach(
    reach: float, per_frame: int, up: nn.Module, blocks: nn.ModuleList, stage: int, num_blocks: int
) -> tuple[float, int]:
    """Reach in frames and steps a frame after one stage, from those before it."""
    assert isinstance(up, nn.ConvTranspose1d)
    reach += up.kernel_size[0] / up.stride[0] / per_frame
    per_frame *= up.stride[0]
    first = stage * num_blocks
    widest = max(steps_reached(block) for block in blocks[first : first + num_blocks])
    return reach + widest / per_frame, per_frame


def mean_of_blocks(blocks: nn.ModuleList, stage: int, num_blocks: int, x_BDN: Tensor) -> Tensor:
    """Average of the residual blocks of one stage."""
    first = stage * num_blocks
    total = blocks[first](x_BDN)
    for block in blocks[first + 1 : first + num_blocks]:
        total = total + block(x_BDN)
    return total / num_blocks


def check_upsampling(
    mel_spec: MelSpec, rates: Sequence[int], kernels: Sequence[int], head_hop: int = 1
) -> None:
    """Refuse rates that do not give a hop of samples a frame, and kernels that would change the length."""
    product = math.prod(rates) * head_hop
    if product != mel_spec.hop:
        raise UserError(
            f"vocoder.upsample_rates {list(rates)} give {product} samples a frame; "
            f"the mel's hop is {mel_spec.hop}"
        )
    for rate, kernel in zip(rates, kernels, strict=True):
        if kernel < rate or (kernel - rate) % 2:
            raise UserError(
                f"vocoder.upsample_kernels: {kernel} for rate {rate}; it must be at least the rate "
                "and differ from it by an even number"
            )
