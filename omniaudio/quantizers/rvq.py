"""Residual vector quantizer: every book codes what the books before it left over.

Source: arXiv:2107.03312 section III.C for the residual form, arXiv:2502.17239 section 3.1 for its training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omniaudio.draws import Draws
from omniaudio.errors import check_choice
from omniaudio.quantizers.base import (
    check_codebook_sizes,
    check_num_books,
    decode_books,
    kept_books,
    passing_frames,
    places,
    scatter,
)
from omniaudio.quantizers.codebook import Codebook, CodebookTraining
from omniaudio.types import QuantizerOutput


class ResidualVQ(nn.Module):
    """Books in order; any number of leading ones decodes.

    Args:
        dim: width D of the vectors.
        codebook_sizes: codes of every book, first book first.
        decay, shrink, restart_after, gumbel_temperature, kmeans_steps: see CodebookTraining.
        book_dropout: share of items that, while training, keep only the books before a random depth; the
            first book is always kept.
        replacement: what ``bypass_share`` counts, "instance" (whole items, the paper's) or "token" (frames).
    """

    def __init__(
        self,
        dim: int,
        codebook_sizes: Sequence[int],
        decay: float = 0.99,
        shrink: float = 1e-4,
        restart_after: int | None = 50,
        gumbel_temperature: float = 0.0,
        kmeans_steps: int = 10,
        book_dropout: float = 0.25,
        replacement: str = "instance",
    ) -> None:
        super().__init__()
        check_codebook_sizes(codebook_sizes)
        self.dim = dim
        self.codebook_sizes = tuple(codebook_sizes)
        self.book_dropout = book_dropout
        self.replacement = check_choice("quantizer.replacement", replacement, ("instance", "token"))
        options = CodebookTraining(decay, shrink, restart_after, gumbel_temperature, kmeans_steps)
        self.books = nn.ModuleList(Codebook(dim, size, options) for size in self.codebook_sizes)

    def forward(
        self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0, draws: Draws | None = None
    ) -> QuantizerOutput:
        """Quantize; while training also learn the books from all valid frames.

        Args:
            z_BSD: vectors; distances are taken in float32 whatever their type.
            valid_BS: True at frames, False at padding.
            bypass_share: share of items (of frames, if ``replacement`` is "token") whose ``quantized`` is ``z``
                itself; their codes, what the books learn of them, and the commitment loss stay the same.
            draws: random numbers of the step; None draws them from torch's generator.

        Returns:
            QuantizerOutput; gradients of ``quantized`` pass straight through to ``z``. Books that an item
            dropped have code -1.
        """
        draws = draws or Draws.fresh()
        with torch.autocast(z_BSD.device.type, enabled=False):
            x_FD = z_BSD.detach()[valid_BS]
            keep_FK = kept_books(
                valid_BS, len(self.books), self.book_dropout if self.training else 0.0, draws
            )
            code_FK, total_FD, kept_FD, stats = self._quantize(x_FD, keep_FK, places(valid_BS), draws)
            # One loss on the sum of all books, dropped ones too.
            commit_loss = _mean_square(z_BSD[valid_BS].float() - total_FD)
            quantized_BSD = scatter(kept_FD.to(z_BSD.dtype), valid_BS)
        replaced_BS1 = passing_frames(valid_BS, bypass_share, self.replacement, draws)[..., None]
        quantized_BSD = z_BSD + (quantized_BSD - z_BSD).detach() * replaced_BS1
        codes_BSK = scatter(code_FK.masked_fill(~keep_FK, -1), valid_BS, fill=-1)
        return QuantizerOutput(
            quantized_BSD=quantized_BSD.masked_fill(~valid_BS[..., None], 0.0),
            codes_BSK=codes_BSK,
            commit_loss=commit_loss,
            stats=stats,
        )

    @torch.no_grad()
    def encode(self, z_BSD: Tensor, valid_BS: Tensor, num_books: int | None = None) -> Tensor:
        """Vectors to codes (B, S, num_books), the nearest code of every book; -1 at padding."""
        residual_FD = z_BSD[valid_BS]
        codes = []
        for book in self.books[: check_num_books(num_books, len(self.books))]:
            assert isinstance(book, Codebook)
            code_F = _nearest_fp32(book, residual_FD)
            residual_FD = (residual_FD.float() - book.entries(code_F)).to(residual_FD.dtype)
            codes.append(code_F)
        return scatter(torch.stack(codes, -1), valid_BS, fill=-1)

    def decode(self, codes_BSK: Tensor) -> Tensor:
        """Codes of the first K books (B, S, K), K at least 1, to vectors (B, S, D); code -1 adds nothing."""
        return decode_books(self.books, codes_BSK, self.dim)

    def _quantize(
        self, x_FD: Tensor, keep_FK: Tensor, place_F: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Codes, sum over all books, sum over the kept books, telemetry; both sums float32."""
        residual_FD = x_FD
        total_FD, kept_FD = (torch.zeros_like(x_FD, dtype=torch.float32) for _ in range(2))
        power = _power(x_FD.float() - x_FD.float().mean(0)).clamp(min=1e-12)
        # A step with a frame that is not finite is skipped; the averages have no such step to go back to, so that
        # frame is kept from them.
        finite_F = x_FD.isfinite().all(-1)
        learned = slice(None) if bool(finite_F.all()) else finite_F
        codes, stats = [], {}
        for depth, book in enumerate(self.books):
            assert isinstance(book, Codebook)
            target_FD = residual_FD.float()
            if self.training:
                book.start(target_FD[learned], place_F[learned])
            code_F = book.choose(target_FD, place_F, draws.child(f"book{depth}"))
            entry_FD = book.entries(code_F)
            total_FD += entry_FD
            kept_FD.addcmul_(entry_FD, keep_FK[:, depth, None].to(entry_FD.dtype))
            residual_FD = (target_FD - entry_FD).to(
                x_FD.dtype
            )  # of every book, dropped or not: all learn from all
            if self.training:
                restarts = book.learn(target_FD[learned], code_F[learned], place_F[learned])
                stats[f"restarts/book{depth}"] = restarts
            stats |= {f"{name}/book{depth}": value for name, value in book.stats(code_F).items()}
            error = _power(residual_FD.float())
            stats |= {f"error/book{depth}": error, f"explained/book{depth}": 1 - error / power}
            codes.append(code_F)
        return torch.stack(codes, -1), total_FD, kept_FD, stats


def _nearest_fp32(book: Codebook, x_FD: Tensor) -> Tensor:
    with torch.autocast(x_FD.device.type, enabled=False):
        return book.nearest(x_FD.float())


def _power(x_FD: Tensor) -> Tensor:
    """As ``_mean_square``, without a copy and without gradients."""
    return torch.linalg.vector_norm(x_FD).square() / max(1, x_FD.numel())


def _mean_square(x_FD: Tensor) -> Tensor:
    return x_FD.square().sum() / max(1, x_FD.numel())
