"""The page of an experiment: what was trained, how it sounds, what was measured, in which environment.

It is made of what the stages left; a stage that did not run is named on the page instead of its part.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import omniaudio
from omniaudio.dialogue.curve import table
from omniaudio.dialogue.report_parts import (
    curve_section,
    environment_section,
    freeze_section,
    number_section,
    stage_section,
)
from omniaudio.metrics import page as html
from omniaudio.metrics.page import Page
from omniaudio.metrics.plots import spectrograms
from omniaudio.metrics.records import StageRecord, read_json, read_stage
from omniaudio.progress import track

PLAYERS = {
    "original": "original",
    "copy": "copy synthesis",
    "coarse": "from coarse mel",
    "refined": "from refined mel",
    "flow": "from flow matching",
}
PICTURES = {"original": "original", "coarse": "coarse", "flow": "flow", "vocoded": "vocoded"}
RATE_NOTE = (
    "The corpus is recorded at {corpus} Hz and was resampled to {model} Hz for flow matching and vocoder: above "
    "{half} Hz there is nothing to learn, so nothing there is to be expected."
)


@dataclass
class Experiment:
    """All that the page is made of."""

    config: dict[str, Any]
    exp_dir: Path
    folder: Path  # of the report
    stages: dict[str, StageRecord]
    results: dict[str, Any]
    samples: list[dict[str, Any]]
    curve: dict[str, Any]  # of the sound, by training steps

    @property
    def missing(self) -> list[str]:
        return [name for name, record in self.stages.items() if not record.done]

    def newest(self) -> Mapping[str, Any]:
        """The last stamp that knows its environment."""
        stamps = [r.stamp for r in self.stages.values() if "processor" in r.stamp]
        return max(stamps, key=lambda stamp: str(stamp.get("date", "")), default={})

    def value(self, start: str) -> str | None:
        """Printed value of the last row of the results whose name begins so; None when not measured."""
        rows = [row for row in self.results.get("rows", []) if row["name"].startswith(start)]
        return rows[-1]["text"] if rows and rows[-1]["value"] is not None else None


def read_experiment(config: dict[str, Any], folder: Path) -> Experiment:
    """Read every stage's records; nothing has to be there."""
    exp_dir = Path(config["exp_dir"])
    samples_path = exp_dir / "generate" / "samples.json"
    return Experiment(
        config=config,
        exp_dir=exp_dir,
        folder=folder,
        stages={name: read_stage(exp_dir / name) for name in config["stages"]},
        results=read_json(exp_dir / "evaluate" / "results.json"),
        samples=_read_list(samples_path),
        curve=read_json(exp_dir / "evaluate_curve" / "results.json"),
    )


def write_page(experiment: Experiment) -> Path:
    """Write ``index.html`` with its pictures and sound below the report's folder."""
    page = _header(experiment)
    page.add("listen", "Listen: speech through the codes", _listen_lead(experiment), *_listen(experiment))
    page.add(
        "expect", "What to expect: sound by training steps", _expect_lead(experiment), *_expect(experiment)
    )
    page.add("says", "What it says", _says_lead(experiment), *_says(experiment))
    number_section(page, experiment.results, experiment.folder)
    stage_section(page, experiment.config, experiment.stages, experiment.folder)
    curve_section(page, experiment.stages, experiment.folder)
    freeze_section(page, experiment.stages)
    environment_section(page, experiment.config, experiment.newest())
    path = experiment.folder / "index.html"
    path.write_text(page.render(), "utf-8")
    return path


