"""A released checkpoint as our parts, or our parts as a checkpoint under the released names.

Strict both ways: every tensor that is not used, not found or of another shape is named, and nothing is written.

    to=ours       reads released; writes parts_dir/<part>/ (weights, config, fingerprint), as a trained stage leaves it:
                  for omniaudio export (parts.vocoder=...) and for training to begin from (init={vocoder: ...})
    to=released   reads parts_dir/<part>/; writes released, a .safetensors file

The vision part of a released model is not ours: it is left out here, and not written back.

    omniaudio convert checkpoint=vocoder released=hift.pt parts_dir=exp/released
    omniaudio convert checkpoint=model released=FOLDER parts_dir=exp/released
    omniaudio convert to=released released=hift.safetensors parts_dir=exp/TAG/vocoder/final form=parametrizations
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from omniaudio.errors import UserError


def main(config: dict[str, Any]) -> None:
    """Convert one checkpoint."""
    folder = Path(__file__).parents[1] / "convert"
    systems = [name for name in _names("system") if (folder / f"{name}.py").is_file()]
    _check(config, "system", systems)
    table = importlib.import_module(f"omniaudio.convert.{config['system']}")
    _check(config, "checkpoint", list(table.CHECKPOINTS))
    _check(config, "form", list(table.FORMS))
    _check(config, "to", ["ours", "released"])
    if config["to"] == "ours":
        take(config, table)
    else:
        give(config, table)


def take(config: dict[str, Any], table: Any) -> None:
    """Their checkpoint to our parts."""
    import torch

    from omniaudio.cli.main import compose
    from omniaudio.config import build
    from omniaudio.convert.base import read_tensors
    from omniaudio.fingerprint import merge_fingerprints
    from omniaudio.stage import without
    from omniaudio.training.artifacts import save_module

    parts, converter = table.CHECKPOINTS[config["checkpoint"]]
    words = [f"experiment={config['system']}/flow", f"scale={config['scale']}", *config["overrides"]]
    nodes = compose("train", words)
    with torch.device("meta"):
        modules = {part: build(nodes[part], part) for part in parts}
    # A vocoder that was trained with CosyVoice's code has its discriminators in another file, and this prefix.
    theirs = {k.removeprefix("generator."): v for k, v in read_tensors(Path(config["released"])).items()}
    table.load_released(modules, theirs, converter(table.form_of(theirs)), config["released"])
    layout = merge_fingerprints(
        [module.fingerprint() for module in modules.values() if hasattr(module, "fingerprint")],
        config["released"],
    )
    for part, module in modules.items():
        folder, state = Path(config["parts_dir"]) / part, module.state_dict()
        node = without(nodes[part], {"attention"})  # the machine that loads it chooses anew
        save_module(folder, state, node, layout)
        print(f"{part}: {sum(tensor.numel() for tensor in state.values()):,} numbers in {folder}")


def give(config: dict[str, Any], table: Any) -> None:
    """Our parts to their checkpoint."""
    from omniaudio.training.artifacts import load_module, save_state

    parts, converter = table.CHECKPOINTS[config["checkpoint"]]
    path = Path(config["released"])
    if path.suffix != ".safetensors":
        raise UserError(f"config released: {config['released']!r}; what is written is a .safetensors file")
    modules = {part: load_module(Path(config["parts_dir"]) / part) for part in parts}
    theirs = table.to_released(modules, converter(config["form"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    save_state(theirs, beside)
    beside.replace(path)
    print(f"{len(theirs)} tensors in {path}")


def _names(group: str) -> list[str]:
    from omniaudio.cli.main import CONF_DIR

    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _check(config: dict[str, Any], key: str, allowed: list[str]) -> None:
    if config[key] not in allowed:
        raise UserError(f"config {key}: {config[key]!r} is not one of {', '.join(allowed)}")
