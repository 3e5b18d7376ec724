"""How the sound came about: one part of the export as it was after so many steps, on the same held-out clips.

A stage that trains flow matching or the vocoder keeps that part in ``milestones/``. Each is put into the export, whose
other parts stay, and is measured and kept as sound: what a training from scratch may be held against.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from omniaudio.dialogue.evaluation import Clip, Track, cer_of, choose_clips, judge_variants, save_sample
from omniaudio.dialogue.folder import layout_of, read_model
from omniaudio.dialogue.model import PARTS, SpokenLanguageModel
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.fingerprint import Fingerprint, check_fingerprints
from omniaudio.metrics.asr_judge import AsrJudge, load_judge
from omniaudio.metrics.quality import check_measures, quality_rows
from omniaudio.metrics.records import Curve, Row, markdown, read_stage
from omniaudio.progress import track
from omniaudio.stage import Stage
from omniaudio.training.artifacts import find_milestones, load_module, milestone_name, read_fingerprint
from omniaudio.types import Codes

NO_MILESTONES = (
    "{folder}/milestones is empty: no step of milestones= was reached, or the stage is older; only its end"
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the export that can be heard.

    Attributes:
        heard: what becomes sound through it.
        loss: of its training; the one that means the same from the first step to the last.
    """

    heard: str
    loss: str


