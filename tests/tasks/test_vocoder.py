"""Vocoder task: who learns when, one step a batch, resume, errors."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from omniaudio.data.datamodule import StepData
from omniaudio.data.planning import PooledPlan
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.tasks.vocoder import VocoderTask
from omniaudio.training.checkpoint import Checkpoints, SafeCheckpointIO
from omniaudio.training.loggers import JsonLinesLogger
from omniaudio.training.recovery import StepWatch
from omniaudio.training.schedule import warmup_cosine
from omniaudio.training.strategies import make_strategy
from omniaudio.types import WaveBatch
from omniaudio.vocoders.discriminators import WaveDiscriminator
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.istft import ISTFTVocoder
from tests.vocoders.vocoder_fixtures import ALL, SOURCE, SPEC

ROOT = Path(__file__).parents[2]
WIDE = MelSpec(24000, 512, 128, 512, 10, 0.0, 12000.0, "ln", False)
WEIGHTS = dict.fromkeys(("mel/l1", "adv/gen", "fm/disc", "tpr/gen", "adv/disc", "tpr/disc"), 1.0)
ALL_LOSSES = ("train/grad_norm", "val/mel/l1", *(f"train/{name}" for name in WEIGHTS))
WITH_F0 = {**WEIGHTS, "f0/l1": 1.0}


class WaveSource:
    def __init__(self, rate_hz: int = 24000, bad: int = -1, peak: float = float("inf")) -> None:
        self.rate_hz, self.bad, self.peak = rate_hz, bad, peak
        self.plan = PooledPlan([1.0] * 4, 1.0, seed=0)

    def batch(self, step: int, part: int, num_parts: int) -> WaveBatch:
        wav = 0.1 * torch.randn(2, 12 * 480 + 100, generator=torch.Generator().manual_seed(step))
        if step == self.bad:
            wav[0] *= self.peak
        return WaveBatch(
            keys=[f"wave-{step}"] * 2,
            wav_BN=wav,
            num_samples_B=torch.tensor([wav.shape[1]] * 2),
            sample_rate_hz=self.rate_hz,
            kinds=["asr", "asr"],
            texts=["", ""],
            languages=["en", "en"],
        )


class SharedWaves(WaveSource):
    """The processes share one batch out."""

    def batch(self, step: int, part: int, num_parts: int) -> WaveBatch:
        whole, own = super().batch(step, 0, 1), slice(part, None, num_parts)
        items = ("keys", "wav_BN", "num_samples_B", "kinds", "texts", "languages")
        return dataclasses.replace(whole, **{name: getattr(whole, name)[own] for name in items})


def new_istft() -> nn.Module:
    return ISTFTVocoder(SPEC, 8, 16, 1, 1920)


def new_hift() -> nn.Module:
    return HiFT(SPEC, 8, [8, 15], [16, 31], [3], [[1]], [3, 3], 8, 16, 4, SOURCE)


def new_task(vocoder: Callable[[], nn.Module] = new_istft, **settings: Any) -> VocoderTask:
    arguments: dict[str, Any] = {
        "modules": {"vocoder": vocoder, "discriminator": lambda: WaveDiscriminator([2], [512], 0.125)},
        "mel_loss_specs": [WIDE],
        "judged_frames": 6,
        "loss_weights": WEIGHTS,
        "optimizer": partial(torch.optim.AdamW, lr=0.001),
        "scheduler": partial(warmup_cosine, warmup_share=0.1, min_share=0.1),
        "trainable": ["*"],
        "max_steps": 4,
    }
    return VocoderTask(**{**arguments, **settings})


def run(
    folder: Path,
    task: VocoderTask,
    stop: int,
    resume: bool = False,
    kind: Any = WaveSource,
    devices: int = 1,
    **source: Any,
) -> list[str]:
    checkpoints = Checkpoints(folder / "checkpoints", every_steps=2)
    logger = JsonLinesLogger(folder / "metrics.jsonl", lambda: task.batches_seen)
    newest = checkpoints.newest() if resume else None
    if newest and os.environ.get("LOCAL_RANK", "0") == "0":
        logger.cut_after(int(newest.stem.split("-")[1]))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=make_strategy("ddp" if devices > 1 else "single"),
        max_epochs=1,
        logger=[logger],
        callbacks=[checkpoints],
        plugins=[SafeCheckpointIO()],
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        precision="bf16-mixed",
    )
    data = StepData(lambda: kind(**source), kind, max_steps=stop, val_steps=1)
    trainer.fit(task, data, ckpt_path=newest, weights_only=True if newest else None)
    assert trainer.global_step == stop
    return (folder / "metrics.jsonl").read_text().splitlines()


def constant(optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
    """No warm-up: the first step has a rate too."""
    return LambdaLR(optimizer, lambda step: 1.0)


def unmoved(task: VocoderTask, fresh: VocoderTask) -> list[str]:
    """Parameters that are as they were born."""
    fresh.loss_weights = task.loss_weights
    fresh.configure_model()
    before = dict(fresh.named_parameters())
    return [name for name, value in task.named_parameters() if torch.equal(value, before[name])]


def moved(task: VocoderTask, make: Callable[[], VocoderTask] = new_task) -> dict[str, bool]:
    fresh = make()
    fresh.configure_model()
    before = fresh.state_dict()
    changed = [name for name, value in task.state_dict().items() if not torch.equal(value, before[name])]
    return {part: any(n.startswith(part) for n in changed) for part in ("vocoder", "discriminator")}


def test_both_learn(tmp_path: Path) -> None:
    task = new_task()
    lines = run(tmp_path, task, stop=2)
    assert moved(task) == {"vocoder": True, "discriminator": True}
    assert all(any(f'"train/{name}"' in line for line in lines) for name in WEIGHTS)
    assert any('"val/mel/l1"' in line for line in lines)
    assert all(p.requires_grad for p in task.parameters())


def test_discriminators_join_late(tmp_path: Path) -> None:
    task = new_task(adversarial_from=0.5)
    run(tmp_path / "early", task, stop=2)
    assert moved(task) == {"vocoder": True, "discriminator": False}
    task = new_task(adversarial_from=0.5)
    run(tmp_path / "late", task, stop=4)  # the first of their steps has rate 0: warm-up
    assert moved(task) == {"vocoder": True, "discriminator": True}


def test_a_stopped_run_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    whole_task, again_task = new_task(), new_task()
    whole = run(tmp_path / "whole", whole_task, stop=4)
    run(tmp_path / "broken", new_task(), stop=3)
    again = run(tmp_path / "broken", again_task, stop=4, resume=True)
    assert again == whole
    for ours, theirs in zip(again_task.parameters(), whole_task.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compared"),
    [
        ("istft", ALL_LOSSES),
        ("spike", (*ALL_LOSSES, "train/bad_steps")),  # in the third step, on the first rank
        ("finetune", ALL_LOSSES),
        ("late hift", ("train/f0/l1", "val/f0/l1")),  # the harmonic source draws on every rank by itself
    ],
    ids=["istft", "spike", "finetune", "late hift"],
)
def test_two_processes_learn_as_one_and_go_on_as_if_unbroken(
    tmp_path: Path, kind: str, compared: tuple[str, ...]
) -> None:
    """Every rank has the same vocoder and discriminators, to the bit; the losses are those of one process."""
    from tests.tasks.vocoder_run import KINDS

    make, source = KINDS[kind]
    words = [sys.executable, "-m", "tests.tasks.vocoder_run", str(tmp_path), kind]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *others = [
        torch.load(tmp_path / f"{name}-rank{rank}.pt", weights_only=True)
        for name in ("unbroken", "broken")
        for rank in range(2)
    ]
    task = make()
    lines = [json.loads(line) for line in run(tmp_path / "one", task, stop=4, kind=source)]
    for state in others:
        assert [name for name in first if not torch.equal(first[name], state[name])] == []
    task.load_state_dict(first)
    assert moved(task, make) == {"vocoder": True, "discriminator": True}
    both = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("unbroken", "broken")]
    assert both[0] == both[1]
    spread = [json.loads(line) for line in both[0].splitlines()]
    judged = [line["step"] for line in spread if "train/adv/disc" in line]
    assert judged == list(range(1 + round(task.adversarial_from * 4), 5))
    for name in ("step", *compared):
        values = [[line[name] for line in found if name in line] for found in (spread, lines)]
        assert len(values[0]) >= 2 and values[0] == pytest.approx(values[1], rel=0.01, abs=1e-5), name


@pytest.mark.parametrize("kind", ALL)
def test_every_vocoder_and_both_kinds_of_discriminators_learn(tmp_path: Path, kind: str) -> None:
    """Two steps move every parameter of either."""
    task = new_task(ALL[kind], loss_weights=WITH_F0, scheduler=constant, weight_decay=0.0)
    run(tmp_path, task, stop=2)
    assert unmoved(task, new_task(ALL[kind])) == []
    parts = {name.split(".")[1] for name, _ in task.discriminator.named_parameters(prefix="discriminator")}
    assert parts == {"periods", "resolutions"}


@pytest.mark.parametrize("alone", [True, False])
def test_the_f0_predictor_learns_from_pitch_and_from_nothing_else(tmp_path: Path, alone: bool) -> None:
    weights = {name: float((name == "f0/l1") == alone) for name in WITH_F0}
    task = new_task(new_hift, loss_weights=weights, scheduler=constant, weight_decay=0.0)
    run(tmp_path, task, stop=1)
    still = [name for name in unmoved(task, new_task(new_hift)) if name.startswith("vocoder.")]
    predictor = [name for name, _ in task.named_parameters() if name.startswith("vocoder.f0_predictor.")]
    others = [name for name, _ in task.named_parameters() if name.startswith("vocoder.")]
    others = [name for name in others if name not in predictor]
    assert len(predictor) == 17 and sorted(still) == sorted(others if alone else predictor)


def test_f0_loss_by_hand() -> None:
    """A predictor that always says 120 Hz, a tone of 150 Hz and silence: 30 Hz off, and 120 Hz off."""
    task = new_task(new_hift, loss_weights=WITH_F0)
    task.configure_model()
    predictor = task.vocoder.f0_predictor
    with torch.no_grad():
        predictor.classifier.weight.zero_()
        predictor.classifier.bias.fill_(120.0)
    time_N = torch.arange(40 * 480) / 24000
    wav_BN = torch.stack([0.5 * torch.sin(2 * torch.pi * 150 * time_N), torch.zeros_like(time_N)])
    term = task.generate(dataclasses.replace(WaveSource().batch(0, 0, 1), wav_BN=wav_BN))[0]["f0/l1"]
    assert term.count == 80 and float(term.total.detach()) == pytest.approx(40 * 30 + 40 * 120)
    task = new_task(new_hift)
    with pytest.raises(UserError, match="f0/l1"):
        task.configure_model()


def watched(told: list[str] | None = None, **settings: Any) -> VocoderTask:
    """One that knows after two steps what a high loss is."""
    task = new_task(scheduler=constant, **settings)
    task.watch = StepWatch(loss_factor=1.2, window=2)
    task.tell = (told if told is not None else []).append
    return task


def learned(task: VocoderTask, part: int) -> list[torch.Tensor]:
    """Parameters and moments of the generator (0) or the discriminators (1)."""
    module, optimizer = (task.vocoder, task.discriminator)[part], task.trainer.optimizers[part]
    states = [optimizer.state.get(p, {}) for p in module.parameters()]
    return [*module.parameters(), *(value for state in states for value in state.values())]


@pytest.mark.parametrize(
    ("peak", "expected"), [(float("inf"), "non-finite gradient, step"), (1e4, "loss of .* times its level")]
)
def test_a_non_finite_step_is_skipped(tmp_path: Path, peak: float, expected: str) -> None:
    """And one with a spike: neither part moves, nor what its optimizer remembers, nor the discriminators' schedule."""
    told: list[str] = []
    before, after, good = watched(), watched(told), watched()
    run(tmp_path / "before", before, stop=2)
    run(tmp_path / "after", after, stop=3, bad=2, peak=peak)
    run(tmp_path / "good", good, stop=3)
    assert len(told) == 1 and re.match(f"step 3: {expected}", told[0]) and "wave-2" in told[0]
    for part in (0, 1):
        pairs = list(zip(learned(before, part), learned(after, part), strict=True))
        assert len(pairs) > 4 and all(torch.equal(*pair) for pair in pairs)
        moved = zip(learned(before, part), learned(good, part), strict=True)
        assert not all(torch.equal(*pair) for pair in moved), "a good step moves it"
    counts = [
        [entry.scheduler.last_epoch for entry in task.trainer.lr_scheduler_configs]
        for task in (before, after, good)
    ]
    assert counts == [[2, 2], [3, 2], [3, 3]]
    assert all(torch.isfinite(value).all() for part in (0, 1) for value in learned(after, part))


