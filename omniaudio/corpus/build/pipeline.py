"""A build: sources through a chain of steps into shards, job by job; a job that is done is never done again.

A folder under construction holds ``jobs/<number>/``: the shards of the job's segments, good ones by split and refused
ones by where they go, and ``job.json``, written last. When all jobs are there their shards become one split each, and
the jobs' folders go::

    shards/{train,dev,test}    segments with text and sound; facts passage and place say what follows what
    shards/{asr,tts}           refused segments from which a recogniser or a synthesiser can learn, with the reason
    texts/{train,dev}.txt      the passages' texts
    build.json                 counts, reasons, distributions at every gate
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.corpus.build.segment import Gate, Segment, Step
from omniaudio.corpus.split import SPLITS, check_fractions, split_of
from omniaudio.data.chats import OPTIONAL, count_chats
from omniaudio.data.index import link_shard, write_listing
from omniaudio.data.shards import KEY, ShardReader, ShardWriter
from omniaudio.errors import UserError
from omniaudio.files import user_os_errors, write_whole
from omniaudio.frontend.audio import encode_audio
from omniaudio.frontend.text import UNSPACED_LANGUAGES

REFUSED = ("asr", "tts")
BINS = 40
DONE = "job.json"


@dataclass(frozen=True)
class Job:
    """A part of the sources: what one worker does at a time."""

    number: int
    sources: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    def begun(self, folder: Path) -> Path | None:
        """Its own folder, empty; None if it is done. Who does it writes ``DONE`` into that, last."""
        home = folder / "jobs" / self.name
        if (home / DONE).is_file():
            return None
        with user_os_errors(home):
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
        return home


class Pipeline:
    """The chain of steps, and what it does with a job.

    Args:
        source: a source (a text or a recording, as a mapping) -> segments to begin with.
        steps: by name, in order.
        fractions: share of the passages by split.
        corpus: name of the prepared folder.
    """

    def __init__(
        self, source: Any, steps: Mapping[str, Step], fractions: Mapping[str, float], corpus: str
    ) -> None:
        check_fractions(fractions)
        if not KEY.fullmatch(corpus):
            raise UserError(f"pipeline.corpus {corpus!r}: letters, digits, '-' and '_' are allowed")
        self.source, self.steps, self.fractions, self.corpus = source, dict(steps), dict(fractions), corpus

    def run(self, job: Job, folder: Path) -> None:
        """Do a job, unless it is done; what a broken-off try left is removed."""
        home = job.begun(folder)
        if home is None:
            return
        report = Report(self.steps)
        texts: dict[str, list[str]] = {split: [] for split in SPLITS}
        unspoken: list[list[str]] = []
        with ExitStack() as stack:
            writers = {name: stack.enter_context(ShardWriter(home, name)) for name in (*SPLITS, *REFUSED)}
            for source in job.sources:  # one at a time: a recording may be long
                good, refused = _in_chats(*self.process(source, report))
                report.refuse(refused)
                report.chats.update(_count_chats(good, refused))
                for segments in _passages(good):
                    language = segments[0].language
                    text = ("" if language in UNSPACED_LANGUAGES else " ").join(
                        segment.text for segment in segments
                    )
                    split = split_of(text, language, self.fractions)
                    texts[split].append(text)
                    self._write(writers[split], segments, report)
                for name in REFUSED:
                    self._write(
                        writers[name],
                        [s for s in refused if s.goes_to == name and s.wav_N is not None],
                        report,
                    )
                silent = [s for s in refused if s.goes_to == "tts" and s.wav_N is None]
                unspoken += [[s.key, s.language, s.text, s.fault] for s in silent]
        told = {**report.told(), "texts": texts, "unspoken": unspoken}
        write_whole(home / DONE, json.dumps(told, ensure_ascii=False, sort_keys=True))

    def process(self, source: Mapping[str, Any], report: Report) -> tuple[list[Segment], list[Segment]]:
        """One source through all steps: good segments, and refused ones."""
        good: list[Segment] = list(self.source(source))
        refused = [segment for segment in good if segment.fault]
        good = [segment for segment in good if not segment.fault]
        for name, step in self.steps.items():
            produced = step(good)
            if isinstance(step, Gate):
                report.values(name, [segment.scores[step.score] for segment in good])
            good = [segment for segment in produced if not segment.fault]
            left_out = [segment for segment in produced if segment.fault]
            refused += left_out
            report.passed(name, len(produced), len(good))
        return good, refused

    def _write(self, writer: ShardWriter, segments: Sequence[Segment], report: Report) -> None:
        for segment in segments:
            assert segment.wav_N is not None
            facts: dict[str, Any] = {
                "sample_rate_hz": segment.rate_hz,
                "num_samples": len(segment.wav_N),
                "text": segment.text,
                "language": segment.language,
                "speaker": segment.speaker or segment.passage,
                "corpus": self.corpus,
                "passage": f"{self.corpus}/{segment.passage}",
                "place": segment.place,
                "start_sec": round(segment.start_sec, 4),
                **{name: round(v, 4) for name, v in sorted(segment.scores.items()) if math.isfinite(v)},
                **segment.facts,
            }
            facts |= _chat_facts(segment)
            if segment.band_hz:
                facts["band_hz"] = segment.band_hz
            if segment.spoken and segment.spoken != segment.text:
                facts["spoken"] = segment.spoken
            if segment.words:
                facts["words"] = [
                    [word, round(start, 3), round(end, 3)] for word, start, end in segment.words
                ]
            if segment.fault:
                facts |= {"fault": segment.fault, "heard": segment.heard}
            report.wrote(writer.split, segment)
            writer.write(
                f"{self.corpus}/{segment.key}", {"flac": encode_audio(segment.wav_N, segment.rate_hz)}, facts
            )


def _passages(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments by passage."""
    passages: dict[str, list[Segment]] = {}
    for segment in segments:
        passages.setdefault(segment.passage, []).append(segment)
    return list(passages.values())


