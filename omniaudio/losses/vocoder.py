"""Spectral losses of vocoders: L1 between log-mels of generated and true waveform, at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.frontend.mel import LogMel, MelSpec


class MultiScaleMelL1(nn.Module):
    """Mean L1 of log-mels, averaged over mel specs (one spec: arXiv:2010.05646; several: arXiv:2306.06546).

    Args:
        specs: at least one, all of one sample rate. What no spec covers is not trained: let one reach
            half the sample rate.
    """

    def __init__(self, specs: Sequence[MelSpec]) -> None:
        super().__init__()
        if len({spec.sample_rate_hz for spec in specs}) != 1:
            rates = [spec.sample_rate_hz for spec in specs]
            raise UserError(
                f"task.mel_loss_specs: sample_rate_hz {rates}; one rate and at least one spec are needed"
            )
        self.mels = nn.ModuleList(LogMel(spec) for spec in specs)

    def forward(self, wav_hat_BN: Tensor, wav_BN: Tensor) -> Tensor:
        """Waveforms (B, N) to a scalar; zero for equal waveforms."""
        num_samples_B = torch.full((len(wav_BN),), wav_BN.shape[1], device=wav_BN.device)
        terms = []
        for mel in self.mels:
            target, _ = mel(wav_BN, num_samples_B)
            generated, _ = mel(wav_hat_BN, num_samples_B)
            terms.append((generated - target).abs().mean())
        return torch.stack(terms).mean()
