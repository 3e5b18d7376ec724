"""Residual quantizers of the vector-quantize-pytorch library behind the interface of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.draws import Draws
from omniaudio.errors import UserError
from omniaudio.quantizers.base import book_stats, check_codebook_sizes, check_num_books, choose_passing
from omniaudio.types import QuantizerOutput


class VectorQuantizePytorch(nn.Module):
    """The library's residual quantizer, with plain straight-through gradients.

    Its defaults would rotate gradients and, without that, let every book add its own: both are switched off.
    Build it after the process group: it decides at construction whether its statistics are synchronised.

    Args:
        dim: width D of the vectors.
        codebook_sizes: codes of every book, first book first.
        decay: of the moving averages.
        kmeans_steps: iterations on the first batch; 0 starts from random codes.
        restart_below: codes whose average count is lower are replaced by inputs of the batch.
        gumbel_temperature: of sampled codes while training, in squared distance; 0 takes the nearest.
        book_dropout: drop the books from a random depth on, for whole batches, while training.
    """

    def __init__(
        self,
        dim: int,
        codebook_sizes: Sequence[int],
        decay: float = 0.99,
        kmeans_steps: int = 10,
        restart_below: float = 0.1,
        gumbel_temperature: float = 0.0,
        book_dropout: bool = False,
    ) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ as LibraryResidualVQ

        check_codebook_sizes(codebook_sizes)
        self.dim = dim
        self.codebook_sizes = tuple(codebook_sizes)
        self.library = LibraryResidualVQ(
            dim=dim,
            codebook_size=self.codebook_sizes,
            quantize_dropout=book_dropout,
            quant_grad_frac=1.0,
            rotation_trick=False,
            commitment_weight=0.0,
            decay=decay,
            kmeans_init=kmeans_steps > 0,
            kmeans_iters=kmeans_steps,
            threshold_ema_dead_code=restart_below,
            stochastic_sample_codes=gumbel_temperature > 0,
            sample_codebook_temp=gumbel_temperature,
        )

    def forward(
        self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0, draws: Draws | None = None
    ) -> QuantizerOutput:
        """As ResidualVQ.forward."""
        with torch.autocast(z_BSD.device.type, enabled=False):
            x_BSD = z_BSD.detach().float()
            quantized_BSD, codes_BSK, _ = self.library(x_BSD, mask=valid_BS)
        quantized_BSD = quantized_BSD.detach()
        codes_BSK = codes_BSK.masked_fill(~valid_BS[..., None], -1)
        error_BSD = (z_BSD.float() - quantized_BSD) * valid_BS[..., None]
        commit_loss = error_BSD.square().sum() / (valid_BS.sum().clamp(min=1) * self.dim)
        passes_B11 = choose_passing(len(z_BSD), bypass_share, z_BSD.device, draws or Draws.fresh())[
            :, None, None
        ]
        output_BSD = z_BSD + (quantized_BSD.to(z_BSD.dtype) - z_BSD).detach() * passes_B11
        return QuantizerOutput(
            quantized_BSD=output_BSD * valid_BS[..., None],
            codes_BSK=codes_BSK,
            commit_loss=commit_loss,
            stats=self._stats(x_BSD[valid_BS], codes_BSK[valid_BS]),
        )

    @torch.no_grad()
    def encode(self, z_BSD: Tensor, valid_BS: Tensor, num_books: int | None = None) -> Tensor:
        """As ResidualVQ.encode; call it in eval mode."""
        assert not self.training, "encode() of a quantizer in training mode would move its codes"
        with torch.autocast(z_BSD.device.type, enabled=False):
            _, codes_BSK, _ = self.library(z_BSD.float(), mask=valid_BS)
        return codes_BSK.masked_fill(~valid_BS[..., None], -1)[
            ..., : check_num_books(num_books, len(self.codebook_sizes))
        ]

    def decode(self, codes_BSK: Tensor) -> Tensor:
        """As ResidualVQ.decode."""
        missing = len(self.codebook_sizes) - check_num_books(codes_BSK.shape[-1], len(self.codebook_sizes))
        return self.library.get_output_from_indices(functional.pad(codes_BSK, (0, missing), value=-1))

    @torch.no_grad()
    def _stats(self, x_FD: Tensor, code_FK: Tensor) -> dict[str, Tensor]:
        entry_KFD = self.library.get_codes_from_indices(code_FK[None])[:, 0]
        return book_stats(x_FD, entry_KFD, code_FK, self.codebook_sizes)


class FiniteScalar(nn.Module):
    """The library's residual finite scalar quantizer (arXiv:2309.15505): books that need no learning.

    Args:
        dim: width D of the vectors.
        codebook_sizes: codes of every book; all the same, the product of ``levels``.
        levels: steps of every dimension of a book.
    """

    def __init__(self, dim: int, codebook_sizes: Sequence[int], levels: Sequence[int]) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualFSQ

        check_codebook_sizes(codebook_sizes)
        if set(codebook_sizes) != {math.prod(levels)}:
            raise UserError(
                f"books.codebook_sizes {list(codebook_sizes)}: with quantizer=fsq every book has the product of "
                f"quantizer.levels {list(levels)}, {math.prod(levels)} codes"
            )
        self.dim = dim
        self.codebook_sizes = tuple(codebook_sizes)
        self.library = ResidualFSQ(dim=dim, levels=list(levels), num_quantizers=len(self.codebook_sizes))

    def forward(
        self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0, draws: Draws | None = None
    ) -> QuantizerOutput:
        """As Quantizer; gradients reach ``z`` through the library's projections; there is nothing to commit to."""
        with torch.autocast(z_BSD.device.type, enabled=False):
            quantized_BSD, codes_BSK = self.library(z_BSD.float())
        code_FK = codes_BSK[valid_BS]
        with torch.no_grad():
            entry_KFC = self.library.get_codes_from_indices(code_FK[None])[:, 0]
            nothing_FC = torch.zeros_like(entry_KFC[0])
            entry_KFD = self.library.project_out(entry_KFC) - self.library.project_out(nothing_FC)
            entry_KFD[0] += self.library.project_out(nothing_FC)
            stats = book_stats(z_BSD[valid_BS].float(), entry_KFD, code_FK, self.codebook_sizes)
        passes_B11 = choose_passing(len(z_BSD), bypass_share, z_BSD.device, draws or Draws.fresh())[
            :, None, None
        ]
        output_BSD = torch.where(passes_B11, quantized_BSD.to(z_BSD.dtype), z_BSD)
        return QuantizerOutput(
            quantized_BSD=output_BSD * valid_BS[..., None],
            codes_BSK=codes_BSK.long().masked_fill(~valid_BS[..., None], -1),
            commit_loss=z_BSD.sum() * 0.0,
            stats=stats,
        )

    @torch.no_grad()
    def encode(self, z_BSD: Tensor, valid_BS: Tensor, num_books: int | None = None) -> Tensor:
        """As Quantizer."""
        with torch.autocast(z_BSD.device.type, enabled=False):
            _, codes_BSK = self.library(z_BSD.float())
        codes_BSK = codes_BSK.long().masked_fill(~valid_BS[..., None], -1)
        return codes_BSK[..., : check_num_books(num_books, len(self.codebook_sizes))]

    def decode(self, codes_BSK: Tensor) -> Tensor:
        """As Quantizer."""
        num_books = check_num_books(codes_BSK.shape[-1], len(self.codebook_sizes))
        entry_KBSC = self.library.get_codes_from_indices(
            functional.pad(codes_BSK, (0, len(self.codebook_sizes) - num_books), value=0)
        )
        entry_KBSC = entry_KBSC[:num_books] * (codes_BSK >= 0).permute(2, 0, 1)[..., None]
        decoded_BSD: Tensor = self.library.project_out(entry_KBSC.sum(0))
        return decoded_BSD * (codes_BSK[..., :1] >= 0)