def _header(experiment: Experiment) -> Page:
    config, stamp = experiment.config, experiment.newest()
    recipe = config.get("recipe", experiment.stages)
    seconds = sum(float(experiment.stages[name].stamp.get("seconds", 0)) for name in recipe)
    checks = read_json(Path(config["data_dir"]) / "checks.json")
    hours = sum(sum(split.values()) for split in checks.get("hours", {}).values())
    speech = f", {60 * hours:.0f} min of speech" if hours else ""
    facts = [
        ("data", f"{config['data']}{speech}"),
        ("scale", str(config["scale"])),
        ("date", str(stamp.get("date", "unknown"))),
        ("commit", str(stamp.get("commit", "unknown"))),
        ("processor", f"{stamp.get('processor', 'unknown')}, {stamp.get('cores', '?')} cores"),
        ("all stages", f"{seconds / 60:.1f} minutes"),
    ]
    page = Page(
        title=str(config["title"]),
        lead="A spoken language model trained from recorded speech: it hears, writes, and speaks. This page holds what "
        "it sounds like, every number with the command that gives it, and how it was made.",
        facts=facts,
        footer=f"OmniAudio {omniaudio.__version__}. Made from {experiment.exp_dir}; needs no network.",
    )
    page.tiles = [
        html.tile(f"{seconds / 60:.0f} min", "from shards to this page"),
        html.tile(experiment.value("mel MAE"), "mel error with all books (log-mel, mean absolute)"),
        html.tile(
            experiment.value("CER, codes → flow matching → vocoder"), "CER of a judge on speech from codes"
        ),
        html.tile(experiment.value("CER, original"), "CER of the same judge on the recordings"),
        html.tile(experiment.value("CER of its own"), "CER of the model's own recognition"),
        html.tile(experiment.value("change"), "text perplexity after audio training"),
    ]
    return page


# -- reconstruction


