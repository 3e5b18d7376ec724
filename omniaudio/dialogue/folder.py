"""The exported folder: everything that the model needs, and nothing of the training.

model.safetensors   weights of all parts; names begin with the part's name; weight norm is folded
config.yaml         version, the config that builds each part, defaults of generation
tokenizer.json      of the LLM's text
fingerprint.json    the token layout that all parts share
README.md           model card
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import omniaudio
from omniaudio.config import build
from omniaudio.dialogue.int8 import to_int8
from omniaudio.dialogue.model import PARTS, DialogueSettings, SpokenLanguageModel
from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint, check_fingerprints, merge_fingerprints
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.decoding import lay_out_for_decoding
from omniaudio.training.artifacts import (
    load_module,
    load_state,
    plain,
    read_fingerprint,
    save_state,
    without_pretrained,
)

WEIGHTS, CONFIG, TOKENIZER, FINGERPRINT, CARD = (
    "model.safetensors",
    "config.yaml",
    "tokenizer.json",
    "fingerprint.json",
    "README.md",
)

INT8_PARTS = ("lm", "flow", "vocoder")
"""What may be rounded. Another tokenizer would write other codes."""


def read_model(folder: Path, device: str = "cpu") -> SpokenLanguageModel:
    """Load an exported folder, in eval mode.

    Raises:
        UserError: a file is missing or broken, or the parts do not share one token layout.
    """
    for name in (WEIGHTS, CONFIG, TOKENIZER, FINGERPRINT):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; give the folder that `omniaudio export` made")
    config = _read_config(folder / CONFIG)
    parts = {
        name: build(
            without_pretrained(config["parts"][name]), f"{folder / CONFIG} parts.{name}", _parts_only=True
        )
        for name in PARTS
    }
    if config.get("int8"):  # exports before there was a choice do not say
        for name in INT8_PARTS:
            to_int8(parts[name], empty=True)
    settings = build(config["dialogue"], "dialogue", _parts_only=True)
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(
            f"{folder / WEIGHTS}: not a whole safetensors file ({error}); export again"
        ) from error
    load_state(nn.ModuleDict(parts), state, str(folder / WEIGHTS))
    model = SpokenLanguageModel(
        **parts, text_tokenizer=TextTokenizer.from_file(folder / TOKENIZER), settings=settings
    )
    check_fingerprints(layout_of(model), json.loads((folder / FINGERPRINT).read_text("utf-8")), str(folder))
    model = model.to(device).eval()
    lay_out_for_decoding(model.lm)
    return model


def layout_of(model: SpokenLanguageModel) -> Fingerprint:
    """The token layout that the loaded parts really have: weights and pieces are hashed again."""
    pieces = {"text_tokenizer": model.text_tokenizer.digest}
    return merge_fingerprints(
        [pieces, model.tokenizer.fingerprint(), model.lm.fingerprint()], "the model's own parts"
    )


def settings_config(dialogue: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of DialogueSettings as a config that ``build`` makes one of."""
    return {"_target_": f"{DialogueSettings.__module__}.{DialogueSettings.__name__}", **plain(dialogue)}


def write_model(
    folder: Path,
    parts: Mapping[str, Path],
    text_tokenizer: Path,
    dialogue: Mapping[str, Any],
    int8: bool = False,
) -> SpokenLanguageModel:
    """Gather trained parts into ``folder``: written beside and renamed, complete or not there.

    Args:
        folder: to write.
        parts: part name -> folder that ``save_module`` wrote.
        text_tokenizer: ``tokenizer.json`` of the LLM.
        dialogue: arguments of DialogueSettings, as a config.
        int8: linear layers of all parts but the tokenizer in 8 bits.

    Raises:
        UserError: a part is missing, or the parts' fingerprints contradict each other.
    """
    configs = {name: read_part_config(parts[name]) for name in PARTS}
    fingerprint = merge_fingerprints(
        (read_fingerprint(parts[name]) for name in PARTS), " + ".join(str(parts[name]) for name in PARTS)
    )
    modules = {name: load_module(parts[name]) for name in PARTS}
    for name, module in modules.items():
        if hasattr(module, "fold_weight_norm"):
            configs[name].update(cast(Any, module).fold_weight_norm())
    config = {
        "omniaudio_version": omniaudio.__version__,
        "int8": int8,
        "parts": configs,
        "dialogue": settings_config(dialogue),
    }
    model = SpokenLanguageModel(
        **cast(dict[str, Any], modules),
        text_tokenizer=TextTokenizer.from_file(text_tokenizer),
        settings=build(config["dialogue"], "dialogue"),
    )
    check_fingerprints(layout_of(model), fingerprint, str(folder))
    for name in INT8_PARTS if int8 else ():
        to_int8(modules[name])
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_state(nn.ModuleDict(modules).state_dict(), beside / WEIGHTS)
    (beside / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
    shutil.copyfile(text_tokenizer, beside / TOKENIZER)
    (beside / FINGERPRINT).write_text(json.dumps(fingerprint, indent=1, sort_keys=True))
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return model.eval()


def read_part_config(folder: Path) -> dict[str, Any]:
    """The config that builds a part, without pretrained sources: the export holds the weights."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing; run the stage that trains {folder.name} first")
    return cast(dict[str, Any], without_pretrained(yaml.safe_load(path.read_text("utf-8"))))


def num_parameters(module: nn.Module) -> int:
    """Numbers that were learned or measured: parameters and buffers that are saved."""
    return sum(tensor.numel() for tensor in torch.nn.Module.state_dict(module).values())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid yaml ({str(error).splitlines()[0]}); export again") from error
    missing = [key for key in ("parts", "dialogue") if key not in (config or {})]
    missing += [f"parts.{name}" for name in PARTS if not missing and name not in config["parts"]]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; export again")
    return cast(dict[str, Any], config)
