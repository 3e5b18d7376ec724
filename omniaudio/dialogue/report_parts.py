"""Sections of the report that are tables and curves: numbers, stages, losses, freezing, environment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import omniaudio
from omniaudio.metrics import page as html
from omniaudio.metrics.codes import BookUse
from omniaudio.metrics.page import Page
from omniaudio.metrics.plots import book_bars, book_curves, loss_curves, mae_by_books, quality_bars
from omniaudio.metrics.quality import SECTION as SIGNAL
from omniaudio.metrics.records import Curve, StageRecord, read_json

FLOW = (
    "waveform 16 kHz",
    "*speech tokenizer",
    "codes",
    "*audio LLM",
    "text and codes",
    "*mel decoder",
    "hidden states",
    "*flow matching",
    "mel",
    "*vocoder",
    "waveform 24 kHz",
)
MAX_CURVES = 12  # panels of one stage
NOT_LOSSES = (
    "grad_norm",
    "weight",
    "lr",
    "usage",
    "perplexity",
    "error",
    "restarts",
    "progress",
    "explained",
    "replaced_share",
    "commit_scale",
    "share",
    "too_long",
    "pieces",
)


def number_section(page: Page, results: Mapping[str, Any], folder: Path) -> None:
    """Every number with the command that gives it, and two pictures of the codes."""
    if not results.get("rows"):
        page.add("numbers", "Numbers", "", html.missing("No numbers yet: the stage `evaluate` has not run."))
        return
    book_bars(folder / "images/books.png", [BookUse(**book) for book in results["books"]])
    mae_by_books(folder / "images/mae.png", results["mel_mae"])
    pictures = [
        html.card(
            "<h3>Mel error by number of books</h3>", html.image("images/mae.png", "mel error by books")
        ),
        html.card("<h3>Use of the books</h3>", html.image("images/books.png", "use of the books")),
    ]
    tables = quality_cards(results, folder)
    shown_already = {SIGNAL} if tables else set()
    for section in dict.fromkeys(
        row["section"] for row in results["rows"] if row["section"] not in shown_already
    ):
        rows = [row for row in results["rows"] if row["section"] == section]
        commands = list(dict.fromkeys(row["command"] for row in rows))
        one = html.command(commands[0]) if len(commands) == 1 else ""
        columns = ["measure", "#value", "to read it"] + ([] if one else ["command"])
        cells = [
            [html.escape(r["name"]), f"<b>{html.escape(r['text'])}</b>", html.note(r["note"])]
            + ([] if one else [html.code(r["command"])])
            for r in rows
        ]
        tables.append(html.card(f"<h3>{html.escape(section)}</h3>", one, html.table(columns, cells)))
    scored = f" of {results['model_dir']}" if "model_dir" in results else ""  # older results do not say
    lead = (
        f"Measured{scored} on {results['num_clips']} clips ({results['clip_seconds']:.0f} s) "
        f"of the {results['split']} split, with the command above each table or beside each number. "
        + ("" if results["asr_judge"] else "No judge was given, so intelligibility has no numbers. ")
        + "A judge of the Whisper family is not independent of a tokenizer whose encoder began as a Whisper checkpoint."
    )
    shown = [
        f'<div class="{kind}">{"".join(cards)}</div>'
        for kind, cards in (("two", pictures), ("columns", tables))
    ]
    page.add("numbers", "Numbers", lead, *shown)


def quality_cards(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Measures of the signal as one table, a line for each kind of speech, and as bars; nothing if there are none."""
    means = results.get("signal") or {}
    kinds = list(max(means.values(), key=len, default={}))  # the recording is first, where a measure has it
    if not kinds:
        return []
    quality_bars(folder / "images/quality.png", means)
    rows = [row for row in results["rows"] if row["section"] == SIGNAL]
    found = {row["name"]: row for row in rows}
    cells = [
        [
            html.escape(kind),
            *(html.escape(found[f"{m}, {kind}"]["text"]) if kind in means[m] else "" for m in means),
        ]
        for kind in kinds
    ]
    readings = [
        f"{m}: {next(row['note'] for row in rows if row['name'].startswith(f'{m}, '))}" for m in means
    ]
    absent = [f"{row['name']}: {row['text']}, {row['note']}" for row in rows if ", " not in row["name"]]
    return [
        html.card(
            f"<h3>{SIGNAL}</h3>",
            html.command(rows[0]["command"]),
            html.table(["speech", *(f"#{m}" for m in means)], cells),
            *(html.note(line) for line in [*readings, *absent]),
            html.image("images/quality.png", "measures of the signal"),
        )
    ]