HEARD = {
    "flow": Part(heard="codes → flow matching → vocoder", loss="flow/mse"),
    "vocoder": Part(heard="copy synthesis (mel → vocoder)", loss="mel/l1"),
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A stage that trained such a part.

    Attributes:
        folder: of the stage.
        part: name in HEARD.
        folders: steps -> folder of the part after them; the last is that of ``final/``.
    """

    folder: Path
    part: str
    folders: Mapping[int, Path]


def find_trained(folder: Path) -> Trained:
    """Milestones and end of a stage.

    Raises:
        UserError: the stage is not there, or trains nothing that can be heard.
    """
    part = next((name for name in HEARD if (folder / "final" / name).is_dir()), None)
    if part is None:
        raise UserError(
            f"config curve.stages: {folder / 'final'} holds none of {', '.join(HEARD)}; "
            "run the stage first, or leave it out"
        )
    num_steps = int(yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["max_steps"])
    kept = {step: path / part for step, path in find_milestones(folder / "milestones").items()}
    return Trained(folder=folder, part=part, folders={**kept, num_steps: folder / "final" / part})


def check_curve(curve: Mapping[str, Any]) -> None:
    """The block ``curve`` of the config, or a UserError."""
    check_measures(curve["measures"])
    if not isinstance(curve["stages"], list) or not curve["stages"]:
        raise UserError(
            f"config curve.stages: {curve['stages']} is not a list of stages, such as [flow, vocoder]"
        )
    if not isinstance(curve["num_clips"], int) or curve["num_clips"] < 1:
        raise UserError(f"config curve.num_clips: {curve['num_clips']} must be a whole number, at least 1")


def write_curve(config: Mapping[str, Any], stages: Sequence[Trained], command: str, run: Stage) -> None:
    """Measure every stage; write ``results.json``, the sounds, and print one table a stage.

    Args:
        config: of ``omniaudio evaluate``.
        command: gives the same again.
    """
    curve = config["curve"]
    judge = load_judge(config["asr_judge"], config["device"], config["judge_dtype"])
    model = read_model(Path(config["model_dir"]), config["device"])
    clips = choose_clips(
        config["shards_dir"],
        config["split"],
        curve["num_clips"],
        config["min_words"],
        corpora=config["corpora"],
    )
    records = [
        score_stage(model, found, clips, curve["measures"], judge, run.folder, track) for found in stages
    ]
    result = {
        "command": command,
        "split": config["split"],
        "asr_judge": config["asr_judge"],
        "seconds_a_frame": model.mel_spec.hop / model.sample_rate_hz,
        "stages": records,
    }
    write_whole(run.folder / "results.json", json.dumps(result, indent=1, ensure_ascii=False))
    for record in records:
        for point in record["points"]:
            values = {f"{record['stage']}/{name}": value for name, value in point["values"].items()}
            run.metrics({"step": point["steps"], **values})
        head = f"{record['stage']}: {record['heard']}, {len(clips)} clips of {config['split']}"
        run.log("\n".join([head, markdown(table(record)), *record["notes"], ""]))
    run.log(f"{run.folder / 'results.json'}: {command}")


def with_part(
    model: SpokenLanguageModel, layout: Fingerprint, name: str, folder: Path
) -> SpokenLanguageModel:
    """The model with one part as ``folder`` has it. All others are shared, not copied.

    Args:
        model: stays as it is.
        layout: ``layout_of(model)``.

    Raises:
        UserError: the part was made for another tokenizer or another mel.
    """
    check_fingerprints(layout, read_fingerprint(folder), str(folder))
    parts: dict[str, Any] = {other: model.get_submodule(other) for other in PARTS}
    parts[name] = load_module(folder, str(model.device))
    try:
        changed = SpokenLanguageModel(**parts, text_tokenizer=model.text_tokenizer, settings=model.settings)
    except UserError as error:
        raise UserError(f"{folder} does not fit the export: {error}") from error
    return changed.to(model.device).eval()


def score_stage(
    model: SpokenLanguageModel,
    trained: Trained,
    clips: Sequence[Clip],
    measures: Sequence[str],
    judge: AsrJudge | None,
    folder: Path,
    track: Track,
) -> dict[str, Any]:
    """Sound and numbers of one stage, step by step; one milestone is in memory at a time.

    Args:
        folder: gets the sounds and mels of all clips, below ``<stage>/``.

    Returns:
        the record of the stage in ``results.json``: see ``table``, and ``save_sample`` for its samples.
    """
    made = make_sounds(model, trained, clips, track)
    below = folder / trained.folder.name
    samples = [save_sample(below, model, clip, sound) for clip, sound in zip(clips, made, strict=True)]
    wavs = {name: [of_clip[name] for of_clip, _ in made] for name in made[0][0]}
    recordings = [(clip.wav_N, clip.sample_rate_hz) for clip in clips]
    rate_hz = model.sample_rate_hz
    rows, means = quality_rows(
        recordings, {name: wavs[name] for name in wavs if name != "original"}, rate_hz, measures, track
    )
    values: dict[str, dict[str, float | None]] = {name: {} for name in wavs}
    for measure, of in means.items():
        for kind, value in of.items():
            values["original" if kind == "original recording" else kind][measure] = value
    if judge is not None:
        heard = judge_variants(judge, clips, wavs, rate_hz, track)
        for name, texts in heard.items():
            values[name]["CER"] = cer_of(clips, texts)
        for i, sample in enumerate(samples):
            sample["heard"] = {name: texts[i] for name, texts in heard.items()}
    part = HEARD[trained.part]
    losses = read_stage(trained.folder).curves.get(f"train/{part.loss}", [])
    return {
        "stage": trained.folder.name,
        "heard": part.heard,
        "loss": part.loss,
        "original": values.pop("original"),
        "points": [
            {"name": name, "steps": step, "loss": loss_at(losses, step), "values": values[name]}
            for step in trained.folders
            for name in [milestone_name(step)]
        ],
        "notes": notes_of(trained, rows),
        "samples": samples,
    }


def notes_of(trained: Trained, rows: Sequence[Row]) -> list[str]:
    """How to read each measure, what is not installed, and whether there was nothing but the end to hear."""
    notes = [] if len(trained.folders) > 1 else [NO_MILESTONES.format(folder=trained.folder)]
    first = {row.name.partition(", ")[0]: row for row in reversed(rows)}
    for measure in dict.fromkeys(row.name.partition(", ")[0] for row in rows):
        row = first[measure]
        notes.append(f"{measure}: {row.note}" if ", " in row.name else f"{measure}: {row.text}, {row.note}")
    return notes


def make_sounds(
    model: SpokenLanguageModel, trained: Trained, clips: Sequence[Clip], track: Track
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Of every clip the waveforms by "original" and milestone, and their log-mels (M, T) of the vocoder."""
    layout = layout_of(model)
    mels = [model.true_mel(clip.wav_N, clip.sample_rate_hz) for clip in clips]
    inputs: list[Any] = mels
    if trained.part == "flow":
        inputs = [model.encode(clip.wav_N, clip.sample_rate_hz) for clip in clips]
    made = [
        ({"original": clip.wav_N}, {"original": mel_BMT[0].cpu().numpy()})
        for clip, (mel_BMT, _) in zip(clips, mels, strict=True)
    ]
    for step, folder in track(trained.folders.items(), f"sound of {trained.folder.name}"):
        name = milestone_name(step)
        for i, wav_N in enumerate(spoken(with_part(model, layout, trained.part, folder), inputs)):
            made[i][0][name] = wav_N
            made[i][1][name] = model.true_mel(wav_N, model.sample_rate_hz)[0][0].cpu().numpy()
    return made


def spoken(model: SpokenLanguageModel, inputs: Sequence[Codes | tuple[Tensor, Tensor]]) -> list[np.ndarray]:
    """Codes through flow matching and vocoder, mels (mel_BMT, mel_len_B) through the vocoder."""
    mels = [model.mel(given, path="flow") if isinstance(given, Codes) else given for given in inputs]
    return [model.vocode(*mel)[0] for mel in mels]


def loss_at(curve: Curve, step: int) -> float | None:
    """Mean of a training loss over the tenth of the steps that ends in ``step``; None if none was logged there."""
    near = [value for at, value in curve if 0.9 * step < at <= step]
    return math.fsum(near) / len(near) if near else None


def table(record: Mapping[str, Any]) -> list[list[str]]:
    """Title line, the recording where it has numbers, and one line a milestone; the last is the end of the training."""
    points = record["points"]
    names = list(points[-1]["values"])
    lines = [["steps", f"training loss, {record['loss']}", *names]]
    if record["original"]:
        lines.append(["recording", "", *(shown(record["original"], name) for name in names)])
    for i, point in enumerate(points):
        end = " (end)" if i == len(points) - 1 else ""
        lines.append(
            [
                f"{point['steps']:,}{end}",
                shown(point, "loss"),
                *(shown(point["values"], name) for name in names),
            ]
        )
    return lines


def shown(values: Mapping[str, float | None], name: str) -> str:
    """A number as printed; nothing where there is none."""
    value = values.get(name)
    return "" if value is None else f"{value:.1%}" if name == "CER" else f"{value:.3f}"
