"""First weights under ZeRO 3 and without it: of tiny stages, of all kinds of backbones, of published models.

python -m tests.tasks.born_run FOLDER      writes FOLDER/<single, zero3>.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  before the processes are forked
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from omniaudio.cli.main import compose
from omniaudio.cli.plan import make_plain_task
from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.lm.backbone import KINDS, CausalBackbone, OtherBackbone
from omniaudio.tasks.base import Task
from omniaudio.training.artifacts import load_state
from omniaudio.training.strategies import gathered_state
from tests.encoders.test_whisper import SIZES as WHISPER_SIZES
from tests.encoders.test_whisper import save_whisper
from tests.lm.test_backbone import SIZES, THEIR_SIZES
from tests.tasks.test_base import make_task
from tests.tasks.zero_run import fork, make_trainer

TRAININGS = ("text_lm", "tokenizer", "pretrain_stage1", "flow", "flow estimator=dit")


def publish(folder: Path) -> None:
    """Text models with fewer words than ours, and an encoder."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    for tied in (False, True):
        config = Qwen2Config(**THEIR_SIZES, rope_parameters=rope, tie_word_embeddings=tied)
        Qwen2ForCausalLM(config).save_pretrained(folder / f"tied-{tied}")
    save_whisper(folder / "whisper")


def published(folder: Path, tied: bool) -> nn.Module:
    """Also what is drawn after them is the same."""
    backbone = CausalBackbone(50, **SIZES, tie_embeddings=tied, pretrained=str(folder / f"tied-{tied}"))
    encoder = WhisperEncoder(**WHISPER_SIZES, out_width=8, mel_skip=True, pretrained=str(folder / "whisper"))
    return nn.ModuleList([backbone, encoder, nn.Linear(3, 2)])


def with_adapters() -> nn.Module:
    """A model without adapters goes on with them."""
    plain, ours = CausalBackbone(50, **SIZES), CausalBackbone(50, **SIZES, lora={"rank": 2})
    load_state(ours, gathered_state(plain), "plain")
    return ours


def tasks(folder: Path) -> dict[str, Task]:
    """Name -> what builds modules."""
    modules: dict[str, Any] = {"with_adapters": with_adapters}
    modules["OtherBackbone"] = lambda: OtherBackbone("mistral", vocab_size=50, **SIZES)
    for tied in (False, True):
        for kind in KINDS:
            modules[f"{kind.__name__}-{tied}"] = lambda kind=kind, tied=tied: kind(
                50, **SIZES, tie_embeddings=tied
            )
        modules[f"published-{tied}"] = lambda tied=tied: published(folder, tied)
    found = {"modules": make_task(1, modules=modules, trainable=["*"])}
    for words in TRAININGS:
        config = compose("train", [*f"experiment=baichuan_audio/{words}".split(), "scale=tiny"])
        found[words] = make_plain_task(config)
    return found


def born(folder: Path, processes: int, strategy: str) -> dict[str, Any]:
    """Build it all as a training does."""
    trainer = make_trainer(folder, processes, strategy)
    trainer.strategy.setup_environment()
    state: dict[str, torch.Tensor] = {}
    for name, task in tasks(folder).items():
        with trainer.strategy.tensor_init_context(), trainer.strategy.model_sharded_context():
            task.configure_model()
        assert all(hasattr(p, "ds_id") is (strategy == "zero3") for p in task.parameters())
        state |= {f"{name}.{key}": value for key, value in gathered_state(task).items()}
    if trainer.is_global_zero:
        save_file(state, folder / f"{strategy}.safetensors")
    return {}


def single(folder: Path) -> dict[str, Any]:
    return born(folder, 1, "single")


def zero3(folder: Path) -> dict[str, Any]:
    return born(folder, 2, "zero3")


if __name__ == "__main__":
    torch.set_num_threads(1)
    publish(Path(sys.argv[1]))
    fork(1, single, Path(sys.argv[1]))
    fork(2, zero3, Path(sys.argv[1]))
