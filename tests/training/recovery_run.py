"""A training of the toy task in two processes: the second meets a number far too large, then a bad stretch.

python -m tests.training.recovery_run STRATEGY FOLDER      writes FOLDER/rank<n>.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from lightning import Callback, Trainer

from omniaudio.data.datamodule import StepData
from omniaudio.training.checkpoint import Checkpoints, SafeCheckpointIO
from omniaudio.training.recovery import Return, StepWatch
from omniaudio.training.strategies import gathered_state, make_strategy
from tests.tasks.test_base import PointSteps, make_task

STEPS = 14
BAD = {4: 1e4, 8: float("nan"), 9: float("nan")}
"""Batches by number, from 0: step 5 has a spike, steps 9 and 10 are not finite. Every third step is saved."""


class OneRank(PointSteps):
    def batch(self, step, part, num_parts):  # type: ignore[no-untyped-def]
        batch = PointSteps().batch(step, part, num_parts)
        if step in self.bad and part == num_parts - 1:
            batch.x_BD[0, 0] = self.bad[step]
        return batch


class Weights(Callback):
    """Hash of the weights after every step."""

    def __init__(self) -> None:
        self.after: list[str] = []

    def on_train_batch_end(self, trainer, task, *_) -> None:  # type: ignore[no-untyped-def]
        state = gathered_state(task)
        content = b"".join(state[name].numpy().tobytes() for name in sorted(state))
        self.after.append(hashlib.sha256(content).hexdigest()[:8])


def main(strategy: str, folder: Path) -> None:
    torch.set_num_threads(1)
    task = make_task(STEPS)
    told: list[str] = []
    task.tell = told.append
    task.watch = StepWatch(norm_factor=50, window=3, patience=2, max_returns=1)
    checkpoints, weights = Checkpoints(folder / "checkpoints", every_steps=3), Weights()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=make_strategy(strategy), max_epochs=1, logger=False,
        callbacks=[Return(checkpoints, folder / "left_out.jsonl"), checkpoints, weights],
        plugins=[] if strategy.startswith("zero") else [SafeCheckpointIO()],
        precision="32-true", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    data = StepData(lambda: OneRank(BAD), lambda: PointSteps(), max_steps=STEPS, val_steps=1)
    trainer.fit(task, data)
    finite = all(bool(tensor.isfinite().all()) for tensor in gathered_state(task).values())
    record = {"told": told, "weights": weights.after, "finite": finite, "watch": task.watch.state_dict()}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
