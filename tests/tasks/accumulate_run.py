"""A training of a tiny audio LLM on steps of four documents that are as uneven as can be.

python -m tests.tasks.accumulate_run STRATEGY DEVICES ACCUMULATE FOLDER

writes FOLDER/metrics.jsonl and FOLDER/weights.safetensors.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file, save_file

from omniaudio.data.datamodule import StepData
from omniaudio.data.planning import PooledPlan
from omniaudio.lm import cross_entropy
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.sequence.spans import DocumentLayouts, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.tasks.base import Task
from omniaudio.tasks.language_model import AudioLMTask
from omniaudio.training.loggers import JsonLinesLogger
from omniaudio.training.schedule import warmup_cosine
from omniaudio.training.strategies import gathered_state, make_strategy
from omniaudio.types import PackedBatch

SPACE, STEPS = TokenSpace(40, [6, 4, 3]), 3


class UnevenSteps:
    """Much speech, one word, one frame and many words: dealt to four parts, three have none of some loss."""

    def __init__(self) -> None:
        self.plan = PooledPlan([1.0] * 4, 1.0, seed=0)

    def batch(self, step: int, part: int, num_parts: int) -> PackedBatch:
        layouts, rng = DocumentLayouts(SPACE), np.random.default_rng(step)
        frames, words = rng.integers(3, size=(40, 3)), rng.integers(40, size=30).tolist()
        documents = [
            layouts.tts("a", words[:2], frames),
            layouts.text("b", words[2:3]),
            layouts.tts("c", words[3:4], frames[:1]),
            layouts.asr("d", words[4:5], frames[:3], words[5:]),
        ]
        return pack(documents[part::num_parts])


def make_lm() -> AudioLM:
    backbone = CausalBackbone(SPACE.vocab_size, 16, 1, 2, 1, 24)
    return AudioLM(backbone, AudioHead(16, [6, 4, 3], num_layers=1, head_dim=8), SPACE)


def make_task(accumulate: int) -> AudioLMTask:
    return AudioLMTask(
        modules={"lm": make_lm}, loss_weights={"ce/text": 1.0, "ce/audio": 2.0}, **settings(accumulate)
    )


def settings(accumulate: int) -> dict[str, Any]:
    """Of any task; plain descent, that a difference of gradients is one of weights."""
    return {
        "optimizer": partial(torch.optim.SGD, lr=0.3),
        "scheduler": partial(warmup_cosine, warmup_share=0.0, min_share=0.1),
        "trainable": ["*"],
        "max_steps": STEPS,
        "accumulate": accumulate,
    }


def fit(task: Task, source: type[Any], folder: Path, strategy: str = "single", devices: int = 1) -> None:
    accumulate = task.accumulate
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=make_strategy(strategy), max_epochs=1,
        logger=[JsonLinesLogger(folder / "metrics.jsonl", lambda: task.batches_seen // accumulate)],
        accumulate_grad_batches=accumulate, log_every_n_steps=1, precision="32-true", limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(task, StepData(source, source, max_steps=STEPS, val_steps=1))
    state = gathered_state(task)
    if trainer.is_global_zero:
        save_file(state, folder / "weights.safetensors")


def check_equal(folder: Path, whole: Path, names: set[str]) -> None:
    """What two trainings have logged of their losses, ``names`` among them, and their weights."""
    logged, wanted = losses_of(folder), losses_of(whole)
    assert {name for _, name in wanted} >= names
    assert logged.keys() == wanted.keys() and logged == pytest.approx(wanted, abs=3e-6)
    ours, theirs = (load_file(path / "weights.safetensors") for path in (folder, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def losses_of(folder: Path) -> dict[tuple[int, str], float]:
    """By step and name; all that is logged but norms of gradients and the learning rate."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name.startswith("train/") and "grad_norm" not in name
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "zero3":  # four positions at a time: the ranks have other numbers of chunks, or none
        cross_entropy.FEW_LOGITS = cross_entropy.MAX_LOGITS = 4 * SPACE.vocab_size
    fit(make_task(int(sys.argv[3])), UnevenSteps, Path(sys.argv[4]), sys.argv[1], int(sys.argv[2]))
