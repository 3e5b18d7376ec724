"""What every quantizer is, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, distributed, nn

from omniaudio.errors import UserError
from omniaudio.types import QuantizerOutput

MAX_FRAMES = 1 << 20
"""More than an item has."""


class Quantizer(Protocol):
    """Vectors (B, S, dim) to codes of K books and back; interchangeable in a SpeechTokenizer by config."""

    dim: int
    codebook_sizes: tuple[int, ...]  # codes of every book; () is a continuous model

    def __call__(self, z_BSD: Tensor, valid_BS: Tensor, *, bypass_share: float = 0.0) -> QuantizerOutput:
        """Quantize with gradients; while training also learn the books from all valid frames.

        Args:
            z_BSD: vectors.
            valid_BS: True at frames, False at padding.
            bypass_share: share of items whose ``quantized`` is ``z`` itself (instance-level replacement);
                their codes, statistics and commitment loss are those of any other item.

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


def choose_passing(num_items: int, bypass_share: float, device: torch.device) -> Tensor:
    """(B,) True for items that pass through the quantizer; their expected share is 1 - bypass_share.

    The count is the share of the batch, its fraction rounded up or down at random.
    """
    if bypass_share <= 0:
        return torch.ones(num_items, dtype=torch.bool, device=device)
    order_B = torch.randperm(num_items, device=device)
    num_passing = num_items * (1 - bypass_share) + torch.rand((), device=device)
    return order_B + 1 <= num_passing


def check_replacement(replacement: str) -> str:
    """The kind of replacement, if it is one."""
    if replacement not in ("instance", "token"):
        raise UserError(f"quantizer.replacement {replacement!r}: can be instance, token")
    return replacement


def passing_frames(valid_BS: Tensor, bypass_share: float, replacement: str) -> Tensor:
    """(B, S) True where a frame passes through the quantizer: frames of chosen items, or chosen frames."""
    if replacement == "instance":
        return choose_passing(len(valid_BS), bypass_share, valid_BS.device)[:, None].expand_as(valid_BS)
    passes_BS = torch.zeros_like(valid_BS)
    passes_BS[valid_BS] = choose_passing(int(valid_BS.sum()), bypass_share, valid_BS.device)
    return passes_BS


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


def kept_books(valid_BS: Tensor, num_books: int, dropout: float) -> Tensor:
    """(F, K), True where the frame's item keeps the book.

    Args:
        valid_BS: True at frames.
        dropout: share of items that keep only the books before a random depth; the first is always kept.
    """
    num_items = len(valid_BS)
    depth_B = torch.full((num_items,), num_books, device=valid_BS.device)
    if dropout > 0 and num_books > 1:
        cut_B = torch.randint(1, num_books, (num_items,), device=valid_BS.device)
        drops_B = torch.rand(num_items, device=valid_BS.device) < dropout
        depth_B = torch.where(drops_B, cut_B, depth_B)
    keep_BK = torch.arange(num_books, device=valid_BS.device) < depth_B[:, None]
    return keep_BK[:, None].expand(-1, valid_BS.shape[1], -1)[valid_BS]


def scatter(value_FX: Tensor, valid_BS: Tensor, fill: int = 0) -> Tensor:
    """Rows of the valid frames back to their places (B, S, X)."""
    full = value_FX.new_full((*valid_BS.shape, value_FX.shape[-1]), fill)
    full[valid_BS] = value_FX
    return full


def places(valid_BS: Tensor) -> Tensor:
    """Number (F,) of every valid frame in the global batch, the same for any number of ranks.

    The items of a step are dealt to the ranks in turn (``data.planning.share_of``).
    """
    spread = distributed.is_available() and distributed.is_initialized()
    rank, num_ranks = (distributed.get_rank(), distributed.get_world_size()) if spread else (0, 1)
    item_B, frame_S = (torch.arange(size, device=valid_BS.device) for size in valid_BS.shape)
    return ((item_B[:, None] * num_ranks + rank) * MAX_FRAMES + frame_S)[valid_BS]
