"""Which samples make up which step: a pure function of the seed and the index, the same for any number of ranks.

A step's plan is the global batch. Ranks and workers only execute their share of it, so a run may stop at any
step and go on with other ranks or workers: the same samples in the same order, none lost. None comes twice in an
epoch either, unless a step has fewer samples than there are ranks (``share_of``).

Steps are planned a chapter at a time. What a chapter starts from is a few numbers; a checkpoint keeps them, so
that a run at step 40,000 goes on without planning the steps before. No list of all samples is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from omniaudio.errors import UserError
from omniaudio.fingerprint import digest

Item = TypeVar("Item")
State = dict[str, Any]
"""Where a chapter starts: numbers, texts, lists and dicts of them, fit for json."""

WINDOW = 1 << 16  # items that are shuffled together
BLOCK = 256  # neighbours that come into a window together
FEWEST_POOLED = 512
BINS = 8  # of an octave of lengths
CHUNK = 1 << 20  # items whose columns are read at one time


class ChapteredPlan(Generic[Item]):
    """``plan[step]`` -> items of the global batch; a subclass plans chapters.

    Args:
        identity: numbers that the plan follows from; a memo of a plan with others is not used. (That the data are the
            same is the stage's to know: it hashes its inputs.)
    """

    most_empty: int = 0  # chapters without a step that may follow each other

    def __init__(self, identity: Any) -> None:
        self.identity = digest(identity)
        self._start: int = 0  # first step of the chapter at hand
        self._steps: list[list[Item]] = []
        self._state: State = self.first_state()  # where it started from
        self._after: State = self._state  # where the next one does

    def first_state(self) -> State:
        """The state that the first chapter starts from."""
        raise NotImplementedError

    def chapter(self, state: State) -> tuple[list[list[Item]], State]:
        """The steps of the chapter that starts from ``state``, and the state that the next one starts from."""
        raise NotImplementedError

    def told(self, state: State) -> dict[str, float]:
        """Numbers of the plan up to a chapter that belong into the log."""
        return {}

    def __getitem__(self, step: int) -> list[Item]:
        """The global batch of a step; epochs follow one another without end. Going back plans from the beginning."""
        if step < self._start:
            self._begin(0, self.first_state())
        empty = 0
        while step >= self._start + len(self._steps):
            self._start, self._state = self._start + len(self._steps), self._after
            self._steps, self._after = self.chapter(self._state)
            empty = 0 if self._steps else empty + 1
            if empty > self.most_empty:
                raise UserError("there are no samples to plan: an epoch has none with a length")
        return self._steps[step - self._start]

    def memo(self, step: int) -> dict[str, Any]:
        """What ``recall`` needs to go on from ``step`` without planning the steps before it."""
        self[step]
        return {
            "plan": self.identity,
            "step": self._start,
            "state": self._state,
            "told": self.told(self._state),
        }

    def planned(self) -> dict[str, float]:
        """Numbers of the plan up to the end of the chapter at hand."""
        return self.told(self._after)

    def recall(self, memo: Mapping[str, Any]) -> bool:
        """Go on from a memo; False, and nothing happens, if it is one of another plan."""
        if memo.get("plan") != self.identity:
            return False
        self._begin(int(memo["step"]), dict(memo["state"]))
        return True

    def _begin(self, start: int, state: State) -> None:
        """The next chapter to plan is the one at ``start``."""
        self._start, self._steps, self._state, self._after = start, [], state, state


def largest_first(steps: list[list[Item]], size: Callable[[list[Item]], Any]) -> None:
    """Let the largest step change places with the first: too little memory shows early without a rehearsal too."""
    if steps:
        i = max(range(len(steps)), key=lambda i: size(steps[i]))
        steps[0], steps[i] = steps[i], steps[0]


class ShuffledWindows:
    """A random order of ``num_items``, window by window: blocks of neighbours from all over, shuffled together.

    Neighbours lie in one shard, so a window touches few files, and clips of one recording meet. A corpus that fits
    into one window is shuffled as a whole.

    Args:
        num_items: of an epoch.
        seed: of the order.
        shuffle: False keeps the order.
    """

    def __init__(
        self, num_items: int, seed: int, shuffle: bool = True, window: int = WINDOW, block: int = BLOCK
    ) -> None:
        self.num_items, self.seed, self.shuffle, self.block = num_items, seed, shuffle, block
        self.num_blocks = -(-num_items // block)
        self.num_windows = max(1, -(-num_items // window))
        self._blocks: tuple[int, np.ndarray] | None = None  # order of an epoch

    def __getitem__(self, number: int) -> np.ndarray:
        """Items of a window; windows are counted on from epoch to epoch."""
        epoch, place = divmod(number, self.num_windows)
        begin, end = (self.num_blocks * (place + i) // self.num_windows for i in (0, 1))
        if not self.shuffle:
            return np.arange(begin * self.block, min(end * self.block, self.num_items))
        blocks = self._order(epoch)[begin:end].astype(np.int64)
        items = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
        return np.random.default_rng([self.seed, epoch, place]).permutation(items[items < self.num_items])

    def _order(self, epoch: int) -> np.ndarray:
        if self._blocks is None or self._blocks[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(np.uint32(self.num_blocks))
            self._blocks = epoch, order.astype(np.uint32)
        return self._blocks[1]


class Lengths(Protocol):
    """Lengths of items in any unit; NaN leaves an item out. An array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, items: Any) -> Any: ...


