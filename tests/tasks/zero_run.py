"""A training of the toy task under ZeRO in two processes, whose third step is not finite on the second process alone.

python -m tests.tasks.zero_run STAGE FOLDER      writes FOLDER/rank<n>.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning import Trainer

from omniaudio.data.datamodule import StepData
from omniaudio.training.freeze import FreezeProof
from omniaudio.training.strategies import gathered_state, make_strategy
from tests.tasks.test_base import PointSteps, make_task

STEPS, BAD = 6, 3


class OneBadRank(PointSteps):
    def batch(self, step, part, num_parts):  # type: ignore[no-untyped-def]
        batch = super().batch(step, part, num_parts)
        if step == BAD and part == num_parts - 1:
            batch.x_BD[0, 0] = float("nan")
        return batch


def main(stage: str, folder: Path) -> None:
    torch.set_num_threads(1)
    task = make_task(STEPS)
    told: list[str] = []
    task.tell = told.append
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=make_strategy(f"zero{stage}"), max_epochs=1, logger=False,
        precision="32-true", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    rank = trainer.global_rank
    proof = FreezeProof(folder / "freeze.json")
    norms: list[float] = []

    def before() -> None:
        proof.before(task, resumed=False, writes=trainer.is_global_zero)

    def end(*_: object) -> None:
        norms.append(float(task.stats["grad_norm"]))

    task.on_train_start, task.on_train_batch_end = before, end  # type: ignore[method-assign, assignment]
    data = StepData(lambda: OneBadRank(), lambda: PointSteps(), max_steps=STEPS, val_steps=1)
    trainer.fit(task, data)
    proof.after(task, writes=trainer.is_global_zero)
    finite = all(bool(tensor.isfinite().all()) for tensor in gathered_state(task).values())
    record = {"told": told, "norms": norms, "finite": finite, "bad": task.watch.total_bad_steps, "moved": ""}
    weight = task.frozen[0].weight  # type: ignore[index]
    if rank == 1:  # unseen by the first process, unless all pieces are hashed
        with torch.no_grad():
            getattr(weight, "ds_tensor", weight).add_(1)
    try:
        proof.after(task, writes=trainer.is_global_zero)
    except RuntimeError as error:
        record["moved"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
