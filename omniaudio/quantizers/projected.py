"""Residual quantizer whose books live in a few dimensions and compare directions, not distances.

Source: factorised and normalised codes of arXiv:2110.04627, section 3.2, in the residual form of
arXiv:2306.06546, section 3.2. Here the codes move by moving averages, as in the other books of this package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.draws import Draws
from omniaudio.quantizers.base import (
    book_stats,
    check_codebook_sizes,
    check_num_books,
    choose_passing,
    decode_books,
    kept_books,
    places,
    scatter,
)
from omniaudio.quantizers.codebook import Codebook, CodebookTraining
from omniaudio.types import QuantizerOutput


class ProjectedBook(nn.Module):
    """One book: down to ``code_dim``, to the unit sphere, to the nearest code, and up again.

    Args:
        dim: width D of the vectors.
        code_dim: width C of the codes.
        size: number of codes.
        training_options: see CodebookTraining.
    """

    def __init__(self, dim: int, code_dim: int, size: int, training_options: CodebookTraining) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, code_dim)
        self.out_proj = nn.Linear(code_dim, dim)
        self.codebook = Codebook(code_dim, size, training_options)

    def down(self, x_FD: Tensor) -> Tensor:
        """Vectors to directions (F, C), float32."""
        return functional.normalize(self.in_proj(x_FD.to(self.in_proj.weight.dtype)).float(), dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (...) to what they stand for (..., D), float32; code -1 gives zeros."""
        return self._out(self._directions(codes)) * (codes >= 0)[..., None]

    def _out(self, direction_FC: Tensor) -> Tensor:
        return self.out_proj(direction_FC.to(self.out_proj.weight.dtype)).float()

    def _directions(self, code_F: Tensor) -> Tensor:
        return functional.normalize(self.codebook.lookup(code_F), dim=-1)

    def forward(self, x_FD: Tensor, place_F: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes (F,), vectors (F, D) with gradients to both projections, commitment, codes replaced."""
        direction_FC = self.down(x_FD)
        target_FC = direction_FC.detach()
        restarts = torch.zeros((), device=x_FD.device)
        if self.training:
            finite_F = target_FC.isfinite().all(-1)
            self.codebook.start(target_FC[finite_F], place_F[finite_F])
            self._to_sphere()
        code_F = self.codebook.choose(target_FC, place_F, draws)
        chosen_FC = self._directions(code_F)
        if self.training:
            restarts = self.codebook.learn(target_FC[finite_F], code_F[finite_F], place_F[finite_F])
            self._to_sphere()
        commit = (direction_FC - chosen_FC).square().sum() / max(1, direction_FC.numel())
        passed_FC = direction_FC + (chosen_FC - direction_FC).detach()
        return code_F, self._out(passed_FC), commit, restarts

    def _to_sphere(self) -> None:
        self.codebook.embed.copy_(functional.normalize(self.codebook.embed, dim=-1))


class ProjectedResidualVQ(nn.Module):
    """Books in order, each with projections of its own; any number of leading ones decodes.

    Args:
        dim: width D of the vectors.
        codebook_sizes: codes of every book, first book first.
        code_dim: width of the codes.
        decay, restart_after, gumbel_temperature, kmeans_steps: see CodebookTraining.
        book_dropout: as in ResidualVQ.
    """

    def __init__(
        self,
        dim: int,
        codebook_sizes: Sequence[int],
        code_dim: int = 8,
        decay: float = 0.99,
        restart_after: int | None = 50,
        gumbel_temperature: float = 0.0,
        kmeans_steps: int = 10,
        book_dropout: float = 0.25,
    ) -> None:
        super().__init__()
        check_codebook_sizes(codebook_sizes)
        self.dim = dim
        self.codebook_sizes = tuple(codebook_sizes)
        self.book_dropout = book_dropout
        options = CodebookTraining(decay, 0.0, restart_after, gumbel_temperature, kmeans_steps)
        self.books = nn.ModuleList(
            ProjectedBook(dim, code_dim, size, options) for size in self.codebook_sizes
        )

    def forward(
        self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0, draws: Draws | None = None
    ) -> QuantizerOutput:
        """As Quantizer; gradients reach ``z`` through the projections, not straight through."""
        with torch.autocast(z_BSD.device.type, enabled=False):
            return self._quantize(z_BSD, valid_BS, bypass_share, draws or Draws.fresh())

    def _quantize(
        self, z_BSD: Tensor, valid_BS: Tensor, bypass_share: float, draws: Draws
    ) -> QuantizerOutput:
        x_FD = z_BSD[valid_BS].float()
        dropout = self.book_dropout if self.training else 0.0
        keep_FK = kept_books(valid_BS, len(self.books), dropout, draws)
        residual_FD, kept_FD, place_F = x_FD, torch.zeros_like(x_FD), places(valid_BS)
        commit_loss = x_FD.new_zeros(())
        codes, entries, stats = [], [], {}
        for depth, book in enumerate(self.books):
            code_F, entry_FD, commit, restarts = book(residual_FD, place_F, draws.child(f"book{depth}"))
            residual_FD = residual_FD - entry_FD
            kept_FD = kept_FD + entry_FD * keep_FK[:, depth, None]
            commit_loss = commit_loss + commit / len(self.books)
            codes.append(code_F)
            entries.append(entry_FD.detach().float())
            if self.training:
                stats[f"restarts/book{depth}"] = restarts
        code_FK = torch.stack(codes, -1)
        stats |= book_stats(x_FD.detach(), torch.stack(entries), code_FK, self.codebook_sizes)
        for depth, book in enumerate(self.books):
            assert isinstance(book, ProjectedBook)
            used = book.codebook.stats(code_FK[:, depth])
            stats |= {f"{name}/book{depth}": value for name, value in used.items()}
        passes_B11 = choose_passing(len(z_BSD), bypass_share, z_BSD.device, draws)[:, None, None]
        quantized_BSD = torch.where(passes_B11, scatter(kept_FD.to(z_BSD.dtype), valid_BS), z_BSD)
        return QuantizerOutput(
            quantized_BSD=quantized_BSD * valid_BS[..., None],
            codes_BSK=scatter(code_FK.masked_fill(~keep_FK, -1), valid_BS, fill=-1),
            commit_loss=commit_loss,
            stats=stats,
        )

    @torch.no_grad()
    def encode(self, z_BSD: Tensor, valid_BS: Tensor, num_books: int | None = None) -> Tensor:
        """As Quantizer."""
        residual_FD, codes = z_BSD[valid_BS].float(), list[Tensor]()
        with torch.autocast(z_BSD.device.type, enabled=False):
            for book in self.books[: check_num_books(num_books, len(self.books))]:
                assert isinstance(book, ProjectedBook)
                code_F = book.codebook.nearest(book.down(residual_FD))
                residual_FD = residual_FD - book.lookup(code_F)
                codes.append(code_F)
        return scatter(torch.stack(codes, -1), valid_BS, fill=-1)

    def decode(self, codes_BSK: Tensor) -> Tensor:
        """As Quantizer."""
        return decode_books(self.books, codes_BSK, self.dim)
