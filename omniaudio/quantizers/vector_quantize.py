"""The residual quantizer of the vector-quantize-pytorch library behind the interface of ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.quantizers.rvq import check_codebook_sizes, check_num_books, choose_passing
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

    def forward(self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0) -> QuantizerOutput:
        """As ResidualVQ.forward."""
        with torch.autocast(z_BSD.device.type, enabled=False):
            x_BSD = z_BSD.detach().float()
            quantized_BSD, codes_BSK, _ = self.library(x_BSD, mask=valid_BS)
        quantized_BSD = quantized_BSD.detach()
        codes_BSK = codes_BSK.masked_fill(~valid_BS[..., None], -1)
        error_BSD = (z_BSD.float() - quantized_BSD) * valid_BS[..., None]
        commit_loss = error_BSD.square().sum() / (valid_BS.sum().clamp(min=1) * self.dim)
        passes_B11 = choose_passing(len(z_BSD), bypass_share, z_BSD.device)[:, None, None]
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
        power = (x_FD - x_FD.mean(0)).square().mean().clamp(min=1e-12)
        entry_KFD = self.library.get_codes_from_indices(code_FK[None])[:, 0]
        stats: dict[str, Tensor] = {}
        residual_FD = x_FD
        for depth, size in enumerate(self.codebook_sizes):
            residual_FD = residual_FD - entry_KFD[depth]
            count_V = torch.bincount(code_FK[:, depth].clamp(min=0), minlength=size).float()
            share_V = count_V / count_V.sum().clamp(min=1)
            error = residual_FD.square().mean()
            stats |= {
                f"usage/book{depth}": (count_V > 0).float().mean(),
                f"perplexity/book{depth}": (-torch.special.xlogy(share_V, share_V).sum()).exp(),
                f"error/book{depth}": error,
                f"explained/book{depth}": 1 - error / power,
            }
        return stats
