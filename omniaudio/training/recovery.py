"""Steps that go wrong: which ones are skipped, and the way back when many do so in a row.

Source: arXiv:2204.02311, section 5.1: back to a checkpoint before the spike, and on with the data behind it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed

from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.training.checkpoint import Checkpoints

SEVERAL_NORMS = "_get_norm_groups"
ENGINE_NORMS = ("scaled_global_norm", SEVERAL_NORMS)
"""Where DeepSpeed's optimizers ask for the norm, before they move: ZeRO 1 and 2, ZeRO 3."""


class StepWatch:
    """Says which steps are bad, by their loss and the norm of their gradient, and counts them.

    A value is bad when it is not finite, or more than a factor times its level: the median of the last good steps.
    Given the same values, all ranks decide alike. What learns outside of an optimizer has learned by then: moving
    averages of codebooks in the forward pass.

    Args:
        norm_factor: of the gradient norm; None takes any that is finite.
        loss_factor: of the loss; None takes any that is finite.
        window: good steps that make a level; none is too high before so many were seen.
        patience: bad steps in a row after which the run goes back (see Return).
        max_returns: how often it does; then it ends.
    """

    def __init__(
        self,
        norm_factor: float | None = None,
        loss_factor: float | None = None,
        window: int = 50,
        patience: int = 10,
        max_returns: int = 0,
    ) -> None:
        factors = {"gradient": norm_factor, "loss": loss_factor}
        self.factors = {name: factor for name, factor in factors.items() if factor is not None}
        whole = all(isinstance(number, int) for number in (window, patience, max_returns))
        large = all(isinstance(factor, int | float) and factor > 1 for factor in self.factors.values())
        if not (whole and large and window > 0 and patience > 0 and max_returns >= 0):
            raise UserError(
                f"recovery: window {window} and patience {patience} must be at least 1, max_returns {max_returns} at "
                f"least 0, norm_factor {norm_factor} and loss_factor {loss_factor} above 1 or null"
            )
        self.window, self.patience, self.max_returns = window, patience, max_returns
        self.bad_steps = 0  # in a row
        self.total_bad_steps = 0
        self.returns = 0
        self.good: dict[str, deque[float]] = {name: deque(maxlen=window) for name in self.factors}

    def fault(self, values: Mapping[str, float]) -> str:
        """What is wrong with a step, in words; empty if nothing is.

        Args:
            values: ``gradient``: norm before clipping; ``loss``.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                return f"non-finite {name}"
        for name, factor in self.factors.items():
            if name not in values or len(self.good[name]) < self.window:
                continue
            level = statistics.median(self.good[name])
            if values[name] > factor * level > 0:
                return f"{name} of {values[name]:.4g}, {values[name] / level:.3g} times its level"
        return ""

    def count(self, values: Mapping[str, float], fault: str) -> None:
        """Count a step: a good one makes the level, a bad one does not."""
        if fault:
            self.bad_steps += 1
            self.total_bad_steps += 1
            return
        self.bad_steps = 0
        for name, good in self.good.items():
            if name in values:
                good.append(values[name])

    def state_dict(self) -> dict[str, Any]:
        good = {name: list(values) for name, values in self.good.items()}
        return {"total_bad_steps": self.total_bad_steps, "returns": self.returns, "good": good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total_bad_steps, self.returns = state["total_bad_steps"], state["returns"]
        for name, good in self.good.items():
            good.extend(state["good"].get(name, []))


class Kept:
    """What an optimizer and its parameters hold, to be put back to the bit when its step turns out to be a bad one.

    With Adam it is three copies of what learns, for the length of a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._values = [
            (
                p,
                p.detach().clone(),
                {name: _copy(value) for name, value in optimizer.state.get(p, {}).items()},
            )
            for group in optimizer.param_groups
            for p in group["params"]
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """The optimizer did not move; before its first step it has no state."""
        for parameter, value, state in self._values:
            parameter.copy_(value)
            self._optimizer.state.pop(parameter, None)
            if state:
                self._optimizer.state[parameter] = state


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


class Return(Callback):
    """After ``patience`` bad steps in a row: back to the newest checkpoint, and on with the data that follow.

    Weights, buffers and optimizer are the checkpoint's. Steps, data and learning rate go on from where they are: the
    steps since the checkpoint count as done and have taught nothing, so the run does not meet them again. Their
    samples are written to ``path``, a line a step. All this happens inside the process, alike on one device, under DDP
    and under ZeRO; a run that is killed on the way takes the same way again.

    Stands before ``checkpoints`` in the list of callbacks.

    Args:
        checkpoints: knows the newest.
        path: ``{"step": 41, "keys": [...]}`` by line.

    Raises:
        UserError: it went back ``max_returns`` times already, or there is no checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, path: Path) -> None:
        self.checkpoints, self.path = checkpoints, path
        self._keys: dict[int, list[str]] = {}  # step -> this rank's samples, since the newest checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.path.exists():  # a resumed run makes later steps again
            self._write({}, after=int(pl_module.batches_seen) // trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, rest = divmod(int(pl_module.batches_seen), trainer.accumulate_grad_batches)
        if rest:
            return
        self._keys = {n: keys for n, keys in self._keys.items() if n > self.checkpoints.last_step}
        self._keys[step] = list(pl_module.step_keys)
        if pl_module.watch.bad_steps >= pl_module.watch.patience:
            self._go_back(trainer, pl_module, step)

    def _go_back(self, trainer: Trainer, task: Any, step: int) -> None:
        watch, newest = task.watch, trainer.strategy.broadcast(self.checkpoints.newest(clean=False))
        if newest is None or watch.returns >= watch.max_returns:
            why = f"returned {watch.returns} times already" if newest else "no checkpoint to return to"
            raise UserError(
                f"step {step}: {watch.bad_steps} bad steps in a row, {why} (recovery.max_returns: "
                f"{watch.max_returns}); lower optim.lr, check the samples that {self.path.with_name('log.txt')} "
                "names, or raise the factors of recovery if they are too narrow"
            )
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        checkpoint = trainer.strategy.load_checkpoint(newest, weights_only=True)
        trainer.strategy.load_model_state_dict(checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        if task.balance is not None:
            task.balance.norms = dict(checkpoint.get("gradient_norms", {}))
        watch.bad_steps, watch.returns = 0, watch.returns + 1
        self._tell(trainer, task, int(newest.stem.split("-")[1]), step)

    def _tell(self, trainer: Trainer, task: Any, since: int, step: int) -> None:
        """Name what was left out: the samples of all ranks."""
        parts: list[Any] = [{n: keys for n, keys in self._keys.items() if n > since}]
        if trainer.world_size > 1:
            parts = parts * trainer.world_size
            distributed.all_gather_object(parts, parts[0])
        left_out = {
            n: list(dict.fromkeys(key for part in parts for key in part[n])) for n in sorted(parts[0])
        }
        if trainer.is_global_zero:
            self._write(left_out, after=since)
            watch, number = task.watch, sum(map(len, left_out.values()))
            task.tell(
                f"step {step}: {watch.patience} bad steps in a row; back to the weights of step {since}, "
                f"the {number} samples of the steps since are left out, see {self.path} "
                f"(return {watch.returns} of {watch.max_returns})"
            )

    def _write(self, left_out: Mapping[int, list[str]], after: int) -> None:
        """Replace the lines of the steps after one."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= after]
        new = [
            json.dumps({"step": step, "keys": keys}, ensure_ascii=False) for step, keys in left_out.items()
        ]
        write_whole(self.path, "".join(line + "\n" for line in (*kept, *new)))


def watch_engine(optimizer: Any, fault: Callable[[float], str]) -> bool:
    """Let DeepSpeed's optimizer skip a step that has a fault, as it skips one whose norm is not finite.

    It holds the gradients and moves as soon as it knows their norm, so the norm is where it can be stopped.

    Args:
        fault: of a step with this norm, in words; asked once a step, on all ranks.

    Returns:
        False: an optimizer that asks for its norm in no known way; only non-finite steps are skipped.
    """
    name = next((name for name in ENGINE_NORMS if hasattr(optimizer, name)), None)
    if name is None:
        return False
    ask = getattr(optimizer, name)

    def norm_or_infinity(*args: Any, **kwargs: Any) -> Any:
        found = ask(*args, **kwargs)
        groups = [float(norm) for norm in (found if name == SEVERAL_NORMS else [found])]
        bad = not all(0 <= norm < math.inf for norm in groups) or fault(math.hypot(*groups))
        if not bad:
            return found
        return [math.inf] if name == SEVERAL_NORMS else math.inf

    setattr(optimizer, name, norm_or_infinity)
    return True
