"""What a trained stage leaves: a folder with weights, the config that builds the module, and its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from omniaudio.config import build
from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint
from omniaudio.init import copy_whole, shape_of
from omniaudio.lm.lora import adapted

WEIGHTS, CONFIG, FINGERPRINT = "model.safetensors", "config.yaml", "fingerprint.json"


def save_module(
    folder: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], fingerprint: Fingerprint
) -> None:
    """Write ``folder`` beside and rename: it is complete or it is not there.

    Args:
        state: the module's state dict.
        config: the mapping with ``_target_`` that builds the module.
    """
    beside = folder.with_name(folder.name + ".tmp")
    beside.mkdir(parents=True, exist_ok=True)
    save_state(state, beside / WEIGHTS)
    (beside / CONFIG).write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
    (beside / FINGERPRINT).write_text(json.dumps(fingerprint, indent=1, sort_keys=True))
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    beside.rename(folder)


def save_state(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict as safetensors."""
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    try:
        save_file(whole, path)
    except SafetensorError as error:  # the library's own name for a full disk
        raise UserError(f"{path}: cannot write ({error}); free space, then run again") from error


def load_module(folder: str | Path, device: str = "cpu") -> nn.Module:
    """Build the module that ``save_module`` wrote, with its weights, in eval mode."""
    path = Path(folder)
    config = yaml.safe_load(_existing(path, CONFIG).read_text())
    module = cast(nn.Module, build(without_pretrained(config), str(path / CONFIG), _parts_only=True))
    load_weights(module, path)
    return module.to(device).eval()


def load_weights(module: nn.Module, folder: Path) -> None:
    """Copy weights into a module of the same shape; anything missing, unused or misshapen is an error."""
    path = _existing(folder, WEIGHTS)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); run the stage that writes it again") from error
    load_state(module, state, str(path))


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Strict copy of ``state`` into ``module``; also when ZeRO 3 has sharded the parameters.

    Raises:
        UserError: names every missing, unused or misshapen tensor.
    """
    ours = module.state_dict(keep_vars=True)
    state = adapted(state, ours, where)
    shapes = {name: tuple(shape_of(tensor)) for name, tensor in ours.items()}
    problems = [f"missing {name}" for name in shapes.keys() - state.keys()]
    problems += [f"unused {name}" for name in state.keys() - shapes.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)} there, {shape} here"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        raise UserError(f"{where} does not fit the configured module: {'; '.join(sorted(problems)[:8])}")
    copy_whole(ours, state)


def milestone_name(step: int) -> str:
    """Of a folder of ``milestones/``."""
    return f"step-{step:08d}"


def find_milestones(folder: Path) -> dict[int, Path]:
    """Step -> its folder, in order; ``folder`` need not exist."""
    return {int(path.name.split("-")[1]): path for path in sorted(folder.glob("step-*"))}


def read_fingerprint(folder: str | Path) -> Fingerprint:
    """The fingerprint that stands beside the weights."""
    return cast(Fingerprint, json.loads(_existing(Path(folder), FINGERPRINT).read_text()))


def without_pretrained(config: Any) -> Any:
    """The same config with every ``pretrained`` emptied: the weights come from the artefact, not from a hub."""
    if isinstance(config, Mapping):
        return {k: None if k == "pretrained" else without_pretrained(v) for k, v in config.items()}
    return [without_pretrained(v) for v in config] if isinstance(config, list) else config


def plain(value: Any) -> Any:
    """Mappings and sequences of any class as dicts and lists, for yaml."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing; run the stage that writes {folder} first")
    return path
