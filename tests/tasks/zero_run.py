"""Toy trainings under ZeRO, all in one start: processes are forked when everything has been imported.

python -m tests.tasks.zero_run FOLDER      writes FOLDER/<start>-rank<n>.json, {"<strategy>": record}
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  before the processes are forked
import torch
from lightning import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from omniaudio.data.datamodule import StepData
from omniaudio.tasks.base import LossTerm, Task
from omniaudio.training.checkpoint import Checkpoints, SafeCheckpointIO
from omniaudio.training.freeze import FreezeProof
from omniaudio.training.strategies import gathered_state, make_strategy
from tests.tasks.test_base import Points, PointSteps, PointTask, make_task

STEPS, BAD = 6, 3
ZERO = ("zero1", "zero2", "zero3")


class OneBadRank(PointSteps):
    """The third step is not finite on the last process alone."""

    def batch(self, step, part, num_parts):  # type: ignore[no-untyped-def]
        batch = super().batch(step, part, num_parts)
        if step == BAD and part == num_parts - 1:
            batch.x_BD[0, 0] = float("nan")
        return batch


class EvenSteps(PointSteps):
    """Eight points a step, so that every way to part them has the same means."""

    def batch(self, step, part, num_parts):  # type: ignore[no-untyped-def]
        x_BD = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return Points(keys=[f"point-{step}"], x_BD=x_BD[part::num_parts])


class EvenTask(PointTask):
    """Without noise, and with frozen weights that matter."""

    def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
        error_BD = (self.net(batch.x_BD) + self.frozen(batch.x_BD) - batch.x_BD) ** 2
        return {"mse": LossTerm(error_BD.sum(), error_BD.numel())}

    def counted(self, batch: Points, number: int) -> dict[str, float]:
        return {"mse": batch.x_BD.numel()}


class LargeAndSmall(PointSteps):
    """Two batches of one number: the gradient of the second is lost in bfloat16 beside that of the first."""

    def batch(self, step, part, num_parts):  # type: ignore[no-untyped-def]
        return Points(keys=["one"], x_BD=torch.full((1, 1), 2.0 ** (-9 * part)))


class ProductTask(PointTask):
    """A loss whose gradient is what the batch holds."""

    def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
        return {"mse": LossTerm(self.net(batch.x_BD).sum(), 1)}


def linear(optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 - step / (num_training_steps + 1))


def even_task(seed: int = 0) -> EvenTask:
    """Sizes that two processes cannot share evenly, four groups of parameters."""
    return make_task(  # type: ignore[return-value]
        STEPS, EvenTask, scheduler=linear, accumulate=2, seed=seed, weight_decay=0.3, lr_factors={"net.0.*": 0.5},
        modules={
            "net": lambda: nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 4)),
            "frozen": lambda: nn.Linear(4, 1),
        },
    )  # fmt: skip


def make_trainer(
    folder: Path,
    processes: int,
    strategy: str,
    offload: bool = False,
    precision: Any = "32-true",
    **settings: Any,
) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=processes, strategy=make_strategy(strategy, offload), max_epochs=1, logger=False,
        plugins=[] if strategy in ZERO else [SafeCheckpointIO()],
        precision=precision, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=folder,
        log_every_n_steps=1, **settings,
    )  # fmt: skip


def record_steps(task: Task) -> dict[str, list[Any]]:
    """Norms and learning rates after each step."""
    found: dict[str, list[Any]] = {"norms": [], "parts": [], "rates": []}

    def end(*_: object) -> None:
        if task.batches_seen % task.accumulate:
            return
        found["norms"].append(float(task.stats["grad_norm"]))
        parts = {name: float(value) for name, value in task.stats.items() if "/part/" in name}
        found["parts"].append(dict(sorted(parts.items())))
        found["rates"].append([group["lr"] for group in task.trainer.optimizers[0].param_groups])

    task.on_train_batch_end = end  # type: ignore[method-assign, assignment]
    return found


def bad_step(folder: Path, strategy: str) -> dict[str, Any]:
    """A step that one process alone cannot take; then frozen weights that one process alone has moved."""
    task = make_task(STEPS, scheduler=linear)
    told: list[str] = []
    task.tell = told.append
    trainer = make_trainer(folder, 2, strategy)
    writes = trainer.is_global_zero
    proof = FreezeProof(folder / f"{strategy}-freeze.json")
    task.on_train_start = lambda: proof.before(task, resumed=False, writes=writes)  # type: ignore[method-assign]
    found = record_steps(task)
    trainer.fit(task, StepData(lambda: OneBadRank(), lambda: PointSteps(), max_steps=STEPS, val_steps=1))
    proof.after(task, writes)
    record = {**found, "told": told, "bad": task.watch.total_bad_steps, "moved": ""}
    record["finite"] = all(bool(tensor.isfinite().all()) for tensor in gathered_state(task).values())
    weight = task.frozen[0].weight  # type: ignore[index]
    if trainer.global_rank == 1:
        with torch.no_grad():
            getattr(weight, "ds_tensor", weight).add_(1)
    try:
        proof.after(task, writes)
    except RuntimeError as error:
        record["moved"] = str(error)
    return record


def train(
    folder: Path,
    processes: int,
    strategy: str,
    *,
    stop: int = STEPS,
    since: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Two batches a step, clipped; every second step is saved; a start from another seed shows what is restored."""
    task = even_task(seed=0 if since is None else 1)
    trainer = make_trainer(
        folder, processes, strategy, callbacks=[Checkpoints(folder, every_steps=2, keep=9)],
        accumulate_grad_batches=2, gradient_clip_val=1.0, **settings,
    )  # fmt: skip
    found = record_steps(task)
    data = StepData(lambda: EvenSteps(), lambda: EvenSteps(), max_steps=stop, val_steps=1)
    trainer.fit(task, data, ckpt_path=since, weights_only=None if strategy in ZERO else True)
    return {**found, "weights": {name: value.tolist() for name, value in gathered_state(task).items()}}


