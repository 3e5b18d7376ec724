"""Score the export on held-out speech.

Reads ${exp_dir}/export/model and the shards of a split; writes ${exp_dir}/evaluate/:

    results.json   every number with the command that gives it     samples/   sound and mels for the report

Measured: mel error by number of books, use of the books; copy synthesis and decoded speech against the recording
(measures=, of omniaudio.metrics.quality); error rates of an independent recogniser on all of these (asr_judge=);
whether replies have the voice that was asked for, where the training named voices (num_voiced=);
held-out losses of the LLM, its own recognition, text perplexity and questions of text before and after audio training,
real-time factors. Without a judge, or the package of a measure, its rows say so.

    omniaudio evaluate system=NAME scale=mini asr_judge=openai/whisper-base
    omniaudio evaluate system=NAME scale=mini flow_steps=[1,2,4] flow_solvers=[euler,midpoint]   # of the same export;
                                                          # flow_warps=[uniform] flow_guidances=[0] likewise
    omniaudio evaluate system=NAME scale=mini task=tokenizer depths=[1,4,6,8]   # one table
    omniaudio evaluate system=NAME scale=mini task=text choices.path=arc.jsonl      # held-out losses and what is left
                                                                                     # of the text LLM; needs no export
    omniaudio evaluate system=NAME scale=mini task=curve      # sound of flow and vocoder by steps of their training
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniaudio.cli.again import command_of, trained_by
from omniaudio.cli.export import made_by
from omniaudio.errors import UserError
from omniaudio.stage import stage

if TYPE_CHECKING:
    import numpy as np

    from omniaudio.dialogue.depths import DepthRow, StreamingRow
    from omniaudio.dialogue.evaluation import Clip, TokenizerScores
    from omniaudio.dialogue.model import SpokenLanguageModel
    from omniaudio.metrics.records import Row

RESULTS = "results.json"
TASKS = ("all", "tokenizer", "text", "curve")


def main(config: dict[str, Any]) -> None:
    """Measure everything, unless it is done."""
    check_words(config)
    if config["task"] == "tokenizer":
        evaluate_tokenizer(config)
        return
    if config["task"] == "curve":
        evaluate_curve(config)
        return
    whole = config["task"] == "all"
    model_dir, texts = Path(config["model_dir"]), Path(config["texts"])
    questions = [Path(path)] if (path := config["choices"]["path"]) else []
    exported = whole or not usual_export(config)  # text alone needs no more than the language models
    parts = [model_dir] if exported else [path for path in text_models(config).values() if path.is_dir()]
    inputs = [*map(made_by, parts), *([config["shards_dir"]] if whole else []), texts, *questions]
    folder = Path(config["exp_dir"]) / ("evaluate" if whole else "evaluate_text")
    with stage(folder, config=config, inputs=inputs) as run:
        if run.done:
            return
        import omniaudio
        from omniaudio.cli.train import set_threads
        from omniaudio.dialogue.card import read_attribution, write_card
        from omniaudio.files import write_whole

        set_threads(config["num_threads"])
        command = command_of("evaluate", config)
        model: Any = omniaudio.load(model_dir, config["device"]) if exported else None
        rows, details = (
            measure(config, model, run.folder)
            if whole
            else ([*loss_rows(config), *text_rows(config, model)], {})
        )
        rows = [dataclasses.replace(row, command=row.command or command) for row in rows]
        record = {**details, "rows": [dataclasses.asdict(row) for row in rows]}
        write_whole(run.folder / RESULTS, json.dumps(record, indent=1, ensure_ascii=False))
        run.metrics(
            {"step": 0, **{f"{row.section}/{row.name}": row.value for row in rows if row.value is not None}}
        )
        if whole:
            write_card(
                model_dir,
                model,
                title=config["tag"],
                attribution=read_attribution(Path(config["data_dir"])),
                numbers={row.name: row.text for row in rows},
            )
        print_table(rows)
        of = f" of {model_dir}" if exported else ""
        run.log(f"{run.folder / RESULTS}: {len(rows)} rows{of}")


def check_words(config: dict[str, Any]) -> None:
    """Numbers and lists that mean something, or a UserError."""
    if config["task"] not in TASKS:
        raise UserError(f"config task: {config['task']!r} is not one of {', '.join(TASKS)}")
    for name in ("flow_steps", "stream_chunks"):
        if not isinstance(config[name], list) or not all(
            isinstance(num, int) and num > 0 for num in config[name]
        ):
            raise UserError(f"config {name}: {config[name]} is not a list of whole numbers, each at least 1")
    from omniaudio.dialogue.flow_ways import FlowWays
    from omniaudio.metrics.quality import check_measures

    FlowWays.of(config)
    check_measures(config["measures"])
    for name in ("batch_size", "num_clips", "num_asked", "num_voiced"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise UserError(f"config {name}: {config[name]} must be a whole number, at least 1")
    if config["corpora"] is not None and not isinstance(config["corpora"], list):
        raise UserError(f"config corpora: {config['corpora']} must be a list, such as [asterisk], or null")


def evaluate_tokenizer(config: dict[str, Any]) -> None:
    """Table of one tokenizer by number of books, unless it is done: ${exp_dir}/evaluate_tokenizer/."""
    for pair in config["streaming"]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)):
            raise UserError(f"config streaming: {pair!r} is not [segment, context] in code frames")
    judges = [config["asr_judge"]] if isinstance(config["asr_judge"], str) else config["asr_judge"] or []
    parts = [Path(config[name]) for name in ("tokenizer", "continuous", "llm") if config[name]]
    parts += [Path(config["vocoder"])] if speaks(config, judges) else []
    inputs = [*map(made_by, parts), config["shards_dir"], Path(config["text_tokenizer"])]
    with stage(Path(config["exp_dir"]) / "evaluate_tokenizer", config=config, inputs=inputs) as run:
        if run.done:
            return
        from omniaudio.cli.train import set_threads
        from omniaudio.dialogue.depths import streaming_table, table, without_loops
        from omniaudio.files import write_whole
        from omniaudio.metrics.records import markdown

        set_threads(config["num_threads"])
        (rows, clips), streamed = depth_rows(config, judges), streaming_rows(config)
        rest, num_loops = without_loops(rows, clips)
        for row in rows:
            run.metrics({"step": row.depth, "mel_mae": row.mae, "align_loss": row.align_loss, "cer": row.cer})
        record = {
            "command": command_of("evaluate", config),
            "rows": [dataclasses.asdict(row) for row in rows],
            "clips_with_loops": num_loops,
            "rates_without_loops": [{"depth": row.depth, "wer": row.wer, "cer": row.cer} for row in rest],
            "streaming": [dataclasses.asdict(row) for row in streamed],
        }
        write_whole(run.folder / RESULTS, json.dumps(record, indent=1, ensure_ascii=False))
        tables = [table(rows)]
        tables += [table(rest, rates_only=True)] if num_loops else []
        tables += [streaming_table(streamed)] if streamed else []
        text = "\n\n".join(map(markdown, tables))
        if num_loops:
            text += f"\n\nThe second table leaves out {num_loops} clips on which a judge repeats itself at some depth."
        write_whole(run.folder / "table.md", f"{text}\n")
        run.log(f"{text}\n{run.folder / RESULTS}: {config['num_clips']} clips of {config['split']}")


def evaluate_curve(config: dict[str, Any]) -> None:
    """Sound and numbers of stages by their training steps, unless it is done: ${exp_dir}/evaluate_curve/."""
    from omniaudio.dialogue.curve import check_curve, find_trained, write_curve

    check_curve(config["curve"])
    exp_dir = Path(config["exp_dir"])
    stages = [find_trained(exp_dir / name) for name in config["curve"]["stages"]]
    inputs = [made_by(Path(config["model_dir"])), config["shards_dir"], *(found.folder for found in stages)]
    decisive = {**config, "milestones": [list(found.folders) for found in stages]}  # no stamp knows them
    with stage(exp_dir / "evaluate_curve", config=config, inputs=inputs, decisive=decisive) as run:
        if run.done:
            return
        from omniaudio.cli.train import set_threads

        set_threads(config["num_threads"])
        write_curve(config, stages, command_of("evaluate", config), run)


def speaks(config: dict[str, Any], judges: Sequence[str]) -> bool:
    """Whether the mels are spoken: to judges, and to be compared with the recordings wherever there is a vocoder."""
    return bool(judges) or Path(config["vocoder"]).is_dir()


def streaming_rows(config: dict[str, Any]) -> list[StreamingRow]:
    """One row for each [segment, context] of the config."""
    from omniaudio.dialogue.depths import score_streaming
    from omniaudio.dialogue.evaluation import choose_clips
    from omniaudio.progress import track
    from omniaudio.training.artifacts import load_module

    if not config["streaming"]:
        return []
    tokenizer: Any = load_module(config["tokenizer"], config["device"])
    clips = choose_clips(**clip_choice(config))
    return [
        score_streaming(tokenizer, clips, segment, context, track) for segment, context in config["streaming"]
    ]


def depth_rows(config: dict[str, Any], judges: list[str]) -> tuple[list[DepthRow], list[Clip]]:
    """One row a depth, and the continuous model if there is one; with the clips."""
    from omniaudio.dialogue.depths import Listeners, load_reader, score_depth
    from omniaudio.dialogue.evaluation import choose_clips
    from omniaudio.metrics.asr_judge import AsrJudge
    from omniaudio.progress import track
    from omniaudio.training.artifacts import load_module

    device = config["device"]
    clips = choose_clips(**clip_choice(config))
    ears = [AsrJudge(name, device, config["judge_dtype"]) for name in judges]
    vocoder: Any = load_module(config["vocoder"], device) if speaks(config, judges) else None
    rows = []
    wanted = [(config["continuous"], 0)] if config["continuous"] else []
    wanted += [(config["tokenizer"], depth) for depth in config["depths"]]
    for folder in dict.fromkeys(folder for folder, _ in wanted):
        tokenizer: Any = load_module(folder, device)
        reader = load_reader(Path(folder), config["llm"], config["text_tokenizer"], device)
        listeners = Listeners(reader=reader, vocoder=vocoder, judges=ears)
        for depth in (depth for other, depth in wanted if other == folder):
            rows.append(score_depth(tokenizer, clips, depth, listeners, track))
    return rows, clips


def measure(
    config: dict[str, Any], model: SpokenLanguageModel, folder: Path
) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what the report needs besides."""
    from omniaudio.dialogue.asked import asked_rows
    from omniaudio.dialogue.evaluation import choose_clips, recognise, score_tokenizer
    from omniaudio.dialogue.voices import voice_rows
    from omniaudio.metrics import promises
    from omniaudio.metrics.asr_judge import load_judge
    from omniaudio.progress import track

    judge = load_judge(config["asr_judge"], config["device"], config["judge_dtype"])
    clips = choose_clips(**clip_choice(config))
    scores = score_tokenizer(model, clips, track)
    wavs, samples = make_speech(config, model, clips, scores, folder)
    rows = tokenizer_rows(model, scores)
    signal_part, signal = signal_rows(clips, wavs, model.sample_rate_hz, config["measures"])
    rows += signal_part
    judge_part, heard = judge_rows(judge, clips, wavs, model.sample_rate_hz)
    own = recognise(model, clips, track, config["batch_size"])
    rows += [*judge_part, *llm_rows(config, model, clips, own), *speed_rows(config, model, clips)]
    asked_part, asked = asked_rows(model, clips[: config["num_asked"]], judge, track, config["batch_size"])
    rows += asked_part
    held_out = config["shards_dir"], config["split"], config["num_voiced"]
    voice_part, voiced = voice_rows(model, *held_out, track, config["batch_size"])
    rows += voice_part
    rows += promises.all_rows(config, rows, scores.mae["refined"])
    for i, sample in enumerate(samples):
        sample["heard"] = {variant: texts[i] for variant, texts in heard.items()}
        sample["own_recognition"] = own[i]
    details = {
        "model_dir": config["model_dir"],
        "num_clips": len(clips),
        "clip_seconds": round(sum(clip.seconds for clip in clips), 1),
        "languages": sorted({clip.language for clip in clips}),
        "split": config["split"],
        "asr_judge": config["asr_judge"],
        "mel_mae": scores.mae,
        "signal": signal,
        "books": [dataclasses.asdict(book) for book in scores.books],
        "samples": samples,
        "asked": asked,
        "voiced": voiced,
        "sample_rate_hz": model.sample_rate_hz,
        "corpus_rate_hz": sorted({clip.sample_rate_hz for clip in clips}),
        "mel": {"num_mels": model.mel_spec.num_mels, "hop": model.mel_spec.hop},
    }
    return rows, details


