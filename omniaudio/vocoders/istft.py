"""Frame-rate vocoder: a ConvNeXt backbone at the mel's rate, an inverse STFT at the end. Very cheap."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.spectral import SameISTFT, polar


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, two-layer MLP, layer scale (arXiv:2201.03545 in one dimension)."""

    def __init__(self, width: int, ffn_width: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        mixed = self.depthwise(x_BTD.transpose(1, 2)).transpose(1, 2)
        return x_BTD + self.scale * self.fc2(F.gelu(self.fc1(self.norm(mixed))))


class ISTFTVocoder(nn.Module):
    """Mel to waveform by magnitude and phase of every frame (arXiv:2306.00814).

    Args:
        mel_spec: the mel it reads; the head's hop is its hop.
        width, ffn_width: of the ConvNeXt blocks.
        num_layers: number of blocks.
        n_fft: window of the head.
        kernel: of the depthwise convolutions, odd.
    """

    def __init__(
        self, mel_spec: MelSpec, width: int, ffn_width: int, num_layers: int, n_fft: int, kernel: int = 7
    ) -> None:
        super().__init__()
        if n_fft < mel_spec.hop or (n_fft - mel_spec.hop) % 2:
            raise UserError(
                f"vocoder.n_fft {n_fft} must be at least the mel's hop {mel_spec.hop} "
                "and differ from it by an even number"
            )
        self.mel_spec = mel_spec
        self.embed = nn.Conv1d(mel_spec.num_mels, width, 7, padding=3)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(
            ConvNeXtBlock(width, ffn_width, kernel, 1 / num_layers) for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_fft + 2)
        self.istft = SameISTFT(n_fft, mel_spec.hop)
        self.apply(_init)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Log-mel (B, M, T) to waveform (B, T * hop) in [-1, 1]."""
        x_BTD = self.norm(self.embed(mel_BMT).transpose(1, 2))
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        log_magnitude, phase = self.head(self.final_norm(x_BTD)).transpose(1, 2).chunk(2, dim=1)
        return self.istft(polar(log_magnitude, phase)).clamp(-1.0, 1.0)

    def fold_weight_norm(self) -> dict[str, Any]:
        """Nothing to fold: it has no weight norm."""
        return {}


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
