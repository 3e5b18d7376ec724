"""The only LightningDataModule: hands out the batches of a training from where it stopped."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from omniaudio.data.steps import StepSource, StepStream
from omniaudio.fingerprint import Fingerprint
from omniaudio.types import Batch


class StepData(LightningDataModule):
    """Batches of a training and of its validation.

    Args:
        train: builds the source of training steps.
        val: builds the source of validation steps.
        max_steps: optimizer steps of the whole training.
        val_steps: steps of one validation.
        num_workers: processes that read ahead; 0 reads in the training process.
        layout: token layout that codes in the batches must have; None does not ask.
        begin: is shown the source of a training that begins, on the first process.
    """

    def __init__(
        self,
        train: Callable[[], StepSource],
        val: Callable[[], StepSource],
        max_steps: int,
        val_steps: int,
        num_workers: int = 0,
        layout: Fingerprint | None = None,
        begin: Callable[[StepSource], None] | None = None,
    ) -> None:
        super().__init__()
        self._make_train, self._make_val = train, val
        self.max_steps, self.val_steps, self.num_workers = max_steps, val_steps, num_workers
        self.layout, self._begin = layout, begin
        self._source: StepSource | None = None  # of the training

    def largest(self) -> Iterator[Batch]:
        """Batches that none of the training exceeds on this or any rank."""
        assert self.trainer is not None and self._source is not None
        return self._source.largest(self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        accumulate = self.trainer.accumulate_grad_batches
        task, source = self.trainer.lightning_module, self._make_train()
        start = int(task.batches_seen)  # restored before the loader is made, as is the memo
        if self._begin is not None and start == 0 and self.trainer.global_rank == 0:
            self._begin(source)
        if task.memo is not None:
            source.plan.recall(task.memo)
        self._source = source
        loader = self._loader(source, start, self.max_steps * accumulate, accumulate)
        return loader if accumulate == 1 else WholeSteps(loader, accumulate)

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        accumulate = self.trainer.accumulate_grad_batches  # batches that are too large to learn from are so to look at
        return self._loader(self._make_val(), 0, self.val_steps * accumulate, accumulate)

    def _loader(self, source: StepSource, start: int, stop: int, accumulate: int) -> Any:
        assert self.trainer is not None
        if self.layout:
            source.check_layout(self.layout)
        stream = StepStream(
            source, start, stop, self.trainer.global_rank, self.trainer.world_size, accumulate
        )
        return DataLoader(
            stream, batch_size=None, num_workers=self.num_workers, worker_init_fn=leave_signals_to_the_trainer
        )


class WholeSteps:
    """Batches of a loader, step by step: all of a step are read before the first is given out, which knows the others.

    So what they hold together can be counted before anything is learned from one of them.

    Args:
        loader: begins with the first batch of a step.
        accumulate: batches of a step.
    """

    def __init__(self, loader: Iterable[Batch], accumulate: int) -> None:
        self.loader, self.accumulate = loader, accumulate

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while step := list(itertools.islice(batches, self.accumulate)):
            step[0].later = step[1:]
            yield from step


def leave_signals_to_the_trainer(worker: int) -> None:
    """A scheduler signals all processes of a job: those that read ahead go on until the step is saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