def _count_chats(good: Sequence[Segment], refused: Sequence[Segment]) -> Counter[str]:
    """Chats by what became of them."""
    told = ("passage", "place", "text", "language")
    facts = [{**_chat_facts(s), **{name: getattr(s, name) for name in told}} for s in good if s.role]
    lost = {s.passage for s in refused if s.role} - {s.passage for s in good}
    return Counter(count_chats(facts)) + Counter({"without a whole reply": len(lost)})


def _in_chats(good: list[Segment], refused: list[Segment]) -> tuple[list[Segment], list[Segment]]:
    """The same, each knowing how many parts its message has in all."""
    parts = Counter((s.passage, s.turn) for s in (*good, *refused))
    parts.update((s.passage, turn) for s in (*good, *refused) for turn, _, _ in (*s.before, *s.after))
    counted = [replace(s, turn_parts=parts[s.passage, s.turn]) if s.role else s for s in (*good, *refused)]
    return counted[: len(good)], counted[len(good) :]


def _chat_facts(segment: Segment) -> dict[str, Any]:
    """What omniaudio.data.chats wants to know of a segment of a chat."""
    if not segment.role:
        return {}
    written = {name: json.dumps(v, ensure_ascii=False) for name in OPTIONAL if (v := getattr(segment, name))}
    return {name: getattr(segment, name) for name in ("role", "turn", "turns", "turn_parts")} | written


