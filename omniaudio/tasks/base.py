"""A Task is one training objective: it writes ``losses`` and nothing else.

The base class builds the modules late (so that ZeRO 3 can shard them at birth), freezes by patterns, makes
every loss a mean over the whole step (see WholeStep), weighs and logs the losses alike in training and validation,
seeds every step, and stops a bad step (see StepWatch) before the optimizer moves.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.init import shape_of
from omniaudio.training.artifacts import load_weights
from omniaudio.training.balance import GradientBalance, norms_of_parts
from omniaudio.training.freeze import apply_trainable, lr_factors, set_training_mode
from omniaudio.training.recovery import StepWatch, watch_engine
from omniaudio.training.whole_step import WholeStep, over_ranks
from omniaudio.types import Batch

MAX_DAMAGED = 100
"""Damaged samples after which a run ends."""


@dataclass(frozen=True)
class LossTerm:
    """A loss before its division: the sum over this rank's valid positions, and how many there are.

    ``factor`` multiplies its weight (a schedule); what is logged is the loss itself.
    """

    total: Tensor
    count: Tensor | float | int
    factor: float = 1.0


class Task(LightningModule):
    """Plain modules in, one weighted loss out.

    Args:
        modules: name -> function that builds the module; each becomes ``self.<name>``.
        init: dotted path of a submodule -> folder of weights that it starts from; None: it begins anew.
        trainable: glob patterns over parameter names; everything else is frozen (no gradient, eval mode,
            no optimizer state). A pattern that matches nothing is an error.
        loss_weights: weight of every loss that ``losses`` returns, by the same names.
        optimizer: parameter groups -> optimizer.
        scheduler: (optimizer, num_training_steps) -> learning-rate schedule.
        lr_factors: glob pattern over parameter names -> their learning rate as a share of the optimizer's; 1 for
            all others. A pattern that matches nothing is an error.
        weight_decay: for matrices; vectors (norms, biases) have none.
        max_steps: optimizer steps of the whole training.
        accumulate: batches of one optimizer step.
        seed: all randomness of a step follows from (seed, step, rank).
        balance: measures, and may equalise, the gradient norms of the losses; None does not.
    """

    def __init__(
        self,
        modules: Mapping[str, Callable[[], nn.Module]],
        loss_weights: Mapping[str, float],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any],
        trainable: Sequence[str],
        init: Mapping[str, str | Path | None] | None = None,
        lr_factors: Mapping[str, float] | None = None,
        weight_decay: float = 0.01,
        max_steps: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        balance: GradientBalance | None = None,
    ) -> None:
        super().__init__()
        self._factories = dict(modules)
        self._init = dict(init or {})
        self.loss_weights = dict(loss_weights)
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self.trainable = tuple(trainable)
        self.lr_factors = dict(lr_factors or {})
        self.weight_decay = weight_decay
        self.max_steps = max_steps
        self.accumulate = accumulate
        self.seed = seed
        self.balance = balance
        self.batches_seen = 0
        self.watch = StepWatch()
        self.damaged: set[str] = set()  # what was said of the damaged samples that this rank has met
        self.memo: dict[str, Any] | None = None  # of the batch that was last seen
        self._current: Batch | None = None
        self.step_keys: list[str] = []  # of all batches of the step, on this rank
        self.whole = WholeStep(accumulate)
        self._values_seen: dict[str, float] = {}  # by which a step under ZeRO was judged, and what came of it
        self._fault_seen = ""
        self._watched: Any = None  # DeepSpeed's optimizer
        self.tell: Callable[[str], None] = print
        self.stats: dict[str, Tensor | float] = {}
        self.counts: dict[str, float] = {}
        self.factors: dict[str, float] = {}

    # -- what a subclass writes

    def losses(self, batch: Any, split: str) -> dict[str, LossTerm]:
        """Batch to named losses; ``split`` is 'train' or 'val'."""
        raise NotImplementedError

    def counted(self, batch: Any, number: int) -> dict[str, float]:
        """The counts that the losses of a training batch are going to have, without the model; needed to accumulate.

        Args:
            batch: as it was read, not yet on the device.
            number: of the batch in the training, what ``batches_seen`` is going to be.
        """
        raise UserError(
            f"accumulate={self.accumulate}: {type(self).__name__} has no ``counted``; use accumulate=1"
        )

    # -- building and freezing

    def configure_model(self) -> None:
        if self._modules:
            return
        # Which weights a module is born with depends on the seed and its name, not on what was built before.
        for name, make in self._factories.items():
            torch.manual_seed(step_seed(self.seed, -1, 0, name))
            self.add_module(name, make())
        for path, folder in self._init.items():
            if folder is not None:
                load_weights(self.get_submodule(path), Path(folder))
        apply_trainable(self, self.trainable)
        self.train()

    def train(self, mode: bool = True) -> Task:
        set_training_mode(self, mode)
        return self

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self)
        schedule = self._make_scheduler(optimizer, num_training_steps=self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """For the trainable parameters of ``module``: matrices apart from vectors, and by learning rate."""
        factors = lr_factors(self, self.lr_factors)
        learning = [p for p in module.parameters() if p.requires_grad]
        rates = dict.fromkeys([1.0, *(factors[p] for p in learning)])  # in a fixed order
        groups = [
            {
                "params": [p for p in learning if factors[p] == rate and (len(shape_of(p)) > 1) == matrices],
                "weight_decay": self.weight_decay if matrices else 0.0,
                "lr_factor": rate,
            }
            for rate in rates
            for matrices in (True, False)
        ]
        optimizer = self._make_optimizer([group for group in groups if group["params"]])
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor")
        return optimizer

    # -- one step

    @property
    def step_number(self) -> int:
        """Number of the step that the batch at hand belongs to, from 1."""
        return -(-self.batches_seen // self.accumulate)

    @property
    def progress(self) -> float:
        """Share of the training that is done with the step at hand, in [0, 1]."""
        return min(1.0, self.step_number / max(1, self.max_steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.begin_step(batch)
        return self.weigh(self.reduced(self.losses(batch, "train")), "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._current = batch
        self._count_damaged(batch)
        torch.manual_seed(step_seed(self.seed, batch_idx, self.global_rank, "val"))
        self.weigh(self.reduced(self.losses(batch, "val")), "val")

    def begin_step(self, batch: Batch) -> None:
        """Seed the step, count it, remember its batch; tasks with manual optimization call it themselves."""
        self._current, self.stats, self.memo = batch, {}, batch.memo
        self._count_damaged(batch)
        if self.batches_seen % self.accumulate == 0:
            self.step_keys, self.whole = [], WholeStep(self.accumulate)
            self._values_seen, self._fault_seen = {}, ""
            if self.accumulate > 1:
                batches = enumerate([batch, *batch.later], self.batches_seen + 1)
                self.whole.plan([self.counted(part, number) for number, part in batches], self.device)
        self.step_keys = [*self.step_keys, *batch.keys]
        torch.manual_seed(step_seed(self.seed, self.batches_seen, self.global_rank, "train"))
        self.batches_seen += 1

    def _count_damaged(self, batch: Batch) -> None:
        """Say once of each damaged sample that it was left out; end when there are too many."""
        for line in batch.damaged:
            if line not in self.damaged:
                self.damaged.add(line)
                self.tell(f"left out: {line}")
        if self.damaged:
            self.log_stats({"damaged_samples": len(self.damaged)})
        if len(self.damaged) > MAX_DAMAGED:
            raise UserError(
                f"{len(self.damaged)} samples are damaged, the last: {batch.damaged[-1]}; "
                "`omniaudio doctor shards=DIR` finds them all"
            )

    def reduced(self, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Sums of a batch to means over its count on all ranks, so that their number changes nothing.

        The result is scaled by the number of ranks, because DDP and ZeRO average gradients over them.
        """
        if not terms:
            return {}
        device = next(iter(terms.values())).total.device
        counts = torch.stack(
            [torch.as_tensor(t.count, dtype=torch.float64, device=device) for t in terms.values()]
        )
        world_size = self.trainer.world_size
        if world_size > 1:
            torch.distributed.all_reduce(counts)
        self.counts.update(zip(terms, counts.tolist(), strict=True))
        self.factors.update({name: term.factor for name, term in terms.items()})
        return {name: term.total * (world_size / max(1.0, self.counts[name])) for name, term in terms.items()}

    def weigh(self, losses: Mapping[str, Tensor], split: str) -> Tensor:
        """Weighted sum of the losses; logs each and the sum under ``split/``.

        Losses are means over the positions of a whole step in training, of all validation steps in validation: a
        batch without any does not count.
        """
        unknown = losses.keys() - self.loss_weights.keys()
        if unknown:
            raise UserError(
                f"task.loss_weights has no weight for {sorted(unknown)}; it names {sorted(self.loss_weights)}"
            )
        weights = self._weights(losses, split)
        if split == "train":
            losses = self.whole.weighed(losses, self.counts)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        if split == "train":
            self.whole.add({**losses, "loss": total})
            return total
        for name, loss in losses.items():
            if weight := round(self.counts[name]):
                self._log({f"{split}/{name}": loss.detach().float()}, sync=True, weight=weight)
        self._log({f"{split}/loss": total.detach().float()}, sync=True)
        return total

    def _weights(self, losses: Mapping[str, Tensor], split: str) -> dict[str, float]:
        """Weight of every loss in this step; gradient norms are measured when due, for the steps that follow."""
        given = {name: self.loss_weights[name] * self.factors.get(name, 1.0) for name in losses}
        if self.balance is None or split != "train":
            return given
        weights = self.balance.weights(given)
        step, rest = divmod(self.batches_seen, self.accumulate)
        due = step % self.balance.every_steps == 0 or (self.balance.equalise and not self.balance.norms)
        if due and rest == 0:
            self._measure(losses, given)
        if self.balance is not None and self.balance.equalise:
            self.log_stats({f"weight/{name}": weight for name, weight in weights.items()})
        return weights

    def _measure(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        assert self.balance is not None
        try:
            present = {name: loss for name, loss in losses.items() if self.counts[name]}
            norms = self.balance.measure(self, present, weights)
        except UserError as error:
            if self.balance.equalise:
                raise
            self.tell(f"{error}; they are not measured")  # only watched: no reason to end a training
            self.balance = None
            return
        self.log_stats({f"grad_norm/{name}": norm for name, norm in norms.items()})

    # -- the largest batch is tried at once

    def rehearsed(self, batch: Any) -> Iterator[dict[str, LossTerm]]:
        """What a training step goes back through, one after the other."""
        yield self.losses(batch, "train")

    def rehearse(self, batch: Batch) -> None:
        """A training step on a batch, but for the optimizer's: it takes the memory and leaves no trace.

        Gradients are dropped; buffers (the books), random state, counters and what is logged stay as they were.
        """
        kept = vars(self).copy()
        self.stats, self.counts, self.factors, self.tell = {}, {}, {}, lambda message: None
        self.whole = WholeStep(self.accumulate)
        self.balance = copy.deepcopy(self.balance)
        buffers = [
            (m, name, b, b.clone()) for m in self.modules() for name, b in m._buffers.items() if b is not None
        ]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._go_through(batch.to(self.device))
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                buffer.copy_(value)
        self.__dict__.update(kept)

    def _go_through(self, batch: Batch) -> None:
        """Forward and backward, as often as the step does."""
        learning = [p for p in self.parameters() if p.requires_grad]
        for parameter in learning:  # those of the batch before it, as in a step of several
            parameter.grad = torch.zeros_like(parameter)
        passes = self.rehearsed(batch)
        while True:
            with self.trainer.precision_plugin.train_step_context():  # the way back is outside of it
                terms = next(passes, None)
                if terms is None:
                    break
                losses = {name: term.total / max(1.0, float(term.count)) for name, term in terms.items()}
                self.counts.update(dict.fromkeys(losses, 1.0))
                if self.balance is not None:
                    self._measure(losses, {name: self.loss_weights[name] for name in losses})
                total = torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()
            # Not backward(): DDP would take what is used here for used in the next step too.
            torch.autograd.grad(total, learning, allow_unused=True)
        for parameter in learning:
            parameter.grad = None

    def note(self) -> str:
        """A few words for the progress bar beside the loss."""
        return ""

    def log_stats(self, stats: Mapping[str, Tensor | float], split: str = "train") -> None:
        """Log numbers of the first rank under ``split/``: ranks may know different ones, so none waits.

        In training they are those of a step's last batch alone: Lightning would repeat those that only earlier steps
        had.
        """
        if split == "train":
            self.stats.update(stats)
            return
        values = {f"{split}/{name}": torch.as_tensor(v, dtype=torch.float32) for name, v in stats.items()}
        self._log(values, sync=False)

    def log_means(self, sums: Mapping[str, tuple[Tensor, Tensor]], split: str) -> None:
        """Log sums over counts: in training of all ranks and batches of the step, held-out of all ranks and steps."""
        if split == "train":
            self.whole.add_sums(sums)
            self.log_stats({name: total / count for name, (total, count) in self.whole.sums.items()})
            return
        for name, (total, count) in over_ranks(sums).items():
            self._log({f"{split}/{name}": torch.tensor(total / count)}, sync=False, weight=round(count))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning's log() takes every value of every step: a third of all work outside of the step itself.
        if self.batches_seen % self.accumulate or not self._logs_step:
            return
        means = {name: (loss, 1.0) for name, loss in self.whole.losses.items()}
        sums = over_ranks({**self.whole.sums, **means})
        self.log_stats({name: total / count for name, (total, count) in sums.items()})
        if self.trainer.is_global_zero:
            told = self.memo["told"] if self.memo is not None else {}
            values = {f"train/{name}": float(value) for name, value in {**self.stats, **told}.items()}
            step = self.step_number - 1  # Lightning's clock: the first step is 0
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=step)

    @property
    def _logs_step(self) -> bool:
        return self.step_number % self.trainer.log_every_n_steps == 0

    def _log(self, values: dict[str, Tensor], sync: bool, weight: int = 1) -> None:
        # Synced values are means over all ranks' samples already: every batch counts alike on every rank.
        self.log_dict(values, sync_dist=sync and self.trainer.world_size > 1, batch_size=weight)

    # -- the step is stopped before the optimizer moves

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        engine = getattr(self.trainer.strategy, "deepspeed_engine", None)
        if engine is not None:
            self._watch_engine(engine.optimizer)
            return
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        self.log_stats({"grad_norm": norm, **(norms_of_parts(self) if self._logs_step else {})})
        values = self._values(float(norm))
        if fault := self.watch.fault(values):
            optimizer.zero_grad(set_to_none=True)
        self.count_step(values, fault)

    def _values(self, norm: float) -> dict[str, float]:
        """What a step is judged by; all ranks ask."""
        loss = self.whole.losses["loss"] / self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(loss)
        return {"gradient": norm, "loss": float(loss)}

    def count_step(self, values: Mapping[str, float], fault: str) -> None:
        """Count a step; say which samples were in one that was skipped."""
        self.watch.count(values, fault)
        if self.watch.total_bad_steps:
            self.log_stats({"bad_steps": self.watch.total_bad_steps})
        if fault:
            self.tell(
                f"step {self.batches_seen // self.accumulate}: {fault}, step skipped; {self._suspects()}"
            )

    def _suspects(self) -> str:
        """The samples whose numbers are not finite, or all that the step has seen on this rank."""
        faulty = faulty_keys(self._current) if self._current is not None else []
        named = faulty or self.step_keys
        more = f" and {len(named) - 16} more" if len(named) > 16 else ""
        return f"{'samples' if faulty else 'one of'}: {', '.join(named[:16])}{more}"

    def _watch_engine(self, optimizer: Any) -> None:
        """DeepSpeed holds the gradients and asks for their norm itself: it is told which steps to skip."""

        def fault(norm: float) -> str:
            self._values_seen = self._values(norm)
            self._fault_seen = self.watch.fault(self._values_seen)
            if self._logs_step:  # all ranks ask, and get copies
                self.log_stats(norms_of_parts(self, sharded=True))
            return self._fault_seen

        if self._watched is not optimizer:
            self._watched, name = optimizer, type(optimizer).__name__
            if not watch_engine(optimizer, fault):
                self.tell(f"{name} of DeepSpeed: of the bad steps only the non-finite are skipped")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        engine = getattr(self.trainer.strategy, "deepspeed_engine", None)
        if engine is None or self.batches_seen % self.accumulate:
            return
        norm = engine.get_global_grad_norm()
        values, fault = self._values_seen, self._fault_seen
        if getattr(engine.optimizer, "overflow", False):
            fault = fault or "non-finite gradient"
        if norm is not None:
            self.log_stats({"grad_norm": values.get("gradient", float(norm))})
        self.count_step(values, fault)

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["accumulate"] = self.accumulate
        checkpoint["memo"] = self.memo
        checkpoint["watch"] = self.watch.state_dict()
        if self.balance is not None:
            checkpoint["gradient_norms"] = dict(self.balance.norms)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Steps are what counts: a run may go on with other ranks, and with as many more batches in a step.
        self.batches_seen = checkpoint["batches_seen"] // checkpoint["accumulate"] * self.accumulate
        self.memo = checkpoint["memo"]
        if checkpoint["accumulate"] != self.accumulate:
            _count_batches(checkpoint["loops"]["fit_loop"], self.batches_seen)
        if "watch" in checkpoint:  # those of older versions have none
            self.watch.load_state_dict(checkpoint["watch"])
        if self.balance is not None:
            self.balance.norms = dict(checkpoint.get("gradient_norms", {}))


def _count_batches(loop: dict[str, Any], batches_seen: int) -> None:
    """Tell Lightning's loop how many batches it has seen, as it counts them now."""
    for counts in loop["epoch_loop.batch_progress"].values():
        if isinstance(counts, dict):
            # A checkpoint is saved at the end of a batch that is processed and not yet completed.
            counts.update({name: batches_seen - (name == "completed") for name in counts})


def faulty_keys(batch: Batch) -> list[str]:
    """Keys of the samples whose own numbers are not finite."""
    finite_B = torch.ones(len(batch.keys), dtype=torch.bool)
    for item in dataclasses.fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor) and value.is_floating_point() and len(value) == len(batch.keys):
            finite_B &= value.reshape(len(value), -1).isfinite().all(1).cpu()
    return [key for key, finite in zip(batch.keys, finite_B, strict=True) if not finite]


def step_seed(seed: int, step: int, rank: int, purpose: str) -> int:
    """One 63-bit seed for each use of randomness, the same in an unbroken and in a resumed run."""
    text = f"{seed}|{step}|{rank}|{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
