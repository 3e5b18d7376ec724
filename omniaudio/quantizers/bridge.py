"""Convolutional bridge between encoder frames (50 Hz) and code frames (12.5 Hz).

Source: arXiv:2502.17239 section 3.1 and its released model.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ConvBridge(nn.Module):
    """Stacks ``downsample`` frames and adds a gated mixture of them; projects back after quantization.

    Args:
        width: encoder width.
        downsample: encoder frames of one code frame.
    """

    def __init__(self, width: int, downsample: int = 4) -> None:
        super().__init__()
        self.width = width
        self.downsample = downsample
        self.dim = downsample * width
        self.gate_proj = nn.Conv1d(width, self.dim, downsample, stride=downsample, bias=False)
        self.up_proj = nn.Conv1d(width, self.dim, downsample, stride=downsample, bias=False)
        self.down_proj = nn.Linear(self.dim, self.dim, bias=False)
        self.layer_norm = nn.LayerNorm(self.dim)
        self.proj_decoder = nn.Linear(self.dim, width)

    def down(self, hidden_BTD: Tensor, hidden_len_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states to vectors for the quantizer.

        Args:
            hidden_BTD: (B, T, width), zero beyond the valid frames.
            hidden_len_B: valid frames.

        Returns:
            z (B, ceil(T / downsample), dim) and its lengths hidden_len // downsample: an incomplete last
            group of frames gives no code.
        """
        missing = -hidden_BTD.shape[1] % self.downsample
        hidden_BTD = functional.pad(hidden_BTD, (0, 0, 0, missing))
        x_BDT = hidden_BTD.transpose(1, 2)
        mixed_BDS = functional.silu(self.gate_proj(x_BDT)) * self.up_proj(x_BDT)
        stacked_BSD = hidden_BTD.unflatten(1, (-1, self.downsample)).flatten(2)
        z_BSD = self.layer_norm(self.down_proj(mixed_BDS.transpose(1, 2)) + stacked_BSD)
        return z_BSD, hidden_len_B // self.downsample

    def up(self, quantized_BSD: Tensor) -> Tensor:
        """Quantized vectors (B, S, dim) to decoder input (B, S, width)."""
        return self.proj_decoder(quantized_BSD)