class PooledPlan(ChapteredPlan[int]):
    """Steps of similar-length items: shuffle, sort inside pools, cut by cost, shuffle the steps of a window. The very
    first step is the largest of its window.

    Args:
        lengths: of every item, in any unit (seconds).
        budget: largest padded cost of a step, items x longest, in the same unit.
        seed: of all shuffles.
        pool: items that are sorted together; larger pads less and shuffles less. A small window has four pools.
        shuffle: False keeps the index's order (validation).
        groups: items -> name of each one's group (its corpus), whose shares are logged.

    Raises:
        UserError: an item alone exceeds the budget, or there are no items.
    """

    def __init__(
        self,
        lengths: Lengths | Sequence[float],
        budget: float,
        seed: int,
        pool: int = 4096,
        shuffle: bool = True,
        groups: Callable[[np.ndarray], Sequence[str]] | None = None,
    ) -> None:
        self.groups = groups
        self.lengths: Any = (
            np.asarray(lengths, dtype=np.float64) if isinstance(lengths, Sequence) else lengths
        )
        self.budget, self.seed, self.pool, self.shuffle = budget, seed, pool, shuffle
        if not len(self.lengths):
            raise UserError("there are no samples to plan: the split is empty")
        self.windows = ShuffledWindows(len(self.lengths), seed, shuffle)
        self.most_empty = self.windows.num_windows
        super().__init__(["pooled", len(self.lengths), budget, seed, pool, shuffle])

    def first_state(self) -> State:
        return {"window": 0, "amounts": {}}

    def told(self, state: State) -> dict[str, float]:
        """Share of each group in what was planned, in the unit of the lengths."""
        total = sum(state.get("amounts", {}).values())
        return {f"share/{name}": amount / total for name, amount in sorted(state.get("amounts", {}).items())}

    def chapter(self, state: State) -> tuple[list[list[int]], State]:
        """A window."""
        number = int(state["window"])
        items = self.windows[number]
        lengths = np.asarray(self.lengths[items], dtype=np.float64)
        items, lengths = items[~np.isnan(lengths)], lengths[~np.isnan(lengths)]
        if len(lengths) and lengths.max() > self.budget:
            raise UserError(
                f"the longest sample ({lengths.max():.1f}) exceeds the budget of a step ({self.budget}); "
                "raise the batch or lower the crop"
            )
        pool = min(self.pool, max(FEWEST_POOLED, len(items) // 4)) if self.shuffle else self.pool
        steps: list[list[int]] = []
        rest = np.arange(0)
        for start in range(0, len(items), pool):
            chosen = np.concatenate([rest, np.arange(start, min(start + pool, len(items)))])
            chosen = chosen[np.argsort(-lengths[chosen], kind="stable")]
            cut = cut_by_padded_cost(chosen, lengths, self.budget)
            # The last step of a pool is rarely full: its items wait for the next pool.
            rest = cut.pop() if start + pool < len(items) else np.arange(0)
            steps += [items[step].tolist() for step in cut]
        if self.shuffle:
            order = np.random.default_rng([self.seed, number, 1]).permutation(len(steps))
            steps = [steps[i] for i in order]
        if self.shuffle and number == 0:
            length_of = dict(zip(items.tolist(), lengths.tolist(), strict=True))
            largest_first(steps, lambda step: (len(step) * length_of[step[0]], length_of[step[0]]))
        amounts = dict(state.get("amounts", {}))
        if self.groups is not None:
            for name, length in zip(self.groups(items), lengths.tolist(), strict=True):
                amounts[name] = amounts.get(name, 0.0) + length
        return steps, {"window": number + 1, "amounts": amounts}

    def epoch(self, epoch: int) -> list[list[int]]:
        """All steps of one epoch: every item once."""
        number = self.windows.num_windows
        windows = range(epoch * number, (epoch + 1) * number)
        return [step for window in windows for step in self.chapter({"window": window, "amounts": {}})[0]]


def cut_by_padded_cost(chosen: np.ndarray, lengths: np.ndarray, budget: float) -> list[np.ndarray]:
    """Greedy steps from items sorted by falling length: the first item of a step is its longest."""
    steps, begin = [], 0
    while begin < len(chosen):
        longest = float(lengths[chosen[begin]])
        size = int(budget / longest) + 1
        while size > 1 and size * longest > budget:
            size -= 1
        steps.append(chosen[begin : begin + size])
        begin += size
    return steps


def largest_padded(budget: float, longest: float, num_parts: int) -> list[tuple[int, float]]:
    """Batches (items, length of each) that bound every part of every step that a PooledPlan may cut.

    A step has at most budget / length items, and a part one more than its even share of them. The first batch has the
    longest items there are, and as many as a part may have; the second, if it is larger still, is what the rounding up
    can come to with shorter ones.

    Args:
        longest: item of all, in the budget's unit.
    """
    number = _part_size(budget, longest, num_parts)
    shorter = min(longest, budget / (number * num_parts + 1))  # the longest of which a part may have one more
    batches = [(number, longest), (number + 1, shorter)]
    return batches[: 1 + ((number + 1) * shorter > number * longest)]


def _part_size(budget: float, longest: float, num_parts: int) -> int:
    """Most items of a part of a step whose longest is so long."""
    return max(1, -(-math.floor(budget / longest) // num_parts))


def most_written(
    lengths: Lengths, written: Callable[[np.ndarray], np.ndarray], budget: float, num_parts: int
) -> tuple[float, np.ndarray]:
    """The items, and the length that each may have, of a batch with as much text as any part of any step may have.

    Steps are those of a PooledPlan, in which no item comes twice. A part whose longest item lies in a bin of like
    lengths has at most as many items as the shortest of the bin allows, and none longer than the bin: at worst those
    with the most text. Held are the items of a part for each bin.

    Args:
        lengths: of every item, in the budget's unit; NaN leaves an item out.
        written: items -> length of the text of each.
    """
    bins: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}  # shortest, items, lengths of texts
    for start in range(0, len(lengths), CHUNK):
        items = np.arange(start, min(start + CHUNK, len(lengths)))
        length, text = lengths[items], written(items)
        bin_of = np.floor(np.log2(length) * BINS)
        for number in np.unique(bin_of[~np.isnan(bin_of)]).tolist():
            shortest, known, texts = bins.get(number, (math.inf, np.arange(0), np.zeros(0)))
            here = bin_of == number
            shortest = min(shortest, float(length[here].min()))
            most = _part_size(budget, 2 ** (number / BINS), num_parts)
            bins[number] = (shortest, *_top(most, known, texts, items[here], text[here]))
    found, texts, chosen = np.arange(0), np.zeros(0), (0.0, np.arange(0), 0.0)
    for _, (shortest, items, their_texts) in sorted(bins.items()):
        found, texts = _top(_part_size(budget, shortest, num_parts), found, texts, items, their_texts)
        if texts.sum() > chosen[2]:
            chosen = shortest, found, float(texts.sum())
    return chosen[:2]


def _top(
    number: int, some: np.ndarray, texts: np.ndarray, more: np.ndarray, their_texts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of two lots of items that have the most text, and its lengths."""
    items, texts = np.append(some, more), np.append(texts, their_texts)
    if len(items) <= number:
        return items, texts
    top = np.argpartition(-texts, number - 1)[:number]
    return items[top], texts[top]


def share_of(items: Sequence[Item], part: int, num_parts: int) -> list[Item]:
    """One part's items of a global batch, dealt like cards so that parts cost alike.

    A part is a (micro-batch, rank) pair. Parts are never empty: with too few items the dealing starts
    again from the first item, which every rank does alike, so no collective waits for a missing batch.
    """
    if not items:
        raise UserError("a step of the plan has no samples")
    dealt = list(items[part::num_parts])
    return dealt or [items[part % len(items)]]
