"""Signals of a scheduler: the step is saved, the exit code says so, the same command goes on as if unbroken."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer

from omniaudio.data.datamodule import StepData
from omniaudio.errors import PreemptedError
from omniaudio.training.checkpoint import Checkpoints, SafeCheckpointIO
from omniaudio.training.loggers import JsonLinesLogger
from omniaudio.training.preemption import SIGNALS, Preemption
from tests.tasks.test_base import PointSteps, PointTask, make_task

STEPS = 9


class Scheduler(Callback):
    """Sends a signal in the middle of a batch."""

    def __init__(self, number: int, batch: int) -> None:
        self.number, self.batch = number, batch

    def on_before_backward(self, trainer, task, loss) -> None:
        if task.batches_seen == self.batch:
            os.kill(os.getpid(), self.number)


def train(folder: Path, task: PointTask, *callbacks: Callback, first: Sequence[Callback] = ()) -> list[str]:
    checkpoints = Checkpoints(folder / "checkpoints", every_steps=100, val_every_steps=4)
    logger = JsonLinesLogger(folder / "metrics.jsonl", lambda: task.batches_seen // task.accumulate)
    newest = checkpoints.newest()
    logger.cut_after(int(newest.stem.split("-")[1]) if newest else 0)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=[logger], plugins=[SafeCheckpointIO()],
        callbacks=[*first, Preemption(checkpoints), checkpoints, *callbacks],
        accumulate_grad_batches=task.accumulate, val_check_interval=4 * task.accumulate,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    data = StepData(lambda: PointSteps(), lambda: PointSteps(), max_steps=STEPS, val_steps=2)
    trainer.fit(task, data, ckpt_path=newest)
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("accumulate", "batch", "saved"), [(1, 3, 3), (1, 4, 5), (2, 5, 3)])
def test_the_step_is_saved_and_the_same_command_goes_on(tmp_path, number, accumulate, batch, saved) -> None:
    """Step 4 ends in a validation and is not saved: one more is made. A step of two batches is finished."""
    whole_task = make_task(STEPS, accumulate=accumulate)
    whole = train(tmp_path / "whole", whole_task)
    handlers = [signal.getsignal(name) for name in SIGNALS]
    with pytest.raises(PreemptedError, match=f"stopped after step {saved} by {signal.Signals(number).name}"):
        train(tmp_path / "broken", make_task(STEPS, accumulate=accumulate), Scheduler(number, batch))
    assert [signal.getsignal(name) for name in SIGNALS] == handlers
    assert [p.name for p in (tmp_path / "broken/checkpoints").iterdir()] == [f"step-{saved:08d}.ckpt"]
    again_task = make_task(STEPS, accumulate=accumulate)
    assert train(tmp_path / "broken", again_task) == whole
    for ours, theirs in zip(again_task.parameters(), whole_task.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_signal_while_the_run_is_set_up_counts(tmp_path) -> None:
    class Early(Callback):
        def on_train_start(self, trainer, task) -> None:
            trainer._signal_connector.received_sigterm = True

    with pytest.raises(PreemptedError, match="stopped after step 1 by SIGTERM"):
        train(tmp_path, make_task(STEPS), first=[Early()])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.ckpt"]


def test_a_signal_to_another_process_counts(tmp_path, monkeypatch) -> None:
    from omniaudio.training import preemption

    class Peers:
        ReduceOp = torch.distributed.ReduceOp
        is_available = is_initialized = staticmethod(lambda: True)

        @staticmethod
        def all_reduce(asked, operation) -> None:
            assert operation == Peers.ReduceOp.MAX
            asked.fill_(1)

    monkeypatch.setattr(preemption, "distributed", Peers)
    with pytest.raises(PreemptedError, match="stopped after step 1 by a signal to another process"):
        train(tmp_path, make_task(STEPS))


def test_without_a_signal_nothing_is_saved_early(tmp_path) -> None:
    train(tmp_path, make_task(STEPS))
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
