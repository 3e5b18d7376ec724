"""Frame-rate vocoder: a ConvNeXt backbone at the mel's rate, an inverse STFT at the end. Very cheap."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.spectral import SameISTFT, polar


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, two-layer MLP, layer scale (arXiv:2201.03545 in one dimension)."""

    def __init__(self, width: int, ffn_width: int, kernel: int, scale: float, causal: bool = False) -> None:
        super().__init__()
        self.depthwise = _conv(width, width, kernel, causal, groups=width)
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
        causal: convolutions see no later frame, so that a sample waits for the window of the head only.
    """

    def __init__(
        self,
        mel_spec: MelSpec,
        width: int,
        ffn_width: int,
        num_layers: int,
        n_fft: int,
        kernel: int = 7,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if n_fft < mel_spec.hop or (n_fft - mel_spec.hop) % 2:
            raise UserError(
                f"vocoder.n_fft {n_fft} must be at least the mel's hop {mel_spec.hop} "
                "and differ from it by an even number"
            )
        self.mel_spec = mel_spec
        self.causal = causal
        self.embed = _conv(mel_spec.num_mels, width, 7, causal)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(
            ConvNeXtBlock(width, ffn_width, kernel, 1 / num_layers, causal) for _ in range(num_layers)
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

    @property
    def reach_frames(self) -> tuple[int, int]:
        """Mel frames before and after its own that a sample depends on, at most."""
        blocks = cast(list[ConvNeXtBlock], list(self.layers))
        convs = [self.embed, *(block.depthwise for block in blocks)]
        steps = sum((conv.kernel_size[0] - 1) // 2 for conv in convs)
        window = math.ceil((self.istft.n_fft - self.istft.hop) / 2 / self.istft.hop)
        return (2 * steps if self.causal else steps) + window, (0 if self.causal else steps) + window

    def fold_weight_norm(self) -> dict[str, Any]:
        """Nothing to fold: it has no weight norm."""
        return {}


class _LeftConv1d(nn.Conv1d):
    """Convolution that keeps the length and sees no later step."""

    def forward(self, x_BDT: Tensor) -> Tensor:
        return super().forward(F.pad(x_BDT, (self.kernel_size[0] - 1, 0)))


def _conv(in_width: int, width: int, kernel: int, causal: bool, groups: int = 1) -> nn.Conv1d:
    if causal:
        return _LeftConv1d(in_width, width, kernel, groups=groups)
    return nn.Conv1d(in_width, width, kernel, padding=kernel // 2, groups=groups)


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
