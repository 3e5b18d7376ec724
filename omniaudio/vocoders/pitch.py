"""F0 by autocorrelation: the target of a vocoder's F0 predictor. Fast, not a fine tracker."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_HZ, MAX_HZ = 60.0, 500.0
WINDOW_SEC = 0.05
VOICED = 0.55
"""Normalised autocorrelation above which a frame is voiced."""
SILENT = 1e-3
"""Root mean square below which a frame is unvoiced."""
OCTAVE_COST = 0.02
"""Taken from the autocorrelation for each octave below MAX_HZ: prefers the shortest of equal periods."""


class PitchTracker(nn.Module):
    """Peak of the window-normalised autocorrelation of every frame (after Boersma 1993).

    Args:
        sample_rate_hz: of the waveforms.
        hop: samples a frame; frame t is centred at (t + 1/2) hop.
    """

    window: Tensor
    lags: Tensor
    window_lags: Tensor
    cost: Tensor

    def __init__(self, sample_rate_hz: int, hop: int) -> None:
        super().__init__()
        self.sample_rate_hz, self.hop = sample_rate_hz, hop
        self.win = int(WINDOW_SEC * sample_rate_hz) // 2 * 2
        window = torch.hann_window(self.win)
        lags = torch.arange(int(sample_rate_hz / MAX_HZ), int(sample_rate_hz / MIN_HZ) + 1)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("lags", lags, persistent=False)
        self.register_buffer(
            "window_lags", self._autocorrelation(window)[lags].clamp(min=1e-3), persistent=False
        )
        self.register_buffer("cost", OCTAVE_COST * torch.log2(lags / lags[0]), persistent=False)

    @torch.no_grad()
    def forward(self, wav_BN: Tensor) -> Tensor:
        """Waveforms (B, N) to F0 (B, N // hop) in Hz, 0 where unvoiced."""
        side = (self.win - self.hop) // 2
        frames = nn.functional.pad(wav_BN.float(), (side, side)).unfold(1, self.win, self.hop)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        correlation = self._autocorrelation(frames * self.window)
        strength = correlation[..., self.lags] / self.window_lags
        _, best = (strength - self.cost).max(dim=-1)
        peak = strength.gather(-1, best[..., None])[..., 0]
        loud = frames.square().mean(dim=-1).sqrt() > SILENT
        return torch.where(loud & (peak > VOICED), self.sample_rate_hz / self.lags[best], 0.0)

    def _autocorrelation(self, x: Tensor) -> Tensor:
        """Along the last axis, 1 at lag 0."""
        power = torch.fft.rfft(x, 2 * self.win).abs().square()
        correlation = torch.fft.irfft(power)[..., : self.win]
        return correlation / correlation[..., :1].clamp(min=1e-9)
