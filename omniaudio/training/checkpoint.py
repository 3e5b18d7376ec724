"""Checkpoints that survive a kill at any moment: written beside, synced, renamed; the newest complete one is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO

from omniaudio.errors import UserError
from omniaudio.training.artifacts import milestone_name

SUFFIX, PARTIAL = ".ckpt", ".partial"


class SafeCheckpointIO(CheckpointIO):
    """Plain tensors and values only; never a pickle of code, neither written nor read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            target.unlink(missing_ok=True)
            raise UserError(
                f"{target}: cannot write the checkpoint ({error}); free space, then run again"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        _remove(Path(path))


class Checkpoints(Callback):
    """Save every ``every_steps`` optimizer steps and keep the newest ``keep``.

    A checkpoint is written at the end of its step and gets its name when the step's numbers have been logged, which
    Lightning does later: a run that is killed in between goes on from the one before, and no line is missing.

    Args:
        folder: holds ``step-00000120.ckpt``, a file, or a folder under ZeRO.
        val_every_steps: a step that ends in a validation, or one that was skipped, is not saved; the next one is.
            So a resumed run repeats no validation and misses none.
    """

    def __init__(self, folder: Path, every_steps: int, keep: int = 2, val_every_steps: int = 0) -> None:
        self.folder, self.every_steps, self.keep = folder, every_steps, keep
        self.val_every_steps = val_every_steps
        self.last_step = -1
        self.due = False
        self._written: Path | None = None  # whole, without its name

    def newest(self, clean: bool = True) -> Path | None:
        """The newest complete checkpoint; ``clean`` removes half-written ones (one process does)."""
        for partial in self.folder.glob("*" + PARTIAL) if clean else ():
            _remove(partial)
        return max(self.folder.glob("step-*" + SUFFIX), default=None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, rest = divmod(int(pl_module.batches_seen), trainer.accumulate_grad_batches)
        if rest:
            return
        self.due = self.due or step % self.every_steps == 0
        validates = self.val_every_steps and step % self.val_every_steps == 0
        if self.due and not validates and not pl_module.watch.bad_steps:
            self.write(trainer, step)
            self.due = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.put_in_place(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.put_in_place(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.put_in_place(trainer)

    def write(self, trainer: Trainer, step: int) -> None:
        """Write the checkpoint of a step, not yet under its name (called by every rank)."""
        if step == self.last_step:
            return
        self.last_step = step
        partial = self.folder / f"step-{step:08d}{PARTIAL}"
        trainer.save_checkpoint(partial)
        trainer.strategy.barrier()  # all ranks have written
        self._written = partial

    def put_in_place(self, trainer: Trainer) -> None:
        """Name what was written ``step-<n>.ckpt``; ranks need not wait for each other."""
        partial, self._written = self._written, None
        if partial is None or not trainer.is_global_zero:
            return
        target = partial.with_suffix(SUFFIX)
        if target.exists():
            _remove(target)
        partial.rename(target)
        for old in sorted(self.folder.glob("step-*" + SUFFIX))[: -self.keep]:
            _remove(old)


class Milestones(Callback):
    """Keep the trained parts as they are after some steps, to be heard beside each other later.

    Args:
        folder: gets ``step-00001000/`` for each of ``steps``.
        steps: optimizer steps; those that the training does not reach leave nothing.
        save: writes the parts into a folder (called by every rank).
    """

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], object]) -> None:
        listed = isinstance(steps, list | tuple) and all(isinstance(step, int) and step > 0 for step in steps)
        if not listed:
            raise UserError(f"config milestones: {steps} is not a list of steps, each at least 1")
        self.folder, self.steps, self.save = folder, frozenset(steps), save

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, rest = divmod(int(pl_module.batches_seen), trainer.accumulate_grad_batches)
        if not rest and step in self.steps:
            self.save(self.folder / milestone_name(step))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
