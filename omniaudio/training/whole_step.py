"""An optimizer step over all of its batches and ranks: what counts in it before it begins, what came of it after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed

from omniaudio.ranks import num_ranks


class WholeStep:
    """Makes the losses of a step (sum over its batches and ranks) / (count over its batches and ranks).

    Lightning divides the gradients of a step by the number of its batches, as if each held as much. So a batch's mean
    is given the weight of what it holds: its count / the step's, times the number of batches. Of one batch that is 1.

    Args:
        accumulate: batches of the step.
    """

    def __init__(self, accumulate: int) -> None:
        self.accumulate = accumulate
        self.num_batches = 0  # so far
        self.losses: dict[
            str, Tensor
        ] = {}  # what the batches so far have come to; of all of them, the step's
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}  # totals and counts of this rank's batches so far
        self._planned: dict[str, float] = {}  # counts of the whole step, on all ranks
        self._met: dict[str, float] = {}  # of the batches so far

    @property
    def complete(self) -> bool:
        """Whether the last batch has been weighed."""
        return self.num_batches == self.accumulate

    def plan(self, counts: Sequence[Mapping[str, float]], device: torch.device) -> None:
        """Take the counts of each of this rank's batches, of the same losses on every rank."""
        names = list(counts[0])
        total = torch.tensor([[part[name] for name in names] for part in counts], dtype=torch.float64).sum(0)
        total = total.to(device)
        if num_ranks() > 1:
            distributed.all_reduce(total)
        self._planned = dict(zip(names, total.tolist(), strict=True))

    def weighed(self, losses: Mapping[str, Tensor], counts: Mapping[str, float]) -> dict[str, Tensor]:
        """Means of the next batch with the weight of what it holds.

        Args:
            losses: means over all ranks.
            counts: what they are means of, over all ranks.
        """
        self.num_batches += 1
        if self.accumulate == 1:
            return dict(losses)
        self._met = {name: self._met.get(name, 0.0) + counts[name] for name in losses}
        assert not self.complete or self._met == self._planned, (self._met, self._planned)
        return {
            name: loss * (self.accumulate * counts[name] / max(1.0, self._planned[name]))
            for name, loss in losses.items()
        }

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add what came of a batch: losses that ``weighed`` has returned, and sums of them."""
        for name, loss in losses.items():
            part = loss.detach().float() / self.accumulate
            self.losses[name] = self.losses[name] + part if name in self.losses else part

    def add_sums(self, sums: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add totals and counts of a batch; it may have others than the one before."""
        for name, (total, count) in sums.items():
            before = self.sums.get(name, (0, 0))
            self.sums[name] = (before[0] + total, before[1] + count)


def over_ranks(sums: Mapping[str, tuple[Tensor, Tensor | float]]) -> dict[str, tuple[float, float]]:
    """Totals and counts of all ranks, which may know different ones; all of them ask. A count of 0 is left out."""
    parts = [{name: (float(total), float(count)) for name, (total, count) in sums.items()}]
    if num_ranks() > 1:
        parts = parts * num_ranks()
        distributed.all_gather_object(parts, parts[0])
    names = sorted({name for part in parts for name in part})
    known = {name: [part[name] for part in parts if name in part] for name in names}
    summed = {name: (sum(t for t, _ in found), sum(n for _, n in found)) for name, found in known.items()}
    return {name: (total, count) for name, (total, count) in summed.items() if count}