def stage_section(
    page: Page, config: Mapping[str, Any], stages: Mapping[str, StageRecord], folder: Path
) -> None:
    """Table of all stages, and of the data."""
    rows = [_stage_row(record, config["stages"][name]) for name, record in stages.items()]
    absent = [name for name, record in stages.items() if not record.done]
    parts = [html.card(html.chain(FLOW))]
    parts += [html.missing(f"Not finished yet: {', '.join(absent)}.")] if absent else []
    columns = ["stage", "what it trains or makes", "#steps", "#minutes", "loss, held out", "finished"]
    parts.append(html.card(html.table(columns, rows)))
    checks = read_json(Path(config["data_dir"]) / "checks.json")
    if checks.get("clips"):
        parts.append(html.card("<h3>Data</h3>", _data_table(checks)))
    parts += build_cards(Path(config["data_dir"]), folder)
    read = {name: record.folder / "data.html" for name, record in stages.items()}
    parts += [
        html.card(
            f"<details><summary>What {html.code(name)} read</summary>{path.read_text('utf-8')}</details>"
        )
        for name, path in read.items()
        if path.is_file()
    ]
    page.add(
        "stages",
        "Stages",
        "In the order of the recipe; each restarts where it stopped and skips what is done.",
        *parts,
    )


def build_cards(data_dir: Path, folder: Path) -> list[str]:
    """What each step of the build of the data let through, and the distributions at its gates; nothing if the data
    were not built (``omniaudio build``).

    Args:
        folder: of the report; the picture is copied into it.
    """
    report = read_json(data_dir / "build.json")
    if not report.get("steps"):
        return []
    rows = [
        [html.code(name), f"{out:,}", f"{good:,}", f"{good / out:.1%}" if out else ""]
        for name, (out, good) in report["steps"].items()
    ]
    faults = sorted(report["faults"].items(), key=lambda reason: -reason[1])
    told = ", ".join(f"{reason} {count:,}" for reason, count in faults) or "none"
    table = html.table(["step", "#segments given out", "#let through", "#share"], rows)
    pictures = []
    if (data_dir / "build.png").is_file():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data_dir / "build.png", folder / "images" / "build.png")
        pictures.append(
            html.image("images/build.png", "what came to every gate of the build, and where it cuts")
        )
    return [html.card("<h3>How the data were built</h3>", table, html.note(f"left out: {told}"), *pictures)]


def _stage_row(record: StageRecord, what: str) -> list[str]:
    seconds = record.stamp.get("seconds")
    first, last = _fall(record)
    loss = (
        f"{first:.3f} → {last:.3f} <span class='note'>({last / first - 1:+.0%})</span>"
        if first and last
        else ""
    )
    finished = (
        html.escape(str(record.stamp.get("date", ""))) if record.done else '<span class="bad">missing</span>'
    )
    steps = f"{record.num_steps:,}" if record.num_steps else ""
    minutes = f"{seconds / 60:.1f}" if seconds is not None else ""
    return [html.code(record.name), html.escape(what), steps, minutes, loss, finished]


def _fall(record: StageRecord) -> tuple[float | None, float | None]:
    """Held-out loss at the first and the last look."""
    curve = record.curves.get("val/loss") or []
    return (curve[0][1], curve[-1][1]) if curve else (None, None)


def _data_table(checks: Mapping[str, Any]) -> str:
    splits = ("train", "dev", "test")
    rows = [
        [html.escape(language)]
        + [
            f"{checks['clips'][language].get(s, 0):,} ({60 * checks['hours'][language].get(s, 0):.1f} min)"
            for s in splits
        ]
        for language in sorted(checks["clips"])
    ]
    refused = (
        ", ".join(f"{html.escape(reason)} {count}" for reason, count in checks.get("bad", {}).items())
        or "none"
    )
    good, items = checks.get("num_good", "?"), checks.get("num_items", "?")
    told = f"{good} of {items} recordings passed the checks; refused: {refused}."
    columns = ["language", *(f"#{split}" for split in splits)]
    return html.table(columns, rows) + f'<p class="note">{told} A text stands in one split only.</p>'


