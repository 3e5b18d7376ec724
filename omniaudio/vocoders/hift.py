"""HiFT generator: HiFi-GAN with a harmonic source and an inverse STFT at the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.hifigan import check_upsampling, mean_of_blocks, stage_reach
from omniaudio.vocoders.layers import (
    LEAK,
    FoldableVocoder,
    ResBlock1,
    Snake,
    init_conv,
    maybe_weight_norm,
    steps_reached,
)
from omniaudio.vocoders.source import F0Predictor, HarmonicSource
from omniaudio.vocoders.spectral import SameISTFT, polar

AUDIO_LIMIT = 0.99


class HiFT(FoldableVocoder):
    """Mel to F0 to harmonic excitation; mel and excitation to waveform (arXiv:2309.09493).

    Args:
        mel_spec: the mel it reads; product of ``upsample_rates`` times ``istft_hop`` is its hop.
        base_channels: channels before the first upsampling; each stage halves them.
        upsample_rates, upsample_kernels: of the transposed convolutions.
        resblock_kernels, resblock_dilations: Snake residual blocks, averaged in each stage.
        source_kernels: of the residual block on the excitation, one a stage.
        f0_width: channels of the F0 predictor.
        istft_n_fft, istft_hop: of the head.
        source: arguments of HarmonicSource but rate and hop.
        weight_norm: False builds the folded form.
    """

    window: Tensor

    def __init__(
        self,
        mel_spec: MelSpec,
        base_channels: int,
        upsample_rates: Sequence[int],
        upsample_kernels: Sequence[int],
        resblock_kernels: Sequence[int],
        resblock_dilations: Sequence[Sequence[int]],
        source_kernels: Sequence[int],
        f0_width: int,
        istft_n_fft: int,
        istft_hop: int,
        source: Mapping[str, float],
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        check_upsampling(mel_spec, upsample_rates, upsample_kernels, istft_hop)
        self.mel_spec = mel_spec
        self.n_fft, self.hop, self.num_blocks = istft_n_fft, istft_hop, len(resblock_kernels)
        self.register_buffer("window", torch.hann_window(istft_n_fft), persistent=False)
        self.istft = SameISTFT(istft_n_fft, istft_hop, center=True)
        self.f0_predictor = F0Predictor(mel_spec.num_mels, f0_width, weight_norm)
        self.source = HarmonicSource(mel_spec.sample_rate_hz, mel_spec.hop, **source)  # type: ignore[arg-type]
        self.conv_pre = maybe_weight_norm(
            nn.Conv1d(mel_spec.num_mels, base_channels, 7, padding=3), weight_norm
        )
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        strides = _source_strides(upsample_rates)
        for stage, (rate, kernel) in enumerate(zip(upsample_rates, upsample_kernels, strict=True)):
            wide, channels = base_channels >> stage, base_channels >> (stage + 1)
            up = nn.ConvTranspose1d(wide, channels, kernel, rate, padding=(kernel - rate) // 2)
            init_conv(up)
            self.ups.append(maybe_weight_norm(up, weight_norm))
            stride = strides[stage]
            self.source_downs.append(_source_down(istft_n_fft + 2, channels, stride))
            dilations = resblock_dilations[0]
            self.source_resblocks.append(
                ResBlock1(channels, source_kernels[stage], dilations, Snake, weight_norm)
            )
            for res_kernel, dilations in zip(resblock_kernels, resblock_dilations, strict=True):
                self.resblocks.append(ResBlock1(channels, res_kernel, dilations, Snake, weight_norm))
        conv_post = nn.Conv1d(channels, istft_n_fft + 2, 7, padding=3)
        init_conv(conv_post)
        self.conv_post = maybe_weight_norm(conv_post, weight_norm)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Log-mel (B, M, T) to waveform (B, T * hop) in [-0.99, 0.99]."""
        return self.filter(mel_BMT, self.source(self.f0_predictor(mel_BMT)))

    def filter(self, mel_BMT: Tensor, source_BN: Tensor) -> Tensor:
        """Log-mel (B, M, T) and excitation (B, T * hop) to waveform (B, T * hop)."""
        window = self.window
        spec = torch.stft(source_BN.float(), self.n_fft, self.hop, window=window, return_complex=True)
        excitation = torch.cat([spec.real, spec.imag], dim=1)
        x_BDN = self.conv_pre(mel_BMT)
        for stage, up in enumerate(self.ups):
            x_BDN = up(F.leaky_relu(x_BDN, LEAK))
            if stage == len(self.ups) - 1:
                x_BDN = F.pad(x_BDN, (1, 0), mode="reflect")  # the STFT has one frame more than N / hop
            x_BDN = x_BDN + self.source_resblocks[stage](self.source_downs[stage](excitation))
            x_BDN = mean_of_blocks(self.resblocks, stage, self.num_blocks, x_BDN)
        log_magnitude, angle = self.conv_post(F.leaky_relu(x_BDN)).chunk(2, dim=1)
        wav_BN = self.istft(polar(log_magnitude, angle.float().sin()))
        return wav_BN.clamp(-AUDIO_LIMIT, AUDIO_LIMIT)

    @property
    def reach_frames(self) -> tuple[int, int]:
        """Frames of mel and excitation before and after its own that a sample depends on, at most, in ``filter``."""
        hop, window = self.mel_spec.hop, self.n_fft / 2
        reach, per_frame = float(steps_reached(self.conv_pre)), 1
        for stage, up in enumerate(self.ups):
            reach, per_frame = stage_reach(reach, per_frame, up, self.resblocks, stage, self.num_blocks)
            down = self.source_downs[stage]
            assert isinstance(down, nn.Conv1d)
            excited = (window + down.kernel_size[0] * self.hop) / hop
            blocks = self.resblocks[stage * self.num_blocks : (stage + 1) * self.num_blocks]
            steps = steps_reached(self.source_resblocks[stage]) + max(map(steps_reached, blocks))
            reach = max(reach, excited + steps / per_frame)
        frames = math.ceil(reach + (steps_reached(self.conv_post) + 1) / per_frame + window / hop)
        return frames, frames


def _source_strides(upsample_rates: Sequence[int]) -> list[int]:
    """By how much the excitation's frames outnumber the steps after each stage."""
    later = list(itertools.accumulate(reversed(upsample_rates[1:]), lambda a, b: a * b, initial=1))
    return later[::-1]


def _source_down(in_channels: int, channels: int, stride: int) -> nn.Conv1d:
    if stride == 1:
        return nn.Conv1d(in_channels, channels, 1)
    return nn.Conv1d(in_channels, channels, 2 * stride, stride, padding=stride // 2)
