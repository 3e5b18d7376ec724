"""Build a speech corpus: texts are spoken, or recordings are cut and written down; what fails is counted, with reasons.

A pipeline is a source and a chain of steps (conf/pipeline). The sources are dealt into jobs; a job that is done stays
done, whoever is killed, and the folder is the same in every byte however often a build was broken off, and whoever did
the jobs: processes of this machine (executor=local) or a Ray cluster (executor=ray).

    omniaudio build pipeline=synthetic recogniser=openai/whisper-base
    omniaudio build pipeline=crawled pipeline.source.folder=DIR pipeline.source.language=en recogniser=MODEL

The folder is one that trainings read (data=, data_dir=): segments follow each other by the facts passage and place, so
both kinds of interleaved documents come out of it. build.json and build.png tell what each gate let through.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from omniaudio.config import build
from omniaudio.errors import UserError
from omniaudio.stage import Stage, without


def main(config: dict[str, Any]) -> None:
    """Do the jobs that are not done, then join them."""
    from omniaudio.corpus.build.pipeline import is_whole, join, make_jobs
    from omniaudio.corpus.build.sources import Recordings
    from omniaudio.files import user_os_errors, write_whole
    from omniaudio.fingerprint import digest

    folder = Path(config["data_dir"])
    with user_os_errors(folder):
        record = Stage(folder / "record", config, inputs=[], decisive={})
        record.begin()
    pipeline = build(config["pipeline"], "pipeline")
    sources = list(pipeline.source.sources(folder / "raw"))
    if not sources:
        raise UserError("pipeline.source: there is nothing to build from")
    ignored = pipeline.source.ignored() if isinstance(pipeline.source, Recordings) else {}
    for reason, count in ignored.items():
        record.log(f"{reason}: {count:,}")
    jobs = make_jobs(sources, config["sources_per_job"])
    decisive = without(config["pipeline"], {"headers", "device", "batch_size"})  # another machine may go on
    key = digest([decisive, config["sources_per_job"], sources])
    stamp = folder / "jobs" / "key.json"
    others = [known for path in (stamp, folder / "build.json") if (known := _key(path)) not in (None, key)]
    if others:
        raise UserError(
            f"{folder}: holds a build of another pipeline or of other sources; remove it to build anew, or give "
            f"another data_dir"
        )
    if is_whole(folder, key):
        record.log(f"{folder} is built already")
    else:
        write_whole(stamp, json.dumps({"key": key}))
        todo = [job for job in jobs if not (folder / "jobs" / job.name / "job.json").is_file()]
        record.log(f"{len(jobs)} jobs, {len(todo)} to do")
        if todo:
            build(config["executor"], "executor").run(config["pipeline"], folder.resolve(), todo)
        join(folder, jobs, pipeline, key)
    shutil.rmtree(folder / "jobs", ignore_errors=True)  # its shards have other names now
    report = json.loads((folder / "build.json").read_text("utf-8"))
    draw(report, folder / "build.png")
    record.log(summary(report))
    record.finish()


def _key(path: Path) -> str | None:
    """The key of a build that is begun or done; None where there is none."""
    try:
        return str(json.loads(path.read_text("utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summary(report: dict[str, Any]) -> str:
    """The lines that a user reads at the end."""
    lines = ["  segments after each step (of those that it gave out):"]
    lines += [f"    {name:<20} {good:>9,} of {out:,}" for name, (out, good) in report["steps"].items()]
    faults = ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(report["faults"].items(), key=lambda r: -r[1])
    )
    lines.append(f"  left out: {faults or 'none'}")
    for split in ("train", "dev", "test", "asr", "tts"):
        written = report["written"]
        if f"{split}/segments" in written:
            hours = written[f"{split}/milliseconds"] / 3.6e6
            lines.append(f"  {split}: {written[f'{split}/segments']:,} segments, {hours:.2f} h")
    if known := report.get("chats"):  # builds of earlier versions have none
        chats = ", ".join(f"{number:,} {kind}" for kind, number in known.items())
        lines.append(f"  chats: {chats}")
    lines.append(
        f"  {report['num_speakers']:,} voices; {report['num_unspoken']:,} texts without speech (unspoken.jsonl)"
    )
    return "\n".join(lines)


def draw(report: dict[str, Any], path: Path) -> None:
    """What came to every gate, and where it cuts."""
    if not report["gates"]:
        return
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(report["gates"]), 3), layout="constrained")
    for number, (name, gate) in enumerate(report["gates"].items(), 1):
        axes = figure.add_subplot(1, len(report["gates"]), number)
        counts = report["histograms"][name]
        low, high = gate["shown"]
        edges = np.linspace(low, high, len(counts) + 1)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color="tab:blue")
        for limit in (gate["least"], gate["most"]):
            if limit is not None:
                axes.axvline(limit, color="tab:red", label=f"limit {limit:g}")
        axes.set(title=name, xlabel=gate["score"], ylabel="segments")
        axes.legend()
    figure.savefig(path, dpi=100)
