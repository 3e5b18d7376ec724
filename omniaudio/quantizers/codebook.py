"""One book of a residual quantizer: Euclidean, learned by moving averages instead of gradients.

Source: van den Oord et al. (arXiv:1711.00937, appendix A.1) for the averages; restarts, Gumbel sampling and
the L2 shrink as in arXiv:2502.17239 section 3.1. F stands for the flattened valid frames of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from omniaudio.draws import Draws, mixed
from omniaudio.ranks import num_ranks

MIN_COUNT = 1e-12

SAMPLES_PER_CENTER, MIN_SAMPLES = 4, 4096
"""Samples of the first batch for each code made of them, and for a whole book at least, where there are so many."""

USED_WITHIN = 100
"""Steps of training that the reported usage looks back on."""


@dataclass(frozen=True)
class CodebookTraining:
    """How books learn.

    Args:
        decay: a of the moving averages of counts and sums.
        shrink: b; after every step a code is multiplied by 1 - b, so that only use keeps it large.
        restart_after: steps without use after which a code is replaced by an input of the batch; None never.
        gumbel_temperature: noise of the sampled codes, in units of the mean squared distance to the nearest
            code; 0 takes the nearest.
        kmeans_steps: iterations on the first batch; 0 takes samples of it as they are.
    """

    decay: float = 0.99
    shrink: float = 1e-4
    restart_after: int | None = 50
    gumbel_temperature: float = 0.0
    kmeans_steps: int = 10


class Codebook(nn.Module):
    """``size`` vectors of ``dim``. All buffers stay float32 whatever type the model is cast to.

    Args:
        dim: width of a code.
        size: number of codes.
        training_options: see CodebookTraining.

    ``unused_steps`` counts the steps since a code was last chosen; it is negative for a code that was replaced
    and not yet chosen.
    """

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    unused_steps: Tensor

    def __init__(self, dim: int, size: int, training_options: CodebookTraining) -> None:
        super().__init__()
        self.options = training_options
        self.size = size
        self.register_buffer("embed", torch.randn(size, dim))
        self.register_buffer("embed_avg", self.embed.clone())
        self.register_buffer("cluster_size", torch.zeros(size))  # all zero: not yet seen any data
        self.register_buffer("unused_steps", torch.zeros(size, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        """Follow the model's device but not its type: averages with decay 0.99 do not move in bfloat16."""

        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor if tensor.is_meta else tensor.new_empty(0))
            return moved.to(tensor.dtype) if tensor.is_meta else tensor.to(moved.device)

        super()._apply(keep_type, recurse)
        return self

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (...) to vectors (..., D), float32; code -1 gives zeros."""
        return functional.embedding(codes.clamp(min=0), self.embed) * (codes >= 0)[..., None]

    def entries(self, code_F: Tensor) -> Tensor:
        """Chosen codes (F,) to vectors (F, D), float32."""
        return functional.embedding(code_F, self.embed)

    def distances(self, x_FD: Tensor) -> Tensor:
        """Squared distances (F, V) of float32 inputs."""
        return _squared_distances(x_FD, self.embed)

    def nearest(self, x_FD: Tensor) -> Tensor:
        """Code (F,) of the smallest distance to every float32 input."""
        # The input's own square is the same for all codes.
        return torch.addmm(self.embed.square().sum(-1), x_FD, self.embed.t(), alpha=-2).argmin(-1)

    def choose(self, x_FD: Tensor, place_F: Tensor, draws: Draws) -> Tensor:
        """Code (F,) of every input: the nearest, or while training a sample around it.

        Args:
            x_FD: inputs of this rank.
            place_F: see ``start``.
            draws: of the samples.
        """
        if not self.training or self.options.gumbel_temperature == 0:
            return self.nearest(x_FD)
        distance_FV = self.distances(x_FD)
        least_F = distance_FV.min(-1).values
        finite_F = least_F.isfinite()  # one bad frame must not draw the codes of all others
        near = torch.stack([least_F.where(finite_F, 0.0).sum(), finite_F.sum().to(least_F.dtype)])
        if num_ranks() > 1:
            distributed.all_reduce(near)
        unit = near[0] / near[1].clamp(min=1) * self.options.gumbel_temperature
        place_FV = place_F[:, None] * self.size + torch.arange(self.size, device=place_F.device)
        uniform_FV = draws.uniform("code", place_FV)
        noise_FV = -(-(uniform_FV + 2**-25).log()).log()
        return (noise_FV - distance_FV / unit.clamp(min=MIN_COUNT)).argmax(-1)

    @torch.no_grad()
    def start(self, x_FD: Tensor, place_F: Tensor) -> None:
        """Take the first codes from the first batch, the same for any number of ranks; later calls do nothing.

        (Of one batch a step: with accumulation, ranks share other items out.)

        Args:
            x_FD: inputs of this rank.
            place_F: number of each input in the global batch, of which no other has the same.
        """
        if self.cluster_size.any():
            return
        wanted = max(MIN_SAMPLES, SAMPLES_PER_CENTER * self.size) if self.options.kmeans_steps else self.size
        samples_FD = agreed_rows(x_FD, place_F, wanted, 0)
        if not len(samples_FD):
            return
        embed_VD, count_V = self._first_codes(samples_FD)
        _from_first_rank(embed_VD, count_V)
        self.embed.copy_(embed_VD)
        self.cluster_size.copy_((1 - self.options.decay) * count_V.clamp(min=1))
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])

    def _first_codes(self, samples_FD: Tensor) -> tuple[Tensor, Tensor]:
        """First codes (V, D) and how many samples each stands for.

        A batch too small for the book gives fewer centers, or it would leave nothing for the next book;
        the other codes stand around them, as far off as the samples do.
        """
        num_centers = min(self.size, -(-len(samples_FD) // SAMPLES_PER_CENTER))
        center_CD, count_C = samples_FD[:num_centers], samples_FD.new_ones(num_centers)
        for _ in range(self.options.kmeans_steps):
            code_F = _squared_distances(samples_FD, center_CD).argmin(-1)
            count_C, sum_CD = _assigned(code_F, samples_FD, num_centers)
            center_CD = torch.where(count_C[:, None] > 0, sum_CD / count_C.clamp(min=1)[:, None], center_CD)
        distance_F = _squared_distances(samples_FD, center_CD).min(-1).values.clamp(min=0)
        spread = (distance_F.mean() / samples_FD.shape[-1]).sqrt()
        draws = torch.Generator().manual_seed(self.size)  # not the rank's: it would draw others
        parent_R = torch.randint(num_centers, (self.size - num_centers,), generator=draws)
        noise_RD = torch.randn(len(parent_R), samples_FD.shape[-1], generator=draws).to(samples_FD)
        other_RD = center_CD[parent_R.to(samples_FD.device)] + spread * noise_RD
        return torch.cat([center_CD, other_RD]), torch.cat([count_C, count_C.new_zeros(len(parent_R))])

    @torch.no_grad()
    def learn(self, x_FD: Tensor, code_F: Tensor, place_F: Tensor) -> Tensor:
        """One step of the moving averages and restarts, agreed by all ranks.

        Args:
            x_FD: inputs of this rank.
            code_F: the code that each has chosen.
            place_F: see ``start``.

        Returns:
            number of codes that were replaced (scalar).
        """
        options = self.options
        count_V, sum_VD = _assigned(code_F, x_FD, self.size)
        if num_ranks() > 1:
            distributed.all_reduce(count_V)
            distributed.all_reduce(sum_VD)
        self.cluster_size.lerp_(count_V, 1 - options.decay)
        self.embed_avg.lerp_(sum_VD, 1 - options.decay).mul_(1 - options.shrink)
        known_V1 = (self.cluster_size > MIN_COUNT)[:, None]  # averages of long unused codes run out of digits
        mean_VD = self.embed_avg / self.cluster_size.clamp(min=MIN_COUNT)[:, None]
        self.embed.copy_(torch.where(known_V1, mean_VD, self.embed * (1 - options.shrink)))
        self.unused_steps.add_(1).masked_fill_(count_V > 0, 0)
        if options.restart_after is None:
            return torch.zeros((), device=x_FD.device)
        return self._restart(x_FD, place_F, options.restart_after, count_V)

    def _restart(self, x_FD: Tensor, place_F: Tensor, after: int, count_V: Tensor) -> Tensor:
        stale_V = (self.unused_steps >= after) | (self.unused_steps == -1)
        stale_R = stale_V.nonzero()[:, 0]
        if len(stale_R):
            # Of numbers that all ranks have alike, and that differ from step to step.
            seed = int((count_V.long() * torch.arange(1, self.size + 1, device=count_V.device)).sum())
            rows_RD = agreed_rows(x_FD, place_F, len(stale_R), seed)
            stale_R = stale_R[: len(rows_RD)]
            seen_once = 1 - self.options.decay  # as if this input had been the code's only one, now
            self.embed[stale_R] = rows_RD
            self.embed_avg[stale_R] = rows_RD * seen_once
            self.cluster_size[stale_R] = seen_once
            self.unused_steps[stale_R] = -1 - after
        return torch.tensor(float(len(stale_R)), device=x_FD.device)

    @torch.no_grad()
    def stats(self, code_F: Tensor) -> dict[str, Tensor]:
        """Usage (share of codes in use) and perplexity: recent ones while training, of this batch in eval."""
        if self.training:
            weight_V = self.cluster_size
            used_V = (self.unused_steps >= 0) & (self.unused_steps < USED_WITHIN)
        else:
            weight_V = torch.bincount(code_F, minlength=self.size).float()
            used_V = weight_V > 0
        share_V = weight_V / weight_V.sum().clamp(min=MIN_COUNT)
        entropy = -torch.special.xlogy(share_V, share_V).sum()
        return {"usage": used_V.float().mean(), "perplexity": entropy.exp()}


def _squared_distances(x_FD: Tensor, code_VD: Tensor) -> Tensor:
    offset_FV = x_FD.square().sum(-1, keepdim=True) + code_VD.square().sum(-1)
    return torch.addmm(offset_FV, x_FD, code_VD.t(), alpha=-2)


def _assigned(code_F: Tensor, x_FD: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number (V,) and sum (V, D) of the inputs of every code."""
    count_V = torch.bincount(code_F, minlength=size).to(x_FD.dtype)
    sum_VD = x_FD.new_zeros(size, x_FD.shape[-1]).index_add_(0, code_F, x_FD)
    return count_V, sum_VD


