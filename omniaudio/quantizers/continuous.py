"""No quantizer at all: the baseline that tells what quantization costs (arXiv:2502.17239, table 1, "no VQ")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omniaudio.draws import Draws
from omniaudio.errors import UserError
from omniaudio.types import QuantizerOutput


class Continuous(nn.Module):
    """Hands the vectors on. It has no books, so it makes no codes: K is 0 wherever codes are asked for.

    Args:
        dim: width D of the vectors.
    """

    codebook_sizes: tuple[int, ...] = ()

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(
        self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0, draws: Draws | None = None
    ) -> QuantizerOutput:
        """As Quantizer; nothing is lost and nothing is to be committed to."""
        return QuantizerOutput(
            quantized_BSD=z_BSD * valid_BS[..., None],
            codes_BSK=self.encode(z_BSD, valid_BS),
            commit_loss=z_BSD.sum() * 0.0,
        )

    def encode(self, z_BSD: Tensor, valid_BS: Tensor, num_books: int | None = None) -> Tensor:
        """As Quantizer: (B, S, 0)."""
        return torch.zeros(*valid_BS.shape, 0, dtype=torch.int64, device=z_BSD.device)

    def decode(self, codes_BSK: Tensor) -> Tensor:
        """There is nothing to decode."""
        raise UserError("quantizer=continuous has no codes to decode; use SpeechTokenizer.autoencode")
