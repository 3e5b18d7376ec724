"""What watches a training: the progress bar, the rehearsal of its largest batch, the proof of freezing."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from omniaudio.errors import UserError
from omniaudio.progress import Progress
from omniaudio.stage import Stage
from omniaudio.training.freeze import FreezeProof


class ProgressBar(Callback):
    """Steps done, rate, remaining time and the current loss.

    Args:
        description: name of the stage.
        total: optimizer steps.
    """

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total = description, total
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            done = int(pl_module.batches_seen) // trainer.accumulate_grad_batches
            self.progress = Progress(self.description, self.total, start=done)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.progress is not None and int(pl_module.batches_seen) % trainer.accumulate_grad_batches == 0:
            self.progress.advance(lambda: self._note(trainer, pl_module))  # reading a number waits for a GPU

    @staticmethod
    def _note(trainer: Trainer, task: LightningModule) -> str:
        step, held_out = task.whole.losses.get("loss"), trainer.callback_metrics.get("val/loss")
        shown = {"train/loss": step, "val/loss": held_out}
        words = [f"{name} {float(value):.3f}" for name, value in shown.items() if value is not None]
        return "  ".join([*words, task.note()]).rstrip()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.progress is not None:
            self.progress.close()


class Rehearsal(Callback):
    """After the first step of a start, when gradients and optimizer state are in memory: the largest batches that the
    plan may come to on any rank go through the model once (``Task.rehearse``), so that too little memory shows now.

    Under ZeRO there is none: DeepSpeed reduces gradients in the middle of every backward pass.
    """

    def __init__(self) -> None:
        self.due = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due or int(pl_module.batches_seen) % trainer.accumulate_grad_batches:
            return
        self.due = False
        for largest in trainer.datamodule.largest():  # type: ignore[attr-defined]
            try:
                pl_module.rehearse(largest)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"out of memory in the largest batch that the data may come to ({len(largest.keys)} samples): "
                    "lower batch_sec or crop_sec (audio), tokens_per_step or max_positions (documents), or raise "
                    f"accumulate ({str(error).splitlines()[0]})"
                ) from error


class Proof(Callback):
    """Hashes what is frozen before the first step and after the last; keeps the stage's clock meanwhile.

    Args:
        resumed: the hashes of the first start are kept.
    """

    def __init__(self, proof: FreezeProof, run: Stage, resumed: bool) -> None:
        self.proof, self.run, self.resumed = proof, run, resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.proof.before(pl_module, self.resumed, trainer.is_global_zero)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            self.run.save_progress()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.proof.after(pl_module, trainer.is_global_zero)
