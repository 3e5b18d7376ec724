from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from omniaudio.data.datamodule import StepData
from omniaudio.data.planning import PooledPlan
from omniaudio.types import Batch


@dataclass(kw_only=True)
class Asked(Batch):
    """What the source was asked for."""

    place: tuple[int, int, int]


class Numbers:
    def __init__(self) -> None:
        self.plan = PooledPlan([1.0] * 1500, 500.0, seed=0)  # a chapter of 3 steps

    def batch(self, step: int, part: int, num_parts: int) -> Asked:
        return Asked(keys=[], place=(step, part, num_parts))


def loaded(batches_seen: int, memo: dict | None = None, **settings: int) -> list[Asked]:
    data = StepData(Numbers, Numbers, max_steps=5, val_steps=2)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(batches_seen=batches_seen, memo=memo), **settings
    )
    accumulate, world = settings["accumulate_grad_batches"], settings["world_size"]
    held_out = list(data.val_dataloader())
    assert [batch.place for batch in held_out] == [
        (step, i * world + settings["global_rank"], world * accumulate) for step in (0, 1) for i in range(accumulate)
    ], "in batches as small as those of the training"
    assert not any(batch.later for batch in held_out)
    return list(data.train_dataloader())


def test_training_starts_where_the_task_stopped_and_validation_at_zero() -> None:
    batches = loaded(7, accumulate_grad_batches=2, global_rank=1, world_size=2)
    assert [batch.place for batch in batches] == [(3, 3, 4), (4, 1, 4), (4, 3, 4)]


def test_the_first_batch_of_a_step_knows_the_others() -> None:
    batches = loaded(6, accumulate_grad_batches=3, global_rank=0, world_size=1)
    assert [batch.place for batch in batches] == [(step, part, 3) for step in (2, 3, 4) for part in range(3)]
    for i, batch in enumerate(batches):
        assert [other.place for other in batch.later] == [
            (batch.place[0], part, 3) for part in (1, 2) if i % 3 == 0
        ]


def test_a_memo_goes_from_the_batches_to_the_plan_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"accumulate_grad_batches": 1, "global_rank": 0, "world_size": 1}
    before = loaded(0, **alone)
    memo = before[3].memo
    assert memo == json.loads(json.dumps(memo)) and memo["step"] == 3
    planned = []
    chapter = PooledPlan.chapter
    monkeypatch.setattr(
        PooledPlan, "chapter", lambda self, state: planned.append(state) or chapter(self, state)
    )
    again = loaded(4, memo, **alone)
    assert [batch.place[0] for batch in again] == [4]
    windows = [state["window"] for state in planned]
    assert windows[-1] == 1 and 0 not in windows[2:], "nothing before it was planned"


class Signalled(Numbers):
    """Its process is told to stop while it reads, as a scheduler tells all processes of a job."""

    def batch(self, step: int, part: int, num_parts: int) -> Asked:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return super().batch(step, part, num_parts)


def test_readers_go_on_when_a_scheduler_signals_them() -> None:
    data = StepData(Signalled, Numbers, max_steps=5, val_steps=2, num_workers=2)
    task = SimpleNamespace(batches_seen=0, memo=None)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=task, accumulate_grad_batches=1, global_rank=0, world_size=1
    )
    assert [batch.place[0] for batch in data.train_dataloader()] == list(range(5))
