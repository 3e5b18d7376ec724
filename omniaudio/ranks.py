"""Processes of a training, as whatever launched it has set them up."""

from __future__ import annotations

from torch import distributed


def num_ranks() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank_and_number() -> tuple[int, int]:
    """The number of this process from 0, and how many there are: (0, 1) where it is alone."""
    number = num_ranks()
    return (distributed.get_rank() if number > 1 else 0), number
