"""Losses of generator against discriminators. Lists have one entry a discriminator; losses sum over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from omniaudio.ranks import num_ranks, rank_and_number


def generator_loss(scores_fake: list[Tensor]) -> Tensor:
    """Least squares: the discriminators should say 1 (arXiv:1611.04076)."""
    return torch.stack([(1 - fake.float()).square().mean() for fake in scores_fake]).sum()


def discriminator_loss(scores_real: list[Tensor], scores_fake: list[Tensor]) -> Tensor:
    """Least squares: 1 for real, 0 for generated."""
    terms = [
        (1 - real.float()).square().mean() + fake.float().square().mean()
        for real, fake in zip(scores_real, scores_fake, strict=True)
    ]
    return torch.stack(terms).sum()


def feature_matching_loss(features_real: list[list[Tensor]], features_fake: list[list[Tensor]]) -> Tensor:
    """L1 between feature maps, real ones without gradient, twice the sum over layers (arXiv:2010.05646)."""
    terms = [
        (real.detach().float() - fake.float()).abs().mean()
        for reals, fakes in zip(features_real, features_fake, strict=True)
        for real, fake in zip(reals, fakes, strict=True)
    ]
    return 2 * torch.stack(terms).sum()


def tpr_loss(scores_better: list[Tensor], scores_worse: list[Tensor], tau: float = 0.04) -> Tensor:
    """Truncated pointwise relativistic loss: where the worse beats the median (arXiv:2306.07842).

    Median, mean and limit are those of all processes' scores: each gets the value that one process would get for the
    whole batch, and the gradient of its own scores times the number of processes, over which DDP averages.

    Args:
        scores_better: real ones for the discriminators, generated ones for the generator.
        scores_worse: the other.
        tau: upper limit of each discriminator's term.
    """
    pairs = zip(scores_better, scores_worse, strict=True)
    distances = [(better.float() - worse.float()).flatten() for better, worse in pairs]
    if num_ranks() > 1:
        distances = _of_all_ranks(distances)
    terms = []
    for distance in distances:
        excess = distance - distance.median()
        below = excess < 0
        relative = (excess.square() * below).sum() / below.sum().clamp(min=1)
        terms.append(tau - torch.relu(tau - relative))
    loss = torch.stack(terms).sum()
    return loss + (num_ranks() - 1) * (loss - loss.detach())


def _of_all_ranks(own: list[Tensor]) -> list[Tensor]:
    """Each vector with those of the other processes around it; only this one's have a gradient.

    Processes may have other lengths, so these are asked for first: two exchanges for all vectors.
    """
    rank, number = rank_and_number()
    lengths = torch.tensor([len(vector) for vector in own], device=own[0].device)
    table = [torch.empty_like(lengths) for _ in range(number)]
    distributed.all_gather(table, lengths)
    sizes: list[list[int]] = torch.stack(table).tolist()
    most = max(map(sum, sizes))
    rows = [own[0].new_empty(most) for _ in range(number)]
    mine = torch.cat(own).detach()
    distributed.all_gather(rows, F.pad(mine, (0, most - len(mine))))
    found = [list(row[: sum(size)].split(size)) for row, size in zip(rows, sizes, strict=True)]
    found[rank] = own
    return [torch.cat(vectors) for vectors in zip(*found, strict=True)]
