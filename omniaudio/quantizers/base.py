"""What every quantizer is, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from omniaudio.draws import Draws, choose_items, frame_places, item_places
from omniaudio.errors import UserError
from omniaudio.types import QuantizerOutput


class Quantizer(Protocol):
    """Vectors (B, S, dim) to codes of K books and back; interchangeable in a SpeechTokenizer by config."""

    dim: int
    codebook_sizes: tuple[int, ...]  # codes of every book; () is a continuous model

    def __call__(
        self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0, draws: Draws | None = None
    ) -> QuantizerOutput:
        """Quantize with gradients; while training also learn the books from all valid frames.

        Args:
            z_BSD: vectors.
            valid_BS: True at frames, False at padding.
            bypass_share: share of items whose ``quantized`` is ``z`` itself (instance-level replacement);
                their codes, statistics and commitment loss are those of any other item.
            draws: random numbers of the step; None draws them from torch's generator.

        Returns:
            QuantizerOutput; books that an item dropped have code -1.
        """
        ...

    def encode(self, z_BSD: Tensor, valid_BS: Tensor, num_books: int | None = None) -> Tensor:
        """Vectors to codes (B, S, num_books) in eval mode; -1 at padding."""
        ...

    def decode(self, codes_BSK: Tensor) -> Tensor:
        """Codes of the first K books (B, S, K), K at least 1, to vectors (B, S, dim); code -1 adds nothing."""
        ...


class Book(Protocol):
    """One book of a residual quantizer."""

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (...) to what they stand for (..., D), float32; code -1 gives zeros."""
        ...


def decode_books(books: nn.ModuleList, codes_BSK: Tensor, dim: int) -> Tensor:
    """Sum (B, S, D) of what the codes of the first K books stand for; see Quantizer.decode."""
    num_books = check_num_books(codes_BSK.shape[-1], len(books))
    total_BSD = torch.zeros(*codes_BSK.shape[:-1], dim, device=codes_BSK.device)
    for book, code_BS in zip(books[:num_books], codes_BSK.unbind(-1), strict=True):
        total_BSD = total_BSD + cast(Book, book).lookup(code_BS)
    return total_BSD


def check_codebook_sizes(codebook_sizes: Sequence[int]) -> None:
    """At least one book, each of at least two codes."""
    if not codebook_sizes or min(codebook_sizes) < 2:
        raise UserError(
            f"books.codebook_sizes {list(codebook_sizes)}: give at least one book of 2 codes or more"
        )


def check_num_books(num_books: int | None, most: int) -> int:
    """Number of leading books to use; None means all."""
    if num_books is None:
        return most
    if not 1 <= num_books <= most:
        raise UserError(f"num_books {num_books}: 1 to {most} are allowed")
    return num_books


def choose_passing(num_items: int, bypass_share: float, device: torch.device, draws: Draws) -> Tensor:
    """(B,) True for items that pass through the quantizer; the share of each is 1 - bypass_share."""
    return choose_items("pass", num_items, 1 - bypass_share, device, draws)


def passing_frames(valid_BS: Tensor, bypass_share: float, replacement: str, draws: Draws) -> Tensor:
    """(B, S) True where a frame passes through the quantizer: frames of chosen items, or chosen frames."""
    if replacement == "instance":
        passes_B = choose_passing(len(valid_BS), bypass_share, valid_BS.device, draws)
        return passes_B[:, None].expand_as(valid_BS)
    return (
        draws.uniform("pass", frame_places(valid_BS.shape[0], valid_BS.shape[1], valid_BS.device))
        < 1 - bypass_share
    )


def book_stats(x_FD: Tensor, entry_KFD: Tensor, code_FK: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Telemetry of a batch: usage, perplexity, error and explained variance by book.

    Args:
        x_FD: what was quantized.
        entry_KFD: what every book added.
        code_FK: codes, -1 where a book was dropped.
        sizes: codes of every book.
    """
    if not len(x_FD):
        return {}
    power = (x_FD - x_FD.mean(0)).square().mean().clamp(min=1e-12)
    residual_FD = x_FD
    stats: dict[str, Tensor] = {}
    for depth, size in enumerate(sizes):
        residual_FD = residual_FD - entry_KFD[depth]
        code_F = code_FK[:, depth]
        count_V = torch.bincount(code_F[code_F >= 0], minlength=size).float()
        share_V = count_V / count_V.sum().clamp(min=1)
        error = residual_FD.square().mean()
        stats |= {
            f"usage/book{depth}": (count_V > 0).float().mean(),
            f"perplexity/book{depth}": (-torch.special.xlogy(share_V, share_V).sum()).exp(),
            f"error/book{depth}": error,
            f"explained/book{depth}": 1 - error / power,
        }
    return stats


def kept_books(valid_BS: Tensor, num_books: int, dropout: float, draws: Draws) -> Tensor:
    """(F, K), True where the frame's item keeps the book.

    Args:
        valid_BS: True at frames.
        dropout: share of items that keep only the books before a random depth; the first is always kept.
    """
    num_items = len(valid_BS)
    depth_B = torch.full((num_items,), num_books, device=valid_BS.device)
    if dropout > 0 and num_books > 1:
        place_B = item_places(num_items, valid_BS.device)
        cut_B = 1 + (draws.uniform("depth", place_B) * (num_books - 1)).long()
        depth_B = torch.where(draws.uniform("drop", place_B) < dropout, cut_B, depth_B)
    keep_BK = torch.arange(num_books, device=valid_BS.device) < depth_B[:, None]
    return keep_BK[:, None].expand(-1, valid_BS.shape[1], -1)[valid_BS]


def scatter(value_FX: Tensor, valid_BS: Tensor, fill: int = 0) -> Tensor:
    """Rows of the valid frames back to their places (B, S, X)."""
    full = value_FX.new_full((*valid_BS.shape, value_FX.shape[-1]), fill)
    full[valid_BS] = value_FX
    return full


def places(valid_BS: Tensor) -> Tensor:
    """Number (F,) of every valid frame in the global batch, the same for any number of ranks."""
    return frame_places(valid_BS.shape[0], valid_BS.shape[1], valid_BS.device)[valid_BS]