def rounded(
    folder: Path,
    processes: int,
    strategy: str,
    stop: int = STEPS,
    since: Path | None = None,
    offload: bool = False,
) -> dict[str, Any]:
    """Computed with weights in bfloat16: what is written before the first step and after the last."""
    task = even_task()
    trainer = make_trainer(
        folder, processes, strategy, offload, "bf16-mixed", callbacks=[Checkpoints(folder, every_steps=2, keep=9)],
        accumulate_grad_batches=2, gradient_clip_val=1.0,
    )  # fmt: skip
    writes, start, moved = trainer.is_global_zero, dict[str, torch.Tensor](), ""
    proof = FreezeProof(folder / f"freeze-{processes}.json")

    def begin() -> None:
        start.update(gathered_state(task))
        proof.before(task, resumed=False, writes=writes)

    task.on_train_start = begin  # type: ignore[method-assign]
    data = StepData(lambda: EvenSteps(), lambda: EvenSteps(), max_steps=stop, val_steps=1)
    trainer.fit(task, data, ckpt_path=since)
    proof.after(task, writes)
    end = gathered_state(task)
    computed_with = {name: str(tensor.dtype) for name, tensor in task.named_parameters()}
    weight = task.frozen.weight
    with torch.no_grad():  # on one process alone
        getattr(weight, "ds_tensor", weight).add_(float(trainer.global_rank == processes - 1))
    try:
        proof.after(task, writes)
    except RuntimeError as error:
        moved = str(error)
    states = {
        which: {name: value.tolist() for name, value in state.items()}
        for which, state in {"start": start, "end": end}.items()
    }
    written = {name: str(tensor.dtype) for name, tensor in {**start, **end}.items()}
    return {**states, "written": written, "computed_with": computed_with, "moved": moved}


def summed(folder: Path, strategy: str, offload: bool = False) -> float:
    """The norm of a step whose second batch has a gradient of a 512th of the first one's, in bfloat16."""
    task = make_task(1, ProductTask, accumulate=2, modules={"net": lambda: nn.Linear(1, 1, bias=False)})
    trainer = make_trainer(folder, 1, strategy, offload, precision="bf16-mixed", accumulate_grad_batches=2)
    found = record_steps(task)
    trainer.fit(task, StepData(lambda: LargeAndSmall(), lambda: PointSteps(), max_steps=1, val_steps=1))
    return float(found["norms"][0])


def step(folder: Path, strategy: str, number: int) -> Path:
    return folder / strategy / f"step-{number:08d}.ckpt"


def whole(folder: Path) -> dict[str, Any]:
    found = {name: {"bad": bad_step(folder, name), **train(folder / name, 2, name)} for name in ZERO}
    for name in ZERO:
        found[f"{name}-offload"] = train(folder / f"{name}-offload", 2, name, offload=True)
        found[f"{name}-bf16"] = rounded(folder / f"{name}-bf16", 2, name)
        found[f"{name}-offload-bf16"] = rounded(folder / f"{name}-offload-bf16", 2, name, offload=True)
    return {**found, "ddp": {"bad": bad_step(folder, "ddp")}}


def fewer(folder: Path) -> dict[str, Any]:
    found = {"single": train(folder / "single", 1, "single")}
    for name in ZERO:
        found[name] = train(folder / f"{name}-fewer", 1, name, stop=5, since=step(folder, name, 2))
        since = step(folder, f"{name}-bf16", 2)
        found[f"{name}-bf16"] = rounded(folder / f"{name}-fewer-bf16", 1, name, since=since)
    sums = {name: summed(folder / f"{name}-summed", name) for name in ZERO}
    return {
        **found,
        "summed": {**sums, "zero3-offload": summed(folder / "offload-summed", "zero3", offload=True)},
    }


def more(folder: Path) -> dict[str, Any]:
    """ZeRO 1 and 2 change places."""
    before = {"zero1": "zero2", "zero2": "zero1", "zero3": "zero3"}
    return {
        name: train(folder / f"{name}-more", 2, name, since=step(folder, f"{before[name]}-fewer", 4))
        for name in ZERO
    }


def fork(processes: int, work: Callable[[Path], dict[str, Any]], folder: Path) -> None:
    """Do ``work`` in processes as torchrun would have started them; when one fails, all end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = set()
    for rank in range(processes):
        child = os.fork()
        if child:
            children.add(child)
            continue
        signal.alarm(600)  # nobody waits longer
        os.environ.update(
            MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(processes)
        )
        try:
            (folder / f"{work.__name__}-rank{rank}.json").write_text(json.dumps(work(folder)))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"{work.__name__}: a process failed")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fork(2, whole, folder)
    fork(1, fewer, folder)
    fork(2, more, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