def _listen_lead(experiment: Experiment) -> str:
    results = experiment.results
    if not results:
        return ""
    corpus, model = results["corpus_rate_hz"], results["sample_rate_hz"]
    note = RATE_NOTE.format(corpus=", ".join(map(str, corpus)), model=model, half=max(corpus) // 2)
    languages = ", ".join(results["languages"])
    return (
        f"Held-out clips ({results['split']} split: {languages}) that no stage was trained on. "
        "Copy synthesis is the recording's mel through the vocoder: what the vocoder can do at best. "
        "Coarse and refined are the tokenizer's own mels, "
        f"flow is what matching adds. {note if max(corpus) < model else ''}"
    )


def _listen(experiment: Experiment) -> list[str]:
    results, source = experiment.results, experiment.exp_dir / "evaluate"
    if not results.get("samples"):
        return [html.missing("No held-out speech yet: the stage `evaluate` has not run.")]
    seconds = results["mel"]["hop"] / results["sample_rate_hz"]
    cards = []
    samples = results["samples"][: experiment.config["max_samples"]]
    for i, sample in enumerate(track(samples, "pictures")):
        picture = f"images/clip{i}.png"
        with np.load(source / sample["mels"], allow_pickle=False) as mels:
            shown = {title: mels[name] for name, title in PICTURES.items()}
        spectrograms(experiment.folder / picture, shown, seconds)
        pictured = html.image(picture, f"spectrograms of {sample['key']}")
        cards.append(html.card(_clip_head(sample), pictured, _players(experiment, source, sample, PLAYERS)))
    return cards


def _clip_head(sample: dict[str, Any]) -> str:
    return (
        f'<div class="clip-head"><div class="said">{html.escape(sample["text"])}</div>'
        f"<div>{html.tag(sample['language'])} {html.tag(sample['key'])}</div></div>"
    )


def _players(experiment: Experiment, source: Path, sample: dict[str, Any], titled: Mapping[str, str]) -> str:
    """The variants of a sample that ``titled`` names, beside each other."""
    heard = sample.get("heard", {})
    players = [
        html.player(
            title,
            _copied(source / sample["wavs"][variant], experiment.folder),
            f"judge: “{heard[variant]}”" if variant in heard else "",
        )
        for variant, title in titled.items()
    ]
    return f'<div class="players">{"".join(players)}</div>'


# -- training steps


def _expect_lead(experiment: Experiment) -> str:
    return (
        "The export with one part as it was after so many steps of its training, on the same held-out clips. "
        "A training from scratch begins with noise: hold yours against these sounds, numbers and losses at the same "
        "step. The pictures show what is heard."
        if experiment.curve.get("stages")
        else ""
    )


def _expect(experiment: Experiment) -> list[str]:
    curve = experiment.curve
    if not curve.get("stages"):
        return [html.missing("No sound by training steps yet: `omniaudio evaluate task=curve` has not run.")]
    return [html.command(curve["command"]), *(_growth_card(experiment, record) for record in curve["stages"])]


def _growth_card(experiment: Experiment, record: dict[str, Any]) -> str:
    """One stage: numbers by step, one clip as a strip of pictures, all clips as sound."""
    titles, *lines = table(record)
    name = record["stage"]
    parts = [
        f"<h3>{html.code(name)}: {html.escape(record['heard'])}</h3>",
        html.table(
            [f"#{title}" for title in titles], [[html.escape(cell) for cell in line] for line in lines]
        ),
        *(html.note(line) for line in record["notes"]),
    ]
    source = experiment.exp_dir / "evaluate_curve" / name
    titled = {"original": "original"} | {p["name"]: f"step {p['steps']:,}" for p in record["points"]}
    for i, sample in enumerate(record["samples"][: experiment.config["max_samples"]]):
        parts.append(_clip_head(sample))
        if i == 0:
            picture = f"images/growth_{name}.png"
            with np.load(source / sample["mels"], allow_pickle=False) as mels:
                shown = {title: mels[point] for point, title in titled.items()}
            spectrograms(experiment.folder / picture, shown, experiment.curve["seconds_a_frame"], per_row=5)
            parts.append(html.image(picture, f"spectrograms of {sample['key']} by steps of {name}"))
        parts.append(_players(experiment, source, sample, titled))
    return html.card(*parts)


# -- generation


def _says_lead(experiment: Experiment) -> str:
    return (
        "From the export alone. Sentences marked “training” stand in the training split, “held out” ones do not. "
        "Samples are not chosen: these are all that were made, with the seed of the config."
        if experiment.samples
        else ""
    )


def _says(experiment: Experiment) -> list[str]:
    if not experiment.samples:
        return [html.missing("No generated speech yet: the stage `generate` has not run.")]
    titles = {
        "speak": "Text → speech",
        "transcribe": "Speech → text",
        "reply": "Speech → spoken reply (text and audio in turn)",
    }
    parts = []
    for kind, title in titles.items():
        cards = [_sample_card(experiment, sample) for sample in experiment.samples if sample["kind"] == kind]
        if cards:
            parts.append(
                f'<h3 style="margin:18px 0 8px">{title}</h3><div class="samples">{"".join(cards)}</div>'
            )
    return parts


def _sample_card(experiment: Experiment, sample: dict[str, Any]) -> str:
    source = experiment.exp_dir / "generate"
    kind = "training" if sample["source"] == "training" else "held"
    asked = f"asked to {sample['ask']}" if sample.get("ask") else ""
    tags = " ".join(
        html.tag(text, k)
        for text, k in ((sample["source"], kind), (sample.get("language", ""), ""), (asked, ""))
        if text
    )
    parts = [f"<div>{tags}</div>"]
    if sample.get("prompt_wav"):
        prompt = _copied(source / sample["prompt_wav"], experiment.folder)
        parts.append(
            html.player("it hears", prompt, f"“{sample['prompt_text']}”" if sample.get("prompt_text") else "")
        )
    elif sample.get("prompt_text"):
        parts.append(f'<div class="said">{html.escape(sample["prompt_text"])}</div>')
    if sample["kind"] != "speak":
        parts.append('<div style="margin-top:8px"><b style="font-size:12.5px">it writes</b></div>')
        parts.append(html.words(sample["text"]))
    if sample.get("wav"):
        cut = "" if sample.get("complete", True) else ", cut off at the limit of length"
        wav = _copied(source / sample["wav"], experiment.folder)
        parts.append(html.player("it says", wav, f"{sample['seconds']:.1f} s{cut}"))
    elif sample["kind"] != "transcribe":
        parts.append(html.note("it says nothing"))
    return html.card(*parts)


def _copied(wav: Path, folder: Path) -> str:
    """Copy a sound beside the page, so that the folder can be carried away; returns its relative path."""
    target = (
        folder
        / "audio"
        / f"{wav.parent.parent.name if wav.parent.name == 'samples' else wav.parent.name}_{wav.name}"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(wav, target)
    return f"audio/{target.name}"


def _read_list(path: Path) -> list[dict[str, Any]]:
    import json

    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else []
