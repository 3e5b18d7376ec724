"""Gather the trained parts into one folder that omniaudio.load reads.

Reads final/ of the tokenizer, LLM, flow and vocoder stages and the text tokenizer; writes ${exp_dir}/export/model/:

    model.safetensors   weights of all parts, weight norm folded      fingerprint.json   the token layout
    config.yaml         what builds them; how replies are sampled     README.md          model card
    tokenizer.json      of the LLM's text

    omniaudio export system=NAME scale=mini
    omniaudio export system=NAME scale=mini parts.lm=exp/TAG/pretrain_stage2/final/lm    # without SFT
    omniaudio export system=NAME scale=mini onnx=true        # and flow_prenet.onnx, flow_step.onnx, vocoder.onnx
    omniaudio export system=NAME scale=mini int8=true model_dir=exp/TAG/int8             # a smaller one beside it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from omniaudio.config import build
from omniaudio.errors import UserError
from omniaudio.stage import STAMP, stage


def main(config: dict[str, Any]) -> None:
    """Write the export, unless it is done."""
    if config["int8"] and (config["onnx"] or config["programs"]):
        raise UserError(
            "config int8: true; graphs (onnx, programs) are made of the weights as they are: leave one of them out"
        )
    from omniaudio.dialogue.folder import num_parameters, settings_config, write_model
    from omniaudio.dialogue.portable import check_onnx, write_onnx, write_programs

    # A wrong word is said before an older export is set aside.
    build(settings_config(config["dialogue"]), "dialogue")
    if config["onnx"]:
        check_onnx(config["dialogue"]["flow_solver"])
    parts = {name: Path(folder) for name, folder in config["parts"].items()}
    text_tokenizer = Path(config["text_tokenizer"])
    inputs = [made_by(folder) for folder in parts.values()] + [text_tokenizer]
    with stage(record_folder(config), config=config, inputs=inputs) as run:
        if run.done:
            return
        from omniaudio.dialogue.card import read_attribution, write_card

        folder = Path(config["model_dir"])
        settings = {**config["dialogue"], "voices": trained_voices(made_by(parts["lm"]))}
        model = write_model(folder, parts, text_tokenizer, settings, config["int8"])
        graphs = [*(write_onnx(folder, model) if config["onnx"] else [])]
        graphs += write_programs(folder, model) if config["programs"] else []
        write_card(folder, model, title=config["tag"], attribution=read_attribution(Path(config["data_dir"])))
        sizes = {name: num_parameters(model.get_submodule(name)) for name in parts}
        run.metrics({"step": 0, **{f"parameters/{name}": size for name, size in sizes.items()}})
        told = ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items())
        if graphs:
            run.log(f"{folder}: {', '.join(graphs)}")
        if graphs and model.settings.mel_path != "flow":
            path = model.settings.mel_path
            run.log(
                f"{folder} speaks through its {path} mel (dialogue.mel_path={path}), which has no graph: those of the "
                "flow say something else"
            )
        run.log(f"{folder}: {told}; load it with omniaudio.load({str(folder)!r})")


def record_folder(config: dict[str, Any]) -> Path:
    """Where the record of an export stands: each ``model_dir`` has its own, so that none sets another aside."""
    usual = Path(config["exp_dir"]) / "export"
    folder = Path(config["model_dir"])
    return usual if folder == usual / "model" else folder.with_name(f"{folder.name}.record")


def trained_voices(stage_dir: Path) -> dict[str, list[str]]:
    """Names that the documents of a stage gave to voices (``mixture.voices``), or of the stage that it began from,
    each with its speakers."""
    path = stage_dir / "config.yaml"
    config = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    steps, begun_from = config.get("train_steps", {}), (config.get("init") or {}).get("lm")
    if "mixture" not in steps and begun_from:  # preferences have pairs
        return trained_voices(Path(begun_from).parents[1])
    voices = {str(label): name for label, name in (steps.get("mixture", {}).get("voices") or {}).items()}
    return {
        name: [label for label in voices if voices[label] == name] for name in sorted(set(voices.values()))
    }


def made_by(folder: Path) -> Path:
    """The stage whose ``final/`` holds a part, or the part's own weights when no stage made it."""
    for parent in folder.parents[:2]:
        if (parent / STAMP).is_file():
            return parent
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} is missing; run the stage that trains it first")
    return weights
