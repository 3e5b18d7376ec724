"""Batches of similar lengths out of 50,000 utterances, 240 s each: padding, how even they are, and the time to plan."""

from __future__ import annotations

import numpy as np
from common import compare, need

need("lhotse")
from lhotse import CutSet, MonoCut, Recording  # noqa: E402
from lhotse.dataset import DynamicBucketingSampler  # noqa: E402

from omniaudio.data.planning import PooledPlan  # noqa: E402

BUDGET_SEC, RATE = 240.0, 16000
seconds = np.clip(np.random.default_rng(0).lognormal(1.9, 0.6, 50_000), 0.5, 30.0).round(3)


def cut(number: int, duration: float) -> MonoCut:
    recording = Recording(
        str(number), sources=[], sampling_rate=RATE, num_samples=round(duration * RATE), duration=duration
    )
    return MonoCut(str(number), start=0.0, duration=duration, channel=0, recording=recording)


cuts = CutSet.from_cuts([cut(i, float(s)) for i, s in enumerate(seconds)])


def ours() -> list[list[int]]:
    return PooledPlan(seconds, BUDGET_SEC, seed=0).epoch(0)


def peer() -> list[list[int]]:
    sampler = DynamicBucketingSampler(cuts, max_duration=BUDGET_SEC, num_buckets=30, shuffle=True, seed=0)
    return [[int(one.id) for one in batch] for batch in sampler]


def even(steps: list[list[int]]) -> str:
    """Share of padding, and how much the cost of steps varies."""
    costs = np.array([seconds[step].max() * len(step) for step in steps])
    return f"{1 - seconds.sum() / costs.sum():.1%} padding, CV {costs.std() / costs.mean():.3f}"


def same(mine: list[list[int]], theirs: list[list[int]]) -> str:
    every = [sorted(i for step in steps for i in step) for steps in (mine, theirs)]
    over = [
        max(seconds[step].max() * len(step) for step in steps) > BUDGET_SEC + 1e-6 for steps in (mine, theirs)
    ]
    return (
        ""
        if every[0] == every[1] == list(range(len(seconds))) and not over[0]
        else "items are lost, or a step is too large"
    )


compare(
    f"4 plan 50 k utterances: {even(ours())}; peer {even(peer())} (targets 1.1%, 0.045)", ours, peer, same,
    "lhotse, 30 buckets", 20.0,
)  # fmt: skip
