"""First weights under ZeRO 3 and without it: of all tiny stages, all kinds of backbones.

python -m tests.tasks.born_run FOLDER      writes FOLDER/<single, zero3>.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  before the processes are forked
import torch
import transformers  # noqa: F401
from safetensors.torch import save_file

from omniaudio.cli.main import compose
from omniaudio.cli.plan import make_plain_task
from omniaudio.lm.backbone import KINDS
from omniaudio.tasks.base import Task
from omniaudio.training.strategies import gathered_state
from tests.lm.test_backbone import SIZES
from tests.tasks.test_base import make_task
from tests.tasks.zero_run import fork, make_trainer

TRAININGS = ("text_lm", "tokenizer", "pretrain_stage1", "flow", "flow estimator=dit")


def tasks() -> dict[str, Task]:
    """Name -> what builds modules."""
    found = {
        words: make_plain_task(
            compose("train", [*f"experiment=baichuan_audio/{words}".split(), "scale=tiny"])
        )
        for words in TRAININGS
    }
    kinds = {
        f"{kind.__name__}{tied}": lambda kind=kind, tied=tied: kind(50, **SIZES, tie_embeddings=tied)
        for kind in KINDS
        for tied in (False, True)
    }
    return {**found, "kinds": make_task(1, modules=kinds, trainable=["*"])}


def born(folder: Path, processes: int, strategy: str) -> None:
    """Build it all as a training does."""
    trainer = make_trainer(folder, processes, strategy)
    trainer.strategy.setup_environment()
    state: dict[str, torch.Tensor] = {}
    for name, task in tasks().items():
        with trainer.strategy.tensor_init_context(), trainer.strategy.model_sharded_context():
            task.configure_model()
        assert any(hasattr(p, "ds_id") for p in task.parameters()) is (strategy == "zero3")
        state |= {f"{name}.{key}": value.clone() for key, value in gathered_state(task).items()}
    if trainer.is_global_zero:
        save_file(state, folder / f"{strategy}.safetensors")


def zero3(folder: Path) -> dict[str, Any]:
    born(folder, 2, "zero3")
    return {}


def single(folder: Path) -> dict[str, Any]:
    born(folder, 1, "single")
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork(1, single, Path(sys.argv[1]))
    fork(2, zero3, Path(sys.argv[1]))