def test_the_first_step_of_the_discriminators_can_be_a_bad_one(tmp_path: Path) -> None:
    """They are as they were born, without a state; so is the generator when their gradient alone is bad."""
    told: list[str] = []
    task, fresh = watched(told), new_task()
    task.configure_model()
    next(task.discriminator.parameters()).register_hook(lambda gradient: gradient / 0)
    run(tmp_path, task, stop=1)
    assert told[0].startswith("step 1: non-finite gradient of the discriminators, step skipped")
    assert len(unmoved(task, fresh)) == len(list(fresh.parameters()))
    assert [len(optimizer.state) for optimizer in task.trainer.optimizers] == [0, 0]
    task = watched(told, adversarial_from=0.5)
    run(tmp_path / "late", task, stop=3, bad=2, peak=1e4)
    assert re.match("step 3: loss of", told[1]) and not task.trainer.optimizers[1].state
    still = [name for name in unmoved(task, new_task()) if name.startswith("discriminator.")]
    assert len(still) == len(list(task.discriminator.parameters()))


def test_the_norm_that_is_logged_is_that_before_clipping(tmp_path: Path) -> None:
    task = new_task(gradient_clip=1e-3)
    run(tmp_path, task, stop=1)
    assert task.stats["grad_norm"] > 0.01


def test_discriminators_have_their_own_rate() -> None:
    task = new_task(discriminator_rate=0.5, scheduler=partial(warmup_cosine, warmup_share=0.0, min_share=0.1))
    task.configure_model()
    (generator, discriminator), schedules = task.configure_optimizers()
    for entry in schedules:
        entry["scheduler"].step()  # past the warm-up
    assert discriminator.param_groups[0]["lr"] == pytest.approx(0.5 * generator.param_groups[0]["lr"])


def test_crops_match() -> None:
    task = new_task()
    task.configure_model()
    wav = torch.arange(20 * 480.0)[None]
    one, two = task._judged_crop(wav, wav + 0.5)
    assert one.shape == (1, 6 * 480)
    assert torch.equal(one + 0.5, two)
    assert one[0, 0] % 480 == 0


def test_user_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accumulate=2"):
        new_task(accumulate=2)
    with pytest.raises(UserError, match="audio of 16000 Hz; the vocoder makes 24000 Hz"):
        run(tmp_path, new_task(), stop=1, rate_hz=16000)
    with pytest.raises(UserError, match=r"no weight for .*tpr/disc"):
        new_task(loss_weights={"mel/l1": 1.0}).configure_model()