def _from_first_rank(*tensors: Tensor) -> None:
    if num_ranks() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def agreed_rows(x_FD: Tensor, place_F: Tensor, count: int, seed: int) -> Tensor:
    """At most ``count`` random rows of all ranks' inputs, each at most once: the same for any number of ranks.

    Args:
        x_FD: inputs of this rank.
        place_F: int64, see ``Codebook.start``; the rows are drawn by a hash of place and seed.
        count, seed: the same on every rank.
    """
    key_F = mixed(place_F, seed)
    order_C = key_F.argsort()[:count]
    if num_ranks() == 1:
        return x_FD[order_C]
    last = torch.iinfo(torch.int64).max
    mine_C = torch.cat([key_F[order_C], key_F.new_full((count - len(order_C),), last)])
    keys = [torch.empty_like(mine_C) for _ in range(num_ranks())]
    distributed.all_gather(keys, mine_C)
    key_RC = torch.stack(keys)
    limit = key_RC.flatten().sort().values[count - 1]
    chosen_RC = (key_RC <= limit) & (key_RC < last)
    most = int(chosen_RC.sum(1).max())
    mine_CD = x_FD[order_C[chosen_RC[distributed.get_rank(), : len(order_C)]]]
    mine_CD = functional.pad(mine_CD, (0, 0, 0, most - len(mine_CD)))
    rows = [torch.empty_like(mine_CD) for _ in range(num_ranks())]
    distributed.all_gather(rows, mine_CD)
    rows_CD = torch.cat([row[: int(chosen_C.sum())] for row, chosen_C in zip(rows, chosen_RC, strict=True)])
    return rows_CD[key_RC[chosen_RC].argsort()]
