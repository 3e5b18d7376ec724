"""A scheduler that wants the machine back: the step is finished and saved, and the exit code says "run me again"."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed

from omniaudio.errors import PreemptedError
from omniaudio.training.checkpoint import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill; the second, for example, by ``sbatch --signal=USR1@120``."""


class Preemption(Callback):
    """On a signal to any rank, save the step that is being made and leave.

    Stands before ``checkpoints`` in the list of callbacks. A step that is not to be saved (see Checkpoints) is followed
    by one more.

    Args:
        checkpoints: writes the step.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.asked: str | None = None
        self.leaving = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # Python knows handlers in no other
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if (
            trainer.received_sigterm
        ):  # Lightning has heard it while the run was set up, and would leave unsaved
            self.asked = "SIGTERM"
            trainer._signal_connector.received_sigterm = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if int(pl_module.batches_seen) % trainer.accumulate_grad_batches == 0 and self._asked_anywhere(
            pl_module.device
        ):
            self.leaving = self.checkpoints.due = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = int(pl_module.batches_seen) // trainer.accumulate_grad_batches
        if self.leaving and self.checkpoints.last_step == step:  # its numbers are logged by now
            raise PreemptedError(
                f"stopped after step {step} by {self.asked or 'a signal to another process'}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _asked_anywhere(self, device: torch.device) -> bool:
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.asked is not None
        asked = torch.tensor(int(self.asked is not None), device=device)
        distributed.all_reduce(asked, distributed.ReduceOp.MAX)
        return bool(asked)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
