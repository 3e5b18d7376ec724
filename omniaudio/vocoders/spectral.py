"""Inverse STFT heads: magnitude and phase of every frame to samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MAX_MAGNITUDE = 100.0


class SameISTFT(nn.Module):
    """Inverse STFT that gives exactly hop samples a frame (arXiv:2306.00814, "same" padding).

    Args:
        n_fft: window and transform length; n_fft - hop is even.
        hop: samples a frame.
        center: instead the inverse of a centred STFT, as torch.istft: hop samples for every frame but one. Made of
            operations that other runtimes have.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, center: bool = False) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop
        self.trim = n_fft // 2 if center else (n_fft - hop) // 2
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, spec_BFT: Tensor) -> Tensor:
        """Complex spectrum (B, n_fft / 2 + 1, T) to samples (B, T * hop), centred (B, (T - 1) * hop)."""
        num_frames = spec_BFT.shape[2]
        frames = torch.fft.irfft(spec_BFT, self.n_fft, dim=1) * self.window[:, None]
        wave = self._overlap_add(frames)
        weight = self._overlap_add(self.window.square()[None, :, None].expand(1, -1, num_frames))
        return wave / weight.clamp(min=1e-8)

    def _overlap_add(self, frames_BWT: Tensor) -> Tensor:
        length = (frames_BWT.shape[2] - 1) * self.hop + self.n_fft
        folded = F.fold(frames_BWT, (1, length), (1, self.n_fft), stride=(1, self.hop))
        return rearrange(folded, "b 1 1 n -> b n")[:, self.trim : length - self.trim]


def polar(log_magnitude: Tensor, phase: Tensor) -> Tensor:
    """exp(log_magnitude), at most 100, at this phase, as a complex tensor."""
    # Limited before exp: the gradient of an exp that overflows is not a number.
    magnitude = log_magnitude.float().clamp(max=math.log(MAX_MAGNITUDE)).exp()
    return torch.complex(magnitude * phase.float().cos(), magnitude * phase.float().sin())