class Report:
    """Counts of a job, or of all; the same whatever the order of jobs."""

    def __init__(self, steps: Mapping[str, Step]) -> None:
        self.steps = {name: [0, 0] for name in steps}  # segments out of it, good ones among them
        self.gates = {name: gate for name, gate in steps.items() if isinstance(gate, Gate)}
        self.histograms = {name: [0] * BINS for name in self.gates}
        self.faults: Counter[str] = Counter()
        self.written: Counter[str] = Counter()  # 'train/segments', 'train/milliseconds'
        self.chats: Counter[str] = Counter()
        self.speakers: set[str] = set()

    def values(self, name: str, values: Sequence[float]) -> None:
        low, high = self.gates[name].shown
        counts, _ = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
        self.histograms[name] = (np.asarray(self.histograms[name]) + counts).tolist()

    def passed(self, name: str, out: int, good: int) -> None:
        self.steps[name][0] += out
        self.steps[name][1] += good

    def refuse(self, segments: Iterable[Segment]) -> None:
        self.faults.update(segment.fault for segment in segments)

    def wrote(self, split: str, segment: Segment) -> None:
        self.written[f"{split}/segments"] += 1
        self.written[f"{split}/milliseconds"] += round(1000 * segment.duration_sec)
        self.speakers.add(segment.speaker)

    def told(self) -> dict[str, Any]:
        """As json."""
        return {
            "steps": self.steps,
            "histograms": self.histograms,
            "faults": dict(sorted(self.faults.items())),
            "written": dict(sorted(self.written.items())),
            "chats": dict(sorted(self.chats.items())),
            "speakers": sorted(self.speakers),
        }

    def add(self, told: Mapping[str, Any]) -> None:
        """What another one told."""
        for name, (out, good) in told["steps"].items():
            self.passed(name, out, good)
        for name, counts in told["histograms"].items():
            self.histograms[name] = (np.asarray(self.histograms[name]) + counts).tolist()
        self.faults.update(told["faults"])
        self.written.update(told["written"])
        self.chats.update(told.get("chats", {}))  # jobs of earlier versions have none
        self.speakers.update(told["speakers"])


def make_jobs(sources: Iterable[Mapping[str, Any]], sources_per_job: int) -> list[Job]:
    """Sources in order, so many a job."""
    every = list(sources)
    if sources_per_job < 1:
        raise UserError(f"sources_per_job: {sources_per_job} must be at least 1")
    starts = range(0, len(every), sources_per_job)
    return [Job(number, tuple(every[start : start + sources_per_job])) for number, start in enumerate(starts)]


def join(folder: Path, jobs: Sequence[Job], pipeline: Pipeline, key: str = "") -> dict[str, Any]:
    """Make one split of the jobs' shards each, and the report of all with the ``key`` of the build, written last.

    Raises:
        UserError: a job is not done.
    """
    shards = folder / "shards"
    report = Report(pipeline.steps)
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    unspoken: list[list[str]] = []
    for job in jobs:
        path = folder / "jobs" / job.name / DONE
        if not path.is_file():
            raise UserError(f"{path.parent}: this job is not done; the same command goes on from here")
        told = json.loads(path.read_text("utf-8"))
        report.add(told)
        for split in SPLITS:
            texts[split] += told["texts"][split]
        unspoken += told["unspoken"]
    with user_os_errors(shards):
        (folder / "build.json").unlink(missing_ok=True)
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
        for split in (*SPLITS, *REFUSED):
            names: list[str] = []
            for job in jobs:
                for tar in sorted((folder / "jobs" / job.name).glob(f"{split}-*.tar")):
                    name = f"{split}-{len(names):06d}"
                    link_shard(tar, shards / f"{name}.tar")
                    names.append(name)
            write_listing(shards, split, names)
    for split in ("train", "dev"):
        write_whole(folder / "texts" / f"{split}.txt", "".join(f"{text}\n" for text in texts[split]))
    gates = {
        name: {"score": g.score, "least": g.least, "most": g.most, "shown": list(g.shown)}
        for name, g in report.gates.items()
    }
    write_whole(folder / "ATTRIBUTION", pipeline.source.attribution() + "\n")
    whole = {
        **report.told(),
        "key": key,
        "num_jobs": len(jobs),
        "gates": gates,
        "num_unspoken": len(unspoken),
    }
    whole["num_speakers"] = len(whole.pop("speakers"))
    lines = [dict(zip(("key", "language", "text", "fault"), row, strict=True)) for row in unspoken]
    write_whole(
        folder / "unspoken.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    write_whole(folder / "build.json", json.dumps(whole, ensure_ascii=False, indent=1))
    return whole


def is_whole(folder: Path, key: str) -> bool:
    """Whether a build of this key was joined, and all splits can be opened."""
    try:
        for split in (*SPLITS, *REFUSED):
            ShardReader(folder / "shards", split)
        return bool(json.loads((folder / "build.json").read_text("utf-8"))["key"] == key)
    except (UserError, OSError, ValueError, KeyError):
        return False
