"""Which samples make up which step: a pure function of the seed and the index, the same for any number of ranks.

A step's plan is the global batch. Ranks and workers only execute their share of it, so a run may stop at any
step and go on with other ranks or workers: the same samples in the same order, none lost. None comes twice in an
epoch either, unless a step has fewer samples than there are ranks (``share_of``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from omniaudio.errors import UserError

Item = TypeVar("Item")


class PooledPlan:
    """Steps of similar-length items: shuffle, sort inside pools, cut by cost, shuffle the steps of a pool.

    Args:
        lengths: of every item, in any unit (seconds).
        budget: largest padded cost of a step, items x longest, in the same unit.
        seed: of all shuffles.
        pool: items that are sorted together; larger pads less and shuffles less.
        shuffle: False keeps the index's order (validation).

    Raises:
        UserError: an item alone exceeds the budget, or there are no items.
    """

    def __init__(
        self, lengths: Sequence[float], budget: float, seed: int, pool: int = 1024, shuffle: bool = True
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.budget, self.seed, self.pool, self.shuffle = budget, seed, pool, shuffle
        if not len(self.lengths):
            raise UserError("there are no samples to plan: the split is empty")
        if self.lengths.max() > budget:
            raise UserError(
                f"the longest sample ({self.lengths.max():.1f}) exceeds the budget of a step ({budget}); "
                "raise the batch or lower the crop"
            )
        self._steps: list[list[int]] = []
        self._next_epoch = 0

    def __getitem__(self, step: int) -> list[int]:
        """The global batch of a step, as item numbers; epochs follow one another without end."""
        while step >= len(self._steps):
            self._steps.extend(self.epoch(self._next_epoch))
            self._next_epoch += 1
        return self._steps[step]

    def epoch(self, epoch: int) -> list[list[int]]:
        """All steps of one epoch: every item once."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        steps: list[list[int]] = []
        for start in range(0, len(order), self.pool):
            pool = order[start : start + self.pool]
            pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
            cut = self._cut(pool)
            steps += [cut[i] for i in rng.permutation(len(cut))] if self.shuffle else cut
        return steps

    def _cut(self, pool: np.ndarray) -> list[list[int]]:
        """Greedy steps from items sorted by falling length: the first item of a step is its longest."""
        steps: list[list[int]] = []
        for item in pool.tolist():
            if steps and (len(steps[-1]) + 1) * self.lengths[steps[-1][0]] <= self.budget:
                steps[-1].append(item)
            else:
                steps.append([item])
        return steps


def share_of(items: Sequence[Item], part: int, num_parts: int) -> list[Item]:
    """One part's items of a global batch, dealt like cards so that parts cost alike.

    A part is a (micro-batch, rank) pair. Parts are never empty: with too few items the dealing starts
    again from the first item, which every rank does alike, so no collective waits for a missing batch.
    """
    if not items:
        raise UserError("a step of the plan has no samples")
    dealt = list(items[part::num_parts])
    return dealt or [items[part % len(items)]]
