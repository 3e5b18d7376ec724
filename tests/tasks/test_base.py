"""The training layer on a toy task: global means, freezing, resume after a kill, non-finite steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from omniaudio.data.datamodule import StepData
from omniaudio.data.planning import PooledPlan
from omniaudio.errors import UserError
from omniaudio.tasks import base
from omniaudio.tasks.base import LossTerm, Task, faulty_keys, step_seed
from omniaudio.training.balance import GradientBalance
from omniaudio.training.callbacks import Rehearsal
from omniaudio.training.checkpoint import Checkpoints, SafeCheckpointIO
from omniaudio.training.loggers import JsonLinesLogger
from omniaudio.training.recovery import Return
from omniaudio.training.schedule import warmup_cosine
from omniaudio.types import Batch, WaveBatch


@dataclass(kw_only=True)
class Points(Batch):
    x_BD: Tensor


class PointSteps:
    """Step s holds s % 3 + 2 points; the steps ``bad`` hold a NaN, or a number as large as is said."""

    def __init__(self, bad: Mapping[int, float] | None = None) -> None:
        self.bad = dict(bad or {})
        self.plan = PooledPlan([1.0] * 4, 1.0, seed=0)

    def batch(self, step: int, part: int, num_parts: int) -> Points:
        x_BD = torch.randn(step % 3 + 2, 4, generator=torch.Generator().manual_seed(step))
        if step in self.bad:
            x_BD[0, 0] = self.bad[step]
        return Points(keys=[f"point-{step}"], x_BD=x_BD[part::num_parts])

    def largest(self, num_parts: int) -> Iterator[Points]:
        for size in (50, 60):
            yield Points(keys=["largest"], x_BD=torch.randn(size // num_parts, 4))


class PointTask(Task):
    def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
        noisy = batch.x_BD + 0.1 * torch.randn_like(batch.x_BD)
        error_BD = (self.net(noisy) - batch.x_BD) ** 2 + 0 * self.frozen(noisy)
        return {"mse": LossTerm(error_BD.sum(), error_BD.numel())}

    def counted(self, batch: Points, number: int) -> dict[str, float]:
        return {"mse": batch.x_BD.numel()}


def make_task(max_steps: int, kind: type[PointTask] = PointTask, **settings: object) -> PointTask:
    arguments: dict[str, object] = dict(
        modules={
            "net": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 4)),
            "frozen": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
        },
        loss_weights={"mse": 1.0},
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        scheduler=partial(warmup_cosine, warmup_share=0.1, min_share=0.1),
        trainable=["net.*"],
        max_steps=max_steps,
    )
    return kind(**{**arguments, **settings})  # type: ignore[arg-type]


def run(
    folder: Path, task: Task, stop: int, bad: Mapping[int, float] | None = None, resume: bool = False,
    log_every: int = 1, rehearses: bool = False,
) -> list[str]:  # fmt: skip
    checkpoints = Checkpoints(folder / "checkpoints", every_steps=2)
    logger = JsonLinesLogger(folder / "metrics.jsonl", lambda: task.batches_seen // task.accumulate)
    newest = checkpoints.newest() if resume else None
    if newest:
        logger.cut_after(int(newest.stem.split("-")[1]))
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=[logger],
        callbacks=[
            Return(checkpoints, folder / "left_out.jsonl"), checkpoints, *([Rehearsal()] if rehearses else [])
        ],
        plugins=[SafeCheckpointIO()],
        accumulate_grad_batches=task.accumulate,
        val_check_interval=4 * task.accumulate, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        log_every_n_steps=log_every,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder, gradient_clip_val=1.0,
    )  # fmt: skip
    data = StepData(lambda: PointSteps(bad), lambda: PointSteps(), max_steps=stop, val_steps=2)
    trainer.fit(task, data, ckpt_path=newest)
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("log_every", [1, 2])
def test_a_checkpoint_gets_its_name_when_its_step_has_been_logged(tmp_path, monkeypatch, log_every):
    """A kill before leaves the checkpoint before; a kill after finds every line up to the checkpoint."""
    found = {}
    rename = Path.rename

    def watched(path, target):
        if target.suffix == ".ckpt":
            lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
            found[int(target.stem.split("-")[1])] = max(
                line["step"] for line in lines if "train/loss" in line
            )
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    run(tmp_path, make_task(7), 7, log_every=log_every)
    assert len(found) > 1 and all(logged == step for step, logged in found.items())
    assert max(found) == 6


def test_a_stopped_run_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    whole_task = make_task(9)
    whole = run(tmp_path / "whole", whole_task, stop=9)
    run(tmp_path / "broken", make_task(9), stop=5)  # the last checkpoint is of step 4: step 5 is lost
    again_task = make_task(9)
    again = run(tmp_path / "broken", again_task, stop=9, resume=True)
    assert again == whole
    assert any('"val/mse"' in line for line in whole)
    for ours, theirs in zip(again_task.parameters(), whole_task.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class CountingNet(nn.Module):
    """Its output follows from what it has seen, as with books that learn from every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x_BD: Tensor) -> Tensor:
        if self.training:
            self.seen.add_(x_BD.detach().sum(0))
        return self.inner(x_BD) + self.seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rehearsal_of_the_largest_batch_leaves_no_trace(tmp_path: Path, accumulate: int) -> None:
    """Same lines, weights and checkpoints with it and without; it goes forward and back, beside gradients."""
    seen: list[tuple[int, int]] = []

    class Watched(PointTask):
        def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
            if split == "train":
                seen.append((self.batches_seen, len(batch.x_BD)))
                self.log_stats({"size": len(batch.x_BD)})
                held = all(p.grad is not None for p in self.net.parameters())
                assert held or batch.keys != ["largest"], "as in the second batch of a step"
            return super().losses(batch, split)

    modules = {"net": CountingNet, "frozen": lambda: nn.Linear(4, 4)}
    settings = {"modules": modules, "accumulate": accumulate}
    lines, tasks = {}, {}
    for name, rehearses in (("with", True), ("without", False)):
        balance = GradientBalance(["net.*"], every_steps=1, equalise=True)
        task = tasks[name] = make_task(5, Watched, balance=balance, **settings)
        lines[name] = run(tmp_path / name, task, stop=5, rehearses=rehearses)
        if rehearses:
            largest = [(at, size) for at, size in seen if size > 4]
            assert largest == [(accumulate, 50 // accumulate), (accumulate, 60 // accumulate)], (
                "after the first step"
            )
            lines[name] += run(
                tmp_path / name, make_task(9, Watched, **settings), stop=9, resume=True, rehearses=True
            )
            assert [at for at, size in seen if size > 4][2:] == [5 * accumulate] * 2, (
                "and again in a run that goes on"
            )
        else:
            lines[name] += run(tmp_path / name, make_task(9, Watched, **settings), stop=9, resume=True)
    assert lines["with"] == lines["without"] and any("grad_norm/mse" in line for line in lines["with"])
    states = [task.state_dict() for task in tasks.values()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_too_little_memory_for_the_largest_batch_is_one_line(tmp_path: Path) -> None:
    class Full(PointTask):
        def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
            if batch.keys == ["largest"]:
                raise torch.OutOfMemoryError("tried to allocate 9 GiB")
            return super().losses(batch, split)

    with pytest.raises(
        UserError, match=r"largest batch .*lower batch_sec.*max_positions.*\(tried to allocate 9 GiB\)"
    ):
        run(tmp_path, make_task(3, Full), stop=3, rehearses=True)


def test_a_run_goes_on_with_another_number_of_batches_in_a_step(tmp_path: Path) -> None:
    """Two batches a step for four steps, then one: step, samples and validations as if nothing had changed."""
    seen: list[str] = []

    class Watched(PointTask):
        def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
            if split == "train":
                seen.append(f"{batch.keys[0]} of {self.batches_seen // self.accumulate}")
            return super().losses(batch, split)

    run(tmp_path, make_task(9, Watched, accumulate=2), stop=5)
    del seen[:]
    task = make_task(9, Watched)
    lines = [json.loads(line) for line in run(tmp_path, task, stop=9, resume=True)]
    assert seen == [f"point-{step} of {step + 1}" for step in range(4, 9)]
    assert task.batches_seen == 9 and task.trainer.global_step == 9
    assert [line["step"] for line in lines if "train/mse" in line] == list(range(1, 10))
    assert [line["step"] for line in lines if "val/mse" in line] == [4, 8]


def test_what_is_logged_every_second_step_stays_so_when_batches_of_a_step_change(tmp_path: Path) -> None:
    run(tmp_path, make_task(9, accumulate=2), stop=5, log_every=2)
    lines = [json.loads(line) for line in run(tmp_path, make_task(9), stop=9, resume=True, log_every=2)]
    assert [line["step"] for line in lines if "train/mse" in line] == [2, 4, 6, 8]


def test_held_out_losses_are_means_over_all_positions(tmp_path: Path) -> None:
    """Steps of 2 and 3 points, the second without a single position of the loss ``rare``."""

    class Rare(PointTask):
        def losses(self, batch: Points, split: str) -> dict[str, LossTerm]:
            num_points = len(batch.x_BD)
            rare = 0 if split == "val" and num_points == 3 else 1
            zero = self.net(batch.x_BD).sum() * 0
            return {
                "mse": LossTerm(zero + num_points**2, num_points),
                "rare": LossTerm(zero + 7 * rare, rare),
            }

    lines = run(tmp_path, make_task(4, Rare, loss_weights={"mse": 1.0, "rare": 1.0}), stop=4)
    (held_out,) = (json.loads(line) for line in lines if "val/mse" in line)
    assert held_out["val/mse"] == pytest.approx((4 + 9) / (2 + 3))
    assert held_out["val/rare"] == pytest.approx(7.0)


def test_frozen_is_without_gradient_and_in_eval_mode() -> None:
    task = make_task(1)
    task.configure_model()
    assert not any(p.requires_grad for p in task.frozen.parameters())
    assert all(p.requires_grad for p in task.net.parameters())
    assert task.net[1].training and not task.frozen[1].training


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="nett.*matches no parameter.*net.0"):
        make_task(1, trainable=["nett.*"]).configure_model()


def test_weights_must_name_every_loss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weight for \['mse'\]"):
        run(tmp_path, make_task(1, loss_weights={"l1": 1.0}), stop=1)


def test_a_non_finite_step_is_skipped_and_its_samples_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(3)
    run(tmp_path, task, stop=3, bad={1: float("nan")})
    assert all(torch.isfinite(p).all() for p in task.parameters())
    assert "point-1" in capsys.readouterr().out
    assert task.watch.total_bad_steps == 1


def test_only_the_samples_at_fault_are_named() -> None:
    wav_BN = torch.zeros(3, 8)
    lengths = {"num_samples_B": torch.tensor([8, 8, 8]), "sample_rate_hz": 16000}
    words = {"kinds": ["asr"] * 3, "texts": ["", "", ""], "languages": ["en", "en", "en"]}
    batch = WaveBatch(keys=["a", "b", "c"], wav_BN=wav_BN, **lengths, **words)
    assert faulty_keys(batch) == []
    wav_BN[1, 3] = float("nan")
    assert faulty_keys(batch) == ["b"]


def test_all_samples_of_a_step_are_named_when_none_is_at_fault() -> None:
    """A step of two batches; what is wrong came of neither batch's numbers."""
    told: list[str] = []
    task = make_task(4, accumulate=2)
    task.tell = told.append
    task.configure_model()
    for step in range(4):
        task.begin_step(PointSteps().batch(step, 0, 1))
    task.count_step({}, "non-finite gradient")
    assert told[0].endswith("one of: point-2, point-3"), "and none of the step before"


class Zero:
    """Stands for a trainer, its strategy, DeepSpeed's engine and its optimizer."""

    def __init__(self, norm: float, overflow: bool) -> None:
        self.strategy = self.deepspeed_engine = self.optimizer = self
        self.world_size, self.global_rank = 1, 0
        self.norm, self.overflow = norm, overflow

    def get_global_grad_norm(self) -> float:
        return self.norm

    def zero_grad(self, set_to_none: bool) -> None:
        pass


def test_under_zero_a_step_that_deepspeed_skipped_counts_as_bad(monkeypatch) -> None:
    told: list[str] = []
    task = make_task(4)
    task.tell = told.append
    task.configure_model()
    monkeypatch.setattr("lightning.LightningModule.optimizer_step", lambda *_: None)
    for step, (norm, overflow) in enumerate(
        [(2.5, False), (float("inf"), True), (float("inf"), True), (1.0, False)]
    ):
        task.begin_step(PointSteps().batch(step, 0, 1))
        task._trainer = Zero(norm, overflow)  # type: ignore[assignment]
        task.optimizer_step()
        assert task.stats["grad_norm"] == norm
        assert task.watch.bad_steps == (0, 1, 2, 0)[step]
    assert [line.split(";")[0] for line in told] == [
        f"step {n}: non-finite gradient, step skipped" for n in (2, 3)
    ]
    assert task.watch.total_bad_steps == 2 and "point-1" in told[0]


def test_damaged_samples_are_told_once_and_counted_and_too_many_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = PointSteps.batch

    def damaged(self: PointSteps, step: int, part: int, num_parts: int) -> Points:
        points = batch(self, step, part, num_parts)
        points.damaged = [f"clip {number} is damaged" for number in range(min(step, 2))]
        return points

    monkeypatch.setattr(PointSteps, "batch", damaged)
    told: list[str] = []
    task = make_task(4)
    task.tell = told.append
    lines = [json.loads(line) for line in run(tmp_path, task, stop=4)]
    assert told == ["left out: clip 0 is damaged", "left out: clip 1 is damaged"]
    counts = {
        line["step"]: line["train/damaged_samples"] for line in lines if "train/damaged_samples" in line
    }
    assert counts == {2: 1, 3: 2, 4: 2}
    monkeypatch.setattr(base, "MAX_DAMAGED", 1)
    with pytest.raises(UserError, match="2 samples are damaged, the last: clip 1 is damaged"):
        run(tmp_path / "again", make_task(4), stop=4)


def test_gradient_norms_are_logged_by_part(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run(tmp_path, make_task(2), stop=2)]
    logged = {
        name: value
        for line in lines
        if line["step"] == 1
        for name, value in line.items()
        if "grad_norm" in name
    }
    parts = {name: value for name, value in logged.items() if "part/" in name}
    assert parts.keys() == {"train/grad_norm/part/net.0", "train/grad_norm/part/net.2"}, (
        "and none of what is frozen"
    )
    assert sum(value**2 for value in parts.values()) == pytest.approx(
        logged["train/grad_norm"] ** 2, rel=1e-4
    )


def test_learning_rates_by_pattern() -> None:
    """Matrices decay and vectors do not, whatever their rate; the schedule moves all of them alike."""
    task = make_task(10, lr_factors={"net.0.*": 0.5, "net.*.bias": 0.1}, weight_decay=0.3)
    task.configure_model()
    found = task.configure_optimizers()
    names = {parameter: name for name, parameter in task.named_parameters()}
    groups = {
        names[parameter]: (group["initial_lr"], group["weight_decay"])
        for group in found["optimizer"].param_groups
        for parameter in group["params"]
    }
    assert groups == {
        "net.0.weight": (pytest.approx(0.005), 0.3),
        "net.0.bias": (pytest.approx(0.001), 0.0),
        "net.2.weight": (pytest.approx(0.01), 0.3),
        "net.2.bias": (pytest.approx(0.001), 0.0),
    }
    with pytest.raises(UserError, match=r"task\.lr_factors: pattern 'nett\.\*' matches no parameter"):
        wrong = make_task(10, lr_factors={"nett.*": 0.5})
        wrong.configure_model()
        wrong.configure_optimizers()
    with pytest.raises(UserError, match=r"task\.lr_factors: net\.\*: 0; must be positive"):
        wrong.lr_factors = {"net.*": 0}
        wrong.configure_optimizers()


def test_step_seeds_differ_by_every_argument() -> None:
    seeds = {
        step_seed(*args)
        for args in [(0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b")]
    }
    assert len(seeds) == 5