def clip_choice(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``choose_clips``."""
    return {key: config[key] for key in ("shards_dir", "split", "num_clips", "min_words", "corpora")}


def make_speech(
    config: dict[str, Any],
    model: SpokenLanguageModel,
    clips: list[Clip],
    scores: TokenizerScores,
    folder: Path,
) -> tuple[dict[str, list[np.ndarray]], list[dict[str, Any]]]:
    """Every variant of the clips that someone will hear: the judge all of them, a person the samples."""
    from omniaudio.dialogue.evaluation import save_sample, synthesize, variants
    from omniaudio.dialogue.flow_ways import FlowWays
    from omniaudio.progress import track

    num = len(clips) if config["asr_judge"] else config["num_samples"]
    extra = FlowWays.of(config), config["stream_chunks"]
    wavs: dict[str, list[np.ndarray]] = {variant: [] for variant in variants(*extra)}
    samples = []
    for i, clip in enumerate(track(clips[:num], "speech")):
        made = synthesize(model, clip, scores.codes[i], *extra)
        if i < config["num_samples"]:
            samples.append(save_sample(folder, model, clip, made))
        for variant in wavs:
            wavs[variant].append(made[0][variant])
    return wavs, samples


def tokenizer_rows(model: SpokenLanguageModel, scores: TokenizerScores) -> list[Row]:
    """Mel error by books, use of books."""
    from omniaudio.metrics.records import Row

    rows = [
        Row(
            section="Mel error by number of books",
            name=f"mel MAE, {num} book{'s' if num > 1 else ''}",
            value=refined,
            text=f"{refined:.3f}",
            note=f"refined mel; coarse {coarse:.3f}",
        )
        for num, (refined, coarse) in enumerate(
            zip(scores.mae["refined"], scores.mae["coarse"], strict=True), 1
        )
    ]
    rows += [
        Row(
            section="Use of the books",
            name=f"book {num}: perplexity",
            value=book.perplexity,
            text=f"{book.perplexity:.1f} of {book.size}",
            note=f"{book.usage:.0%} of its codes occur in {book.num_frames} frames",
        )
        for num, book in enumerate(scores.books, 1)
    ]
    return rows


def signal_rows(
    clips: list[Clip], wavs: dict[str, list[np.ndarray]], rate_hz: int, measures: list[str]
) -> tuple[list[Row], dict[str, Any]]:
    """What is left of the recordings, by measures that know no words; and the same by measure and variant."""
    from omniaudio.dialogue.evaluation import variant_name
    from omniaudio.metrics.quality import quality_rows

    made = {variant_name(variant): wav for variant, wav in wavs.items() if variant != "original"}
    recordings = [(clip.wav_N, clip.sample_rate_hz) for clip in clips]
    return quality_rows(recordings, made, rate_hz, measures)


def judge_rows(
    judge: Any, clips: list[Clip], wavs: dict[str, list[np.ndarray]], rate_hz: int
) -> tuple[list[Row], dict[str, list[str]]]:
    """Error rates of the judge, and what it heard."""
    from omniaudio.dialogue.evaluation import judge_variants, variant_name
    from omniaudio.metrics.asr_judge import NO_JUDGE
    from omniaudio.metrics.cer import word_error_rate
    from omniaudio.metrics.records import Row
    from omniaudio.progress import track

    section = "Intelligibility (error rates of an independent recogniser)"
    if judge is None:
        note = "asr_judge=NAME gives one"
        return [
            Row(section=section, name=f"{rate}, {variant_name(v)}", value=None, text=NO_JUDGE, note=note)
            for rate in ("CER", "WER")
            for v in wavs
        ], {}
    heard = judge_variants(judge, clips, wavs, rate_hz, track)
    rows = []
    for variant, texts in heard.items():
        rate, note = judged(clips, texts, f"{judge.name} on {len(clips)} clips")
        name = f"CER, {variant_name(variant)}"
        rows.append(Row(section=section, name=name, value=rate, text=f"{rate:.1%}", note=note))
    for variant, texts in heard.items():
        rate = word_error_rate([clip.text for clip in clips], texts, [clip.language for clip in clips]).rate
        name, note = f"WER, {variant_name(variant)}", f"{judge.name} on {len(clips)} clips"
        rows.append(Row(section=section, name=name, value=rate, text=f"{rate:.1%}", note=note))
    return rows, heard


def judged(clips: list[Clip], texts: list[str], note: str) -> tuple[float, str]:
    """Character error rate of all clips, and the note beside it: a judge that loops on a clip rules the mean."""
    from omniaudio.dialogue.evaluation import cer_of, looped

    loops = looped(clips, texts)
    others = [i for i in range(len(clips)) if i not in loops]
    if loops and others:
        rest = cer_of([clips[i] for i in others], [texts[i] for i in others])
        note += f"; it loops on {len(loops)}, {rest:.1%} without them"
    return cer_of(clips, texts), note


def llm_rows(
    config: dict[str, Any], model: SpokenLanguageModel, clips: list[Clip], own: list[str]
) -> list[Row]:
    """Held-out losses, own recognition, text before and after."""
    from omniaudio.dialogue.evaluation import cer_of
    from omniaudio.metrics.records import Row

    rate = cer_of(clips, own)
    recognition = Row(
        section="Speech → text by the model itself",
        name="CER of its own recognition",
        value=rate,
        text=f"{rate:.1%}",
        note=f"{len(clips)} clips, likeliest words",
    )
    return [*loss_rows(config), recognition, *text_rows(config, model)]


def loss_rows(config: dict[str, Any]) -> list[Row]:
    """The last held-out losses of every stage of ``loss_stages``."""
    from omniaudio.metrics.records import held_out_rows, read_stage

    rows = []
    for name in config["loss_stages"]:
        stage = read_stage(Path(config["exp_dir"]) / name)
        rows += held_out_rows(stage, trained_by(config, name))
    return rows


def usual_export(config: dict[str, Any]) -> bool:
    """Whether the export stands where the recipe's does; elsewhere it may be one in 8 bits, or of other parts."""
    return Path(config["model_dir"]) == Path(config["exp_dir"]) / "export" / "model"


def text_models(config: dict[str, Any]) -> dict[str, Path]:
    """Before audio training, after it, after each of its stages: where the language model is, if it was trained."""
    stages = {name: Path(config["exp_dir"]) / name / "final" / "lm" for name in config["loss_stages"]}
    before, after = Path(config["text_before"]), Path(config["text_after"])
    others = {f"after {name}": folder for name, folder in stages.items() if folder != after}
    return {"before": before, "after": after, **others}


def text_rows(config: dict[str, Any], model: SpokenLanguageModel | None) -> list[Row]:
    """The text LLM before audio training and after each of its stages: perplexity, and questions."""
    from omniaudio.dialogue import text_scores
    from omniaudio.progress import track

    models: dict[str, Any] = text_models(config)
    if model is None:
        encode, space = text_scores.text_side(config["text_tokenizer"], list(models.values()))
    else:
        encode, space = model.text_tokenizer.encode, model.lm.token_space
    choices = dict(config["choices"])
    path, texts = choices.pop("path"), Path(config["texts"]).read_text("utf-8").splitlines()
    texts = [text for text in texts if text.strip()]
    benchmarks = {"next words": text_scores.next_words(texts, **choices)}
    if path:
        benchmarks[Path(path).stem] = text_scores.read_questions(path)
    if model is not None and not usual_export(config):
        models["of the export"] = model.lm
    ids = text_scores.text_ids(texts, encode, config["max_text_pieces"])
    return text_scores.text_rows(models, ids, benchmarks, space, encode, track, config["device"])


def speed_rows(config: dict[str, Any], model: SpokenLanguageModel, clips: list[Clip]) -> list[Row]:
    """Real-time factors."""
    import torch

    from omniaudio.dialogue.evaluation import real_time_factors
    from omniaudio.metrics.records import Row
    from omniaudio.progress import track

    names = {
        "encode": "speech → codes",
        "decode": "codes → flow → vocoder → speech",
        "generate": "language model → codes",
    }
    factors = real_time_factors(model, clips[: config["num_speed_clips"]], track)
    note = f"work / speech, one clip at a time, threads: {torch.get_num_threads()}"
    return [
        Row(
            section="Speed",
            name=f"real-time factor, {names[name]}",
            value=factor,
            text="no speech came" if factor is None else f"{factor:.3f}",
            note=note,
        )
        for name, factor in factors.items()
    ]


def print_table(rows: list[Row]) -> None:
    """All rows, by section."""
    from rich.table import Table

    from omniaudio.progress import table_console

    console = table_console()
    for section in dict.fromkeys(row.section for row in rows):
        table = Table(title=section, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name, justify in (("what", "left"), ("value", "right"), ("note", "left")):
            table.add_column(name, justify=justify, style="dim" if name == "note" else "")  # type: ignore[arg-type]
        for row in (row for row in rows if row.section == section):
            table.add_row(row.name, row.text, row.note)
        console.print(table)
        console.print()
