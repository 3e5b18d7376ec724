"""Random numbers of a training step that do not depend on how its items are dealt to ranks.

Torch's generators give every rank numbers of its own, so that one process and two see other masks and other dropped
books. Here a number is a hash of the step's seed, its purpose, and the place of the item (or frame) in the global
batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omniaudio.ranks import rank_and_number

MAX_FRAMES = 1 << 20
"""More than an item has."""


@dataclass(frozen=True)
class Draws:
    """All random numbers of one step.

    Attributes:
        seed: the same on every rank, another in every step.
    """

    seed: int

    @classmethod
    def fresh(cls) -> Draws:
        """A seed of torch's generator: other numbers at every call, and on every rank whose generator differs."""
        return cls(int(torch.randint(2**62, ())))

    def child(self, name: str) -> Draws:
        """Other numbers for the same places."""
        return Draws(int.from_bytes(hashlib.sha256(f"{self.seed}|{name}".encode()).digest()[:8], "big") >> 1)

    def uniform(self, name: str, place: Tensor) -> Tensor:
        """Numbers in [0, 1), float32, one for each place (int64, any shape)."""
        return (mixed(place, self.child(name).seed) >> 39).float() / 2**24


def mixed(place: Tensor, seed: int) -> Tensor:
    """Hash of places, 0 to 2^63 - 1, in int64 that wraps; constants of splitmix64's finalizer (Steele et al., 2014)."""
    z = place + (seed % 2**31 + 1) * 0x9E3779B9
    z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
    return (z ^ (z >> 31)) & torch.iinfo(torch.int64).max


def item_places(num_items: int, device: torch.device) -> Tensor:
    """Number (B,) of this rank's items in the global batch: they are dealt in turn (``data.planning.share_of``).

    With accumulation, a batch is a micro-batch: the same number of them a step gives the same places.
    """
    rank, number = rank_and_number()
    return torch.arange(num_items, device=device) * number + rank


def frame_places(num_items: int, num_frames: int, device: torch.device) -> Tensor:
    """Number (B, T) of this rank's frames in the global batch."""
    frame_T = torch.arange(num_frames, device=device)
    return item_places(num_items, device)[:, None] * MAX_FRAMES + frame_T


def key_places(keys: Sequence[str], device: torch.device) -> Tensor:
    """Number (B,) of items by their keys: the same wherever an item stands, and whoever else is in its batch."""
    hashes = [hashlib.sha256(key.encode()).digest()[:8] for key in keys]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in hashes], device=device)


def choose_items(name: str, num_items: int, share: float, device: torch.device, draws: Draws) -> Tensor:
    """(B,) True for this rank's items of a share of the global batch: its fraction rounded up or down at random.

    Systematic sampling: every item has the same chance, neighbours are rarely chosen together.
    """
    place_B = item_places(num_items, device).double()
    start = draws.uniform(name, torch.zeros((), dtype=torch.int64, device=device))
    return ((place_B + 1) * share + start).floor() > (place_B * share + start).floor()