def curve_section(page: Page, stages: Mapping[str, StageRecord], folder: Path) -> None:
    """Loss curves of every stage that has some."""
    parts = []
    for name, record in stages.items():
        losses = loss_names(record.curves)
        if losses:
            picture = f"images/curves_{name}.png"
            loss_curves(folder / picture, record.curves, losses)
            images = [html.image(picture, f"losses of {name}")]
            books = f"images/books_{name}.png"
            if book_curves(folder / books, record.curves):
                images.append(html.image(books, f"books of {name} during training"))
            parts.append(html.card(f"<h3>{html.escape(name)}</h3>", *images))
    if not parts:
        parts = [html.missing("No losses yet: no stage has been trained.")]
    lead = (
        "Blue: training, raw and smoothed. Orange: held out. "
        "ce/text/asr is the loss on the text of recognition documents, and so on."
    )
    page.add("curves", "Losses", lead, *parts)


def loss_names(curves: Mapping[str, Curve]) -> list[str]:
    """Losses to draw: the total first, then those that were also seen on held-out data, then others."""
    names = {key.split("/", 1)[1] for key in curves if key.startswith(("train/", "val/"))}
    names = {n for n in names if not any(part in NOT_LOSSES for part in n.split("/")) and "/book" not in n}
    if len(names) == 2:  # one loss: the total is the same curve
        names.discard("loss")

    def order(name: str) -> tuple[bool, bool, int, str]:
        return name != "loss", f"val/{name}" not in curves, name.count("/"), name

    return sorted(names, key=order)[:MAX_CURVES]


def freeze_section(page: Page, stages: Mapping[str, StageRecord]) -> None:
    """What did not move, by hashes before and after."""
    rows, listed = [], []
    for name, record in stages.items():
        frozen = record.freeze.get("frozen")
        if frozen is None:
            continue
        moved = [tensor for tensor, (before, after) in frozen.items() if before != after]
        verdict = "nothing was frozen"
        if frozen:
            verdict = f"{len(moved)} moved" if moved else f"all {len(frozen)} unchanged"
        mark = "bad" if moved else "good" if frozen else "note"
        rows.append(
            [
                html.code(name),
                f"{record.freeze.get('num_trained_parameters', 0):,}",
                f"{record.freeze.get('num_frozen_parameters', 0):,}",
                f"{len(frozen):,}",
                f'<span class="{mark}">{verdict}</span>',
            ]
        )
        listed += [f"{name}: {tensor}  {before} -> {after}" for tensor, (before, after) in frozen.items()]
    if not rows:
        page.add("frozen", "Proof of freezing", "", html.missing("No stage has left a freeze.json yet."))
        return
    columns = [
        "stage",
        "#trained parameters",
        "#frozen parameters",
        "#frozen tensors",
        "hashes before and after",
    ]
    details = html.more(f"all {len(listed)} hashes", "\n".join(listed)) if listed else ""
    lead = "Every frozen tensor was hashed before the first step and after the last."
    page.add("frozen", "Proof of freezing", lead, html.card(html.table(columns, rows), details))


def environment_section(page: Page, config: Mapping[str, Any], stamp: Mapping[str, Any]) -> None:
    """Versions, the data's makers, and the command of this page."""
    from omniaudio.dialogue.card import read_attribution

    facts = [("omniaudio", omniaudio.__version__), ("commit", stamp.get("commit", "unknown"))]
    facts += [("python", stamp.get("python", "unknown")), *sorted(stamp.get("packages", {}).items())]
    facts += [("processor", stamp.get("processor", "unknown")), ("cores", stamp.get("cores", "unknown"))]
    rows = [[html.escape(str(name)), html.escape(str(value))] for name, value in facts]
    words = [f"{key}={config[key]}" for key in ("system", "scale", "data", "tag")]
    made = " ".join(["omniaudio report", *words])
    attribution = read_attribution(Path(config["data_dir"])).strip() or "no ATTRIBUTION beside the data"
    page.add(
        "environment",
        "Environment and data",
        "",
        html.card("<h3>This page</h3>", html.command(made), html.table(["what", "version"], rows)),
        html.card("<h3>Data: makers and licences</h3>", f"<pre>{html.escape(attribution)}</pre>"),
    )
