"""Documents of 126 positions on average into steps of 2,048: how full they get, against taking them as they come."""

from __future__ import annotations

import numpy as np
from common import compare

from omniaudio.data.mixture import MixturePlan, OneByOne
from omniaudio.data.planning import ShuffledWindows

ROOM = 2048
lengths = np.clip(np.random.default_rng(0).lognormal(4.55, 0.75, 50_000), 4, ROOM).astype(int)
NUM_STEPS = int(lengths.sum() / ROOM) - 100  # within the first epoch


def ours() -> list[list[int]]:
    plan = MixturePlan(OneByOne(lengths), {"text": 1.0}, ROOM)
    return [[document.item_ids[0] for document in plan[step]] for step in range(NUM_STEPS)]


def peer() -> list[list[int]]:
    steps: list[list[int]] = [[]]
    room = ROOM
    for item in ShuffledWindows(len(lengths), 0)[0].tolist():
        if lengths[item] > room:
            steps.append([])
            room = ROOM
        steps[-1].append(item)
        room -= lengths[item]
    return steps


def unused(steps: list[list[int]]) -> str:
    return f"{1 - sum(lengths[step].sum() for step in steps) / ROOM / len(steps):.2%}"


def same(mine: list[list[int]], theirs: list[list[int]]) -> str:
    items = [item for step in mine for item in step]
    fits = all(lengths[step].sum() <= ROOM for step in mine)
    return "" if fits and len(set(items)) == len(items) else "a step is too long, or an item came twice"


compare(
    f"5 pack 50 k documents: {unused(ours())} unused; peer {unused(peer())} (target 0.3%)", ours, peer, same,
    "greedy next-fit", 0.0, "the peer plans no mixture",
)  # fmt: skip
