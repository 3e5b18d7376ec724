"""Discriminators of waveforms: by period (HiFi-GAN) and by spectrogram band at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.vocoders.layers import LEAK, maybe_weight_norm

Judgement = tuple[list[Tensor], list[list[Tensor]]]
"""One score map a sub-discriminator, and its feature maps."""

BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))

QUIET = 1e-3
"""Peak of a waveform below which the resolution discriminators do not hear it at full level: at the peak of silence
the gradient would grow without limit."""


class PeriodDiscriminator(nn.Module):
    """The waveform folded at one period, as an image of that width (arXiv:2010.05646)."""

    def __init__(self, period: int, width_factor: float) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(max(4, round(width * width_factor)) for width in (32, 128, 512, 1024, 1024))]
        self.convs = nn.ModuleList(
            maybe_weight_norm(
                nn.Conv2d(widths[i], widths[i + 1], (5, 1), (3 if i < 4 else 1, 1), padding=(2, 0)), True
            )
            for i in range(5)
        )
        self.conv_post = maybe_weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)), True)

    def forward(self, wav_BN: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, N) -> score map, feature maps."""
        missing = -wav_BN.shape[1] % self.period
        x = F.pad(wav_BN[:, None], (0, missing), mode="reflect")
        x = rearrange(x, "b 1 (n p) -> b 1 n p", p=self.period)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), LEAK)
            features.append(x)
        score = self.conv_post(x)
        return score, [*features, score]


class ResolutionDiscriminator(nn.Module):
    """The complex spectrogram in five bands (arXiv:2306.00814, after arXiv:2306.06546)."""

    def __init__(self, n_fft: int, width_factor: float) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.window: Tensor
        num_bins, width = n_fft // 2 + 1, max(4, round(32 * width_factor))
        self.bands = [(int(low * num_bins), int(high * num_bins)) for low, high in BANDS]
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.band_convs = nn.ModuleList(_band_stack(width) for _ in self.bands)
        self.conv_post = maybe_weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)), True)

    def forward(self, wav_BN: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, N) -> score map, feature maps."""
        spec = self.spectrogram(wav_BN)
        features, outs = [], []
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            x = spec[..., low:high]
            for depth, conv in enumerate(convs.children()):
                x = F.leaky_relu(conv(x), LEAK)
                if depth > 0:
                    features.append(x)
            outs.append(x)
        score = self.conv_post(torch.cat(outs, dim=-1))
        return score, [*features, score]

    def spectrogram(self, wav_BN: Tensor) -> Tensor:
        """Real and imaginary part (B, 2, frames, bins) of the waveform, its mean removed, its peak at 0.8.

        A waveform whose peak is below QUIET stays as much below 0.8.
        """
        wav_BN = wav_BN.float() - wav_BN.float().mean(dim=-1, keepdim=True)
        wav_BN = 0.8 * wav_BN / wav_BN.abs().amax(dim=-1, keepdim=True).clamp(min=QUIET)
        spec = torch.stft(wav_BN, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        return rearrange(torch.view_as_real(spec), "b f t c -> b c t f")


class WaveDiscriminator(nn.Module):
    """All period and resolution discriminators.

    Args:
        periods: of the period discriminators; may be empty.
        resolutions: n_fft of the resolution discriminators; may be empty.
        width_factor: scales the channels of all of them.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        resolutions: Sequence[int] = (2048, 1024, 512),
        width_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width_factor) for period in periods)
        self.resolutions = nn.ModuleList(
            ResolutionDiscriminator(n_fft, width_factor) for n_fft in resolutions
        )

    def forward(self, wav_BN: Tensor) -> Judgement:
        """Waveforms (B, N) in [-1, 1] to scores and features of every discriminator."""
        judged = [part(wav_BN) for part in (*self.periods, *self.resolutions)]
        return [score for score, _ in judged], [features for _, features in judged]


def _band_stack(width: int) -> nn.ModuleList:
    def conv(in_width: int, kernel: tuple[int, int], stride: int) -> nn.Module:
        padding = (kernel[0] // 2, kernel[1] // 2)
        return maybe_weight_norm(nn.Conv2d(in_width, width, kernel, (1, stride), padding=padding), True)

    return nn.ModuleList(
        [conv(2, (3, 9), 1), *(conv(width, (3, 9), 2) for _ in range(3)), conv(width, (3, 3), 1)]
    )
