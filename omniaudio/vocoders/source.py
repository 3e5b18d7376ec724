"""Harmonic source: sines at the multiples of F0 where speech is voiced, noise where it is not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.vocoders.layers import maybe_weight_norm

EVAL_SEED = 0


class F0Predictor(nn.Module):
    """Five convolutions from mel to F0 in Hz.

    Args:
        num_mels: M.
        width: channels.
        weight_norm: normalise weights.
    """

    def __init__(self, num_mels: int, width: int, weight_norm: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            maybe_weight_norm(nn.Conv1d(width if i else num_mels, width, 3, padding=1), weight_norm)
            for i in range(5)
        )
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """(B, M, T) -> F0 (B, T) in Hz, not negative."""
        x_BDT = mel_BMT
        for conv in self.convs:
            x_BDT = F.elu(conv(x_BDT))
        return rearrange(self.classifier(x_BDT.transpose(1, 2)), "b t 1 -> b t").abs()


class HarmonicSource(nn.Module):
    """Excitation from F0 (neural source-filter, arXiv:1904.12088).

    Args:
        sample_rate_hz: of the excitation.
        hop: samples a frame of F0.
        num_harmonics: above the fundamental.
        sine_amplitude, noise_std: of sines, and of the noise added to them where voiced.
        voiced_threshold_hz: F0 at or below it is unvoiced.
    """

    multiple: Tensor

    def __init__(
        self,
        sample_rate_hz: int,
        hop: int,
        num_harmonics: int,
        sine_amplitude: float,
        noise_std: float,
        voiced_threshold_hz: float,
    ) -> None:
        super().__init__()
        self.sample_rate_hz = sample_rate_hz
        self.hop = hop
        self.sine_amplitude = sine_amplitude
        self.noise_std = noise_std
        self.voiced_threshold_hz = voiced_threshold_hz
        self.register_buffer("multiple", torch.arange(1.0, num_harmonics + 2), persistent=False)
        self.mix = nn.Linear(num_harmonics + 1, 1)

    def forward(self, f0_BT: Tensor) -> Tensor:
        """F0 (B, T) in Hz to excitation (B, N = T * hop).

        Phases and noise are drawn from torch's global generator in training; in evaluation from a fixed
        seed, the same for all items, so that an item sounds alike alone and in a batch.
        """
        f0_BN = f0_BT.detach().float().repeat_interleave(self.hop, dim=1)
        phase_BH, noise_BNH = self._draw(f0_BN)
        turns_BNH = (f0_BN[..., None] * self.multiple).double().div(self.sample_rate_hz).cumsum(dim=1) % 1.0
        sines_BNH = self.sine_amplitude * torch.sin(2 * math.pi * turns_BNH.float() + phase_BH[:, None])
        voiced_BN1 = (f0_BN > self.voiced_threshold_hz).float()[..., None]
        noise_level = voiced_BN1 * self.noise_std + (1 - voiced_BN1) * self.sine_amplitude / 3
        return torch.tanh(self.mix(sines_BNH * voiced_BN1 + noise_level * noise_BNH)).squeeze(-1)

    def _draw(self, f0_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Starting phases (B or 1, H), that of the fundamental 0, and unit noise (B or 1, N, H)."""
        generator = None
        batch, device = f0_BN.shape[0], f0_BN.device
        if not self.training:
            generator, batch, device = torch.Generator().manual_seed(EVAL_SEED), 1, torch.device("cpu")
        num_sines = len(self.multiple)
        phase_BH = (torch.rand(batch, num_sines, generator=generator, device=device) * 2 - 1) * math.pi
        noise_BNH = torch.randn(batch, f0_BN.shape[1], num_sines, generator=generator, device=device)
        phase_BH[:, 0] = 0.0
        return phase_BH.to(f0_BN.device), noise_BNH.to(f0_BN.device)
