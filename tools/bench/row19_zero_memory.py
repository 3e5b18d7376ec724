"""Bytes that each of two processes holds under ZeRO, against the arithmetic of `omniaudio plan` for the same model.

Real DeepSpeed on two CPU processes (gloo), real steps of an audio LLM. Counted are all tensors that are alive between
the backward pass and the update of the second step, when AdamW has its moments: parameters, gradients, optimizer. Ends
with exit code 1 if one is more than 15 % from the plan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from omniaudio.cli.main import compose
from omniaudio.cli.plan import make_batch, make_plain_task, parameter_counts
from omniaudio.training.needs import ParameterCount, PeakMemory, Sharing, model_states
from omniaudio.training.strategies import make_strategy

WORDS = [
    "experiment=baichuan_audio/pretrain_stage2", "scale=tiny", "unit_tokens=64", "backbone.hidden_size=256",
    "backbone.num_heads=4", "backbone.ffn_size=1024", "backbone.num_layers=6", "backbone.vocab_size=4096",
]  # fmt: skip
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
RUNS = (
    ("single", "fp32"),
    ("zero1", "fp32"),
    ("zero2", "fp32"),
    ("zero3", "fp32"),
    ("zero2", "bf16"),
    ("zero3", "bf16"),
)
BUCKET = 10_000  # numbers that DeepSpeed collects before it sends them: its default is larger than this model
ALLOWED = 0.15


class Weigh(Callback):
    """Writes what is alive after the last backward pass."""

    def __init__(self, watch: PeakMemory, folder: Path) -> None:
        self.watch, self.folder = watch, folder

    def on_after_backward(self, trainer: Trainer, task: torch.nn.Module) -> None:
        engine = getattr(trainer.strategy, "deepspeed_engine", None)
        inner = trainer.optimizers[0] if engine is None else engine.optimizer.optimizer
        moments = [t for state in inner.state.values() for t in state.values() if t.ndim]
        found = {
            "all": self.watch.alive,
            "weights": held([getattr(p, "ds_tensor", p) for p in task.parameters()]),
            "moments": held(moments),
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


def held(tensors: list[torch.Tensor]) -> int:
    """Bytes, each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def run(strategy: str, precision: str, folder: Path) -> None:
    """One process of the training."""
    torch.set_num_threads(1)
    config = compose("plan", WORDS)
    made = make_strategy(strategy)
    if strategy != "single":
        made.config["zero_optimization"] |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    with PeakMemory() as watch:
        trainer = Trainer(
            accelerator="cpu", devices=1 if strategy == "single" else 2, strategy=made, precision=PRECISIONS[precision],
            max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=folder,
            callbacks=[Weigh(watch, folder)],
        )  # fmt: skip
        trainer.fit(make_plain_task(config), DataLoader([make_batch(config, 1)] * 2, batch_size=None))


def compare(strategy: str, precision: str, count: ParameterCount) -> bool:
    """Train, print the row; whether both processes hold what the plan says."""
    with tempfile.TemporaryDirectory() as name:
        words = [sys.executable, __file__, strategy, precision, name]
        settings = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=900)
        if done.returncode:
            print(f"19 {strategy}, {precision}: {done.stderr.strip().splitlines()[-1]}")
            return False
        ranks = [json.loads(path.read_text()) for path in sorted(Path(name).glob("rank*.json"))]
    states = model_states(count, Sharing(strategy, len(ranks), precision == "bf16"))
    most = max(ranks, key=lambda rank: rank["all"])
    ratio = most["all"] / states.total
    print(
        f"| 19 memory of {strategy}, {precision}, {len(ranks)} process{'es' * (len(ranks) > 1)}: "
        f"weights {most['weights'] / 1e6:.1f} MB, moments {most['moments'] / 1e6:.1f} MB | {most['all'] / 1e6:.1f} MB "
        f"| plan: {states.total / 1e6:.1f} MB | {ratio:.2f} | 1 within {ALLOWED:.0%} | | 1 of {os.cpu_count()} |",
        flush=True,
    )
    return abs(ratio - 1) <= ALLOWED


def main() -> None:
    count = sum(parameter_counts(compose("plan", WORDS)).values(), ParameterCount(0, 0, 0))
    near = [compare(strategy, precision, count) for strategy, precision in RUNS]
    if not all(near):
        sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        main()
