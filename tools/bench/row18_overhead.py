"""Share of a training step of the mini tokenizer and of the mini audio LM outside forward, backward and optimizer.

A real training by `omniaudio train` on noise of speech's lengths with random words, or on what a recipe left:

    python tools/bench/row18_overhead.py [DATA_DIR EXP_DIR]

What counts as a step: losses, backward pass, clipping and AdamW. Outside: waiting for data, logging, checks, Lightning.
Validation and checkpoints are left out. Process CPU time; the wall's share stands beside, with what waits for disks.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import speech_like

from omniaudio.cli import extract, train
from omniaudio.cli.main import compose
from omniaudio.data.shards import ShardWriter
from omniaudio.frontend.audio import encode_audio
from omniaudio.tasks.base import Task
from omniaudio.tasks.language_model import AudioLMTask
from omniaudio.tasks.tokenizer import TokenizerTask

FIRST, STEPS = 5, 30  # the first steps hold the rehearsal and what torch makes once
TARGET = 0.05


class Clock:
    """CPU and wall time inside and outside of a step's own work, from step ``FIRST`` on."""

    def __init__(self) -> None:
        self.spent: dict[bool, np.ndarray] = {True: np.zeros(2), False: np.zeros(2)}
        self.inside, self.counts = False, False
        self.last = self.now()

    @staticmethod
    def now() -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])

    def turn(self, inside: bool) -> None:
        """The time since the last turn belongs to what it was in; then it is ``inside``."""
        now = self.now()
        if self.counts:
            self.spent[self.inside] += now - self.last
        self.inside, self.last = inside, now

    def around(self, work: Callable[..., Any], inside: bool = True) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.inside
            self.turn(inside)
            try:
                return work(*args, **kwargs)
            finally:
                self.turn(before)

        return timed

    def share(self) -> np.ndarray:
        """(CPU, wall) outside."""
        return self.spent[False] / (self.spent[False] + self.spent[True])


@contextmanager
def clocked() -> Iterator[Clock]:
    """A clock around the losses of tasks, backward passes, clipping and updates of all trainings within."""
    clock, update, ended = Clock(), torch.optim.AdamW.step, Task.on_train_batch_end

    def step(optimizer: Any, closure: Any = None) -> Any:
        """The forward and backward pass are a closure of the update, with Lightning's own work around them."""
        outside = None if closure is None else clock.around(closure, inside=False)
        return clock.around(update)(optimizer, outside)

    def end(task: Task, *args: Any) -> None:
        ended(task, *args)
        clock.turn(False)
        clock.counts = FIRST <= task.batches_seen < STEPS

    patches = [
        (TokenizerTask, "losses", clock.around(TokenizerTask.losses)),
        (AudioLMTask, "losses", clock.around(AudioLMTask.losses)),
        (torch.autograd, "backward", clock.around(torch.autograd.backward)),
        (torch.nn.utils, "clip_grad_norm_", clock.around(torch.nn.utils.clip_grad_norm_)),
        (torch.optim.AdamW, "step", step),
        (Task, "on_train_batch_end", end),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    try:
        for owner, name, timed in patches:
            setattr(owner, name, timed)
        yield clock
    finally:
        for owner, name, plain in kept:
            setattr(owner, name, plain)


def write_corpus(folder: Path) -> None:
    """Clips of two to nine seconds with about two and a half words a second, and texts."""
    draws = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "is")]
    words = ["".join(draws.choice(syllables, draws.integers(1, 4))) for _ in range(3000)]
    for split, num_clips in (("train", 240), ("dev", 16), ("test", 4)):
        with ShardWriter(folder / "shards", split) as writer:
            for i, wav in enumerate(speech_like(num_clips, 5.0, seed=num_clips)):
                text = " ".join(draws.choice(words, 1 + int(2.5 * len(wav) / 16000)))
                facts = {"num_samples": len(wav), "sample_rate_hz": 16000, "text": text, "language": "en"}
                facts |= {"speaker": f"voice-{i % 4}", "corpus": "noise"}
                writer.write(f"{split}-{i}", {"flac": encode_audio(wav.numpy(), 16000)}, facts)
    (folder / "texts").mkdir()
    for split, num_lines in (("train", 4000), ("dev", 100)):
        lines = [" ".join(draws.choice(words, draws.integers(4, 30))) for _ in range(num_lines)]
        (folder / "texts" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (folder / "ATTRIBUTION").write_text("noise: made by a bench\n")


def words_for(data_dir: Path, exp_dir: Path) -> list[str]:
    return ["scale=mini", f"data_dir={data_dir}", f"exp_dir={exp_dir}", "num_threads=1", "tag=bench"]


def run(stage: str, data_dir: Path, exp_dir: Path, steps: int = STEPS) -> Clock:
    """Train a stage anew, without validation and checkpoints before its end."""
    plan = f"schedule.{stage}"
    words = [
        f"{plan}.max_steps={steps}",
        f"{plan}.val_every_steps={steps}",
        f"{plan}.checkpoint_every_steps={steps}",
    ]
    with clocked() as clock:
        train.main(
            compose("train", [f"experiment=baichuan_audio/{stage}", *words_for(data_dir, exp_dir), *words])
        )
    return clock


def measure(folder: Path, data_dir: Path, left: Path | None) -> dict[str, Clock]:
    """Clocks of both trainings; ``left`` is the exp_dir of a recipe, whose text LLM and codes are read."""
    exp_dir = folder / "exp"
    exp_dir.mkdir()
    if left is None:
        run("text_lm", data_dir, exp_dir, steps=20)
    else:
        (exp_dir / "text_lm").symlink_to(left / "text_lm")
    clocks = {"tokenizer": run("tokenizer", data_dir, exp_dir)}
    if left is None:
        extract.main(compose("extract", ["system=baichuan_audio", *words_for(data_dir, exp_dir)]))
    else:
        (exp_dir / "tokenizer").rename(exp_dir / "measured")
        for name in ("tokenizer", "codes"):
            (exp_dir / name).symlink_to(left / name)
    return clocks | {"audio LM": run("ablation_single_stage", data_dir, exp_dir)}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, given = Path(name), [Path(word).absolute() for word in sys.argv[1:3]]
        if not given:
            write_corpus(folder / "data")
        clocks = measure(folder, *(given or [folder / "data", None]))
    for what, clock in clocks.items():
        share, steps = clock.share(), STEPS - FIRST
        print(
            f"| 18 step of the mini {what}, {steps} steps: {share[0]:.1%} outside forward, backward, optimizer (wall "
            f"{share[1]:.1%}), target {TARGET:.0%} | {sum(clock.spent.values())[0] / steps:.3f} s | itself: "
            f"{clock.spent[True][0] / steps:.3f} s | {1 - share[0]:.3f} | {1 - TARGET:.3g} | | 1 of {os.cpu_count()} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
