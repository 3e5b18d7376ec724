"""Harmonic source: sines at the multiples of F0 where speech is voiced, noise where it is not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniaudio.vocoders.layers import maybe_weight_norm, steps_reached

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

    @property
    def reach_frames(self) -> int:
        """Frames on either side that an F0 depends on."""
        return steps_reached(self.convs)


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
        return self.excite(f0_BN, *self.draw(f0_BN))[0]

    def excite(
        self, f0_BN: Tensor, phase_BH: Tensor, noise_BNH: Tensor, turns_BH: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Excitation (B, N) for given draws.

        Args:
            f0_BN: F0 of every sample in Hz.
            phase_BH, noise_BNH: starting phases and unit noise.
            turns_BH: float64, of the sines so far; None at the beginning.

        Returns:
            the excitation, and the turns after it.
        """
        speed_BNH = (f0_BN[..., None] * self.multiple).double().div(self.sample_rate_hz)
        turns_BNH = speed_BNH.cumsum(dim=1)
        if turns_BH is not None:
            turns_BNH = turns_BNH + turns_BH[:, None]
        turns_BNH = turns_BNH % 1.0
        sines_BNH = self.sine_amplitude * torch.sin(2 * math.pi * turns_BNH.float() + phase_BH[:, None])
        voiced_BN1 = (f0_BN > self.voiced_threshold_hz).float()[..., None]
        noise_level = voiced_BN1 * self.noise_std + (1 - voiced_BN1) * self.sine_amplitude / 3
        wav_BN1 = torch.tanh(self.mix(sines_BNH * voiced_BN1 + noise_level * noise_BNH))
        return wav_BN1.squeeze(-1), turns_BNH[:, -1]

    def draw(self, f0_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Starting phases (B or 1, H), that of the fundamental 0, and unit noise (B or 1, N, H)."""
        (batch, num_samples), num_sines, device = f0_BN.shape, len(self.multiple), f0_BN.device
        if not self.training:
            draws = _EvalDraws(num_sines)
            return draws.phase_BH.to(device), draws.noise(num_samples).to(device)
        phase_BH = _phases(batch, num_sines, None, device)
        return phase_BH, torch.randn(batch, num_samples, num_sines, device=device)


class SourceStream:
    """The excitation that a HarmonicSource gives in evaluation, piece by piece: phases and noise run on."""

    def __init__(self, source: HarmonicSource) -> None:
        self.source = source
        self._draws = _EvalDraws(len(source.multiple))
        self._turns_BH: Tensor | None = None

    @torch.no_grad()
    def push(self, f0_BT: Tensor) -> Tensor:
        """The next F0 (1, T) in Hz to excitation (1, T * hop)."""
        if not f0_BT.shape[1]:
            return f0_BT
        f0_BN = f0_BT.float().repeat_interleave(self.source.hop, dim=1)
        draws = (self._draws.phase_BH.to(f0_BN.device), self._draws.noise(f0_BN.shape[1]).to(f0_BN.device))
        wav_BN, self._turns_BH = self.source.excite(f0_BN, *draws, self._turns_BH)
        return wav_BN


class _EvalDraws:
    """What is drawn in evaluation, on the CPU: starting phases (1, H), then noise, the same in pieces and at once.

    Torch makes normal numbers 16 at a time, and others of what is left over: multiples of 16 are drawn, the rest held.
    """

    def __init__(self, num_sines: int) -> None:
        self._generator, self._held = torch.Generator().manual_seed(EVAL_SEED), torch.zeros(0)
        self.phase_BH = _phases(1, num_sines, self._generator, torch.device("cpu"))

    def noise(self, num_samples: int) -> Tensor:
        """Unit noise of the next samples (1, N, H)."""
        num_sines = self.phase_BH.shape[1]
        blocks = math.ceil((num_samples * num_sines - len(self._held)) / 16)
        drawn = torch.cat([self._held, torch.randn(16 * blocks, generator=self._generator)])
        noise, self._held = drawn.tensor_split([num_samples * num_sines])
        return rearrange(noise, "(n h) -> 1 n h", h=num_sines)


def _phases(batch: int, num_sines: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Starting phases (B, H), that of the fundamental 0."""
    phase_BH = (torch.rand(batch, num_sines, generator=generator, device=device) * 2 - 1) * math.pi
    phase_BH[:, 0] = 0.0
    return phase_BH
