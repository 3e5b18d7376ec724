"""From a corpus to what training reads: fetch, check every file, split by text, write shards.

A prepared folder::

    raw/                          what was fetched
    checks.json                   what failed and why; clips and hours by language and split
    manifest/{train,dev,test}.jsonl   one Utterance a line, of the recordings as fetched
    shards/                       the same utterances as 16-bit FLAC, with index (omniaudio.data.shards)
    texts/{train,dev}.txt         one document a line: transcripts, and the texts of the text source
    texts/train.txt.index/        made by trainings: where the texts lie (omniaudio.data.texts)
    ATTRIBUTION                   who made it, under which licence
    prepared.json                 written last: the key of the config that made it
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from omniaudio.corpus.checks import Checks, Finding
from omniaudio.corpus.from_shards import built_facts
from omniaudio.corpus.items import Corpus, Inventory, LeftOut, RawItem
from omniaudio.corpus.manifest import write_manifest
from omniaudio.corpus.split import SPLITS, check_fractions, split_of
from omniaudio.corpus.texts import TextSource
from omniaudio.corpus.workers import Workers
from omniaudio.data.chats import chat_facts, count_chats
from omniaudio.data.shards import ShardReader, ShardWriter
from omniaudio.errors import UserError
from omniaudio.files import user_os_errors, write_whole
from omniaudio.fingerprint import digest
from omniaudio.frontend.audio import encode_audio
from omniaudio.frontend.text import normalise_text
from omniaudio.types import Utterance

STAMP = "prepared.json"
OPTIONAL = ("band_hz", "response", "continuation", "translation")
"""Facts that are written only of utterances that have them."""
PLACE = ("key", "audio_path", "start_sec", "channel")
"""Where a recording was found: for the manifest alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a corpus is prepared.

    Args:
        checks: the gate.
        split: share of the texts by split.
        text_source: more texts for the language model.
        text_dev_share: share of the text source's documents that are held out.
        max_shard_bytes: size at which a new tar begins.
        num_workers: processes that decode and encode; 0 does it in this one.
        key: hash of config and inventory, kept in the stamp; what was made with the same key stays.
    """

    checks: Checks
    split: Mapping[str, float]
    text_source: TextSource
    text_dev_share: float
    max_shard_bytes: int
    num_workers: int
    key: str


def fetch(corpus: Corpus, folder: str | Path) -> None:
    """Bring a corpus's raw files into ``folder``/raw; what is there stays."""
    raw = Path(folder) / "raw"
    with user_os_errors(raw):
        raw.mkdir(parents=True, exist_ok=True)
    corpus.fetch(raw)


def is_prepared(folder: str | Path, key: str) -> bool:
    """Whether an earlier run with the same key finished and its shards are still whole."""
    folder = Path(folder)
    try:
        stamp = json.loads((folder / STAMP).read_text("utf-8"))
        readers = [ShardReader(folder / "shards", split) for split in SPLITS]
    except (OSError, ValueError):  # UserError is a ValueError
        return False
    return bool(readers) and stamp == {"key": key}


def inventory_key(inventory: Inventory) -> str:
    """Hash of what there is to prepare: names, texts, and size and time of every file."""
    state = []
    for item in inventory.items:
        stat = item.path.stat() if item.path.is_file() else None
        size_time = [stat.st_size, stat.st_mtime_ns] if stat else None
        facts = {**dataclasses.asdict(item), "path": None}
        if not item.built:
            del facts["built"]  # what was prepared before there was such a fact stays
        del facts["order"]  # of dialogues alone: what is prepared does not depend on it
        state.append([facts, size_time])
    return digest([state, [{"name": entry.name, "reason": entry.reason} for entry in inventory.left_out]])


def prepare(corpus: Corpus, folder: str | Path, plan: Plan) -> dict[str, Any]:
    """Make the prepared folder from the raw files; return the content of checks.json.

    Raises:
        UserError: more than the allowed share of the items is bad, a split would be empty, no space, ...
    """
    folder = Path(folder)
    check_fractions(plan.split)
    with user_os_errors(folder):
        (folder / STAMP).unlink(missing_ok=True)
    with Workers(plan.num_workers) as workers:
        report = _prepare(corpus, folder, plan, workers)
    attributions = [corpus.attribution(), plan.text_source.attribution()]
    write_whole(folder / "ATTRIBUTION", "\n\n".join(filter(None, attributions)) + "\n")
    write_whole(folder / STAMP, json.dumps({"key": plan.key}))
    return report


def _prepare(corpus: Corpus, folder: Path, plan: Plan, workers: Workers) -> dict[str, Any]:
    inventory = _in_passages(corpus.inventory(folder / "raw"))
    findings = list(workers.map(plan.checks.check, inventory.items, "Checking recordings"))
    said = _said(inventory)
    splits = [
        (item.split or split_of(said.get(_passage(item)[0], item.text or ""), item.language, plan.split))
        if finding.reason is None
        else None
        for item, finding in zip(inventory.items, findings, strict=True)
    ]
    report = _report(inventory, findings, splits)
    write_whole(folder / "checks.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    _stop_if_bad(report, folder / "checks.json", plan.checks.max_bad_share)
    held_out = {
        normalise_text(item.text or "", item.language)
        for item, split in zip(inventory.items, splits, strict=True)
        if item.split and split in ("dev", "test")
    }
    for split in SPLITS:
        chosen = [(i, f) for i, f, s in zip(inventory.items, findings, splits, strict=True) if s == split]
        if not chosen and plan.split[split]:
            raise UserError(f"{folder}: split {split!r} is empty; add recordings or change split.{split}")
        manifest = folder / "manifest" / f"{split}.jsonl"
        utterances = [
            _utterance(_without_held_out(item, split, held_out, plan.split), finding, corpus.name, manifest)
            for item, finding in chosen
        ]
        write_manifest(manifest, utterances)
        encode = functools.partial(_flac, plan.checks)
        coded = workers.map(encode, [item for item, _ in chosen], f"Writing shards of {split}")
        with ShardWriter(folder / "shards", split, max_bytes=plan.max_shard_bytes) as writer:
            _write_shards(writer, utterances, coded, plan.checks.sample_rate_hz)
    _write_texts(folder, inventory, splits, plan)
    return report


def _passage(item: RawItem) -> tuple[str, int]:
    """The chat, or passage of a build, of which an item is a part, empty for none; and its place there."""
    facts = chat_facts(item.chat, item.key) if item.chat else {}
    facts |= built_facts(item.built, item.key) if item.built else {}
    return str(facts.get("passage", "")), int(facts.get("place", 0))


def _in_passages(inventory: Inventory) -> Inventory:
    """The parts of a passage one after the other, where its first stands: lists may be shuffled."""
    first: dict[str, int] = {}
    places = []
    for number, item in enumerate(inventory.items):
        passage, place = _passage(item)
        places.append((first.setdefault(passage, number) if passage else number, place, number))
    return dataclasses.replace(inventory, items=[inventory.items[number] for _, _, number in sorted(places)])


def _said(inventory: Inventory) -> dict[str, str]:
    """What is said in every chat or passage: each is in one split."""
    said: dict[str, list[str]] = {}
    for item in inventory.items:
        if passage := _passage(item)[0]:
            said.setdefault(passage, []).append(item.text or "")
    return {passage: " ".join(texts).strip() or passage for passage, texts in said.items()}


def _flac(checks: Checks, item: RawItem) -> tuple[bytes, int]:
    wav_N = checks.load(item)
    return encode_audio(wav_N, checks.sample_rate_hz), len(wav_N)


def _write_shards(
    writer: ShardWriter, utterances: list[Utterance], coded: Iterable[tuple[bytes, int]], sample_rate_hz: int
) -> None:
    for utterance, (flac, num_samples) in zip(utterances, coded, strict=True):
        facts = dataclasses.asdict(utterance)
        if not utterance.band_hz and utterance.sample_rate_hz < sample_rate_hz:
            facts["band_hz"] = utterance.sample_rate_hz // 2
        if utterance.chat:
            facts |= chat_facts(utterance.chat, utterance.key)
        for name in (*PLACE, "chat", "built", *(name for name in OPTIONAL if not facts[name])):
            del facts[name]
        if utterance.built:  # its start_sec is that in the recording of the build
            facts |= built_facts(utterance.built, utterance.key)
        facts |= {"sample_rate_hz": sample_rate_hz, "num_samples": num_samples}
        writer.write(utterance.key, {"flac": flac}, facts)


def _utterance(item: RawItem, finding: Finding, corpus_name: str, manifest: Path) -> Utterance:
    """The manifest's line; files inside the prepared folder are named relative to the manifest."""
    path, home = item.path.resolve(), manifest.parent.parent.resolve()
    relative = path.is_relative_to(home)
    return Utterance(
        key=item.key,
        audio_path=os.path.relpath(path, manifest.parent.resolve()) if relative else str(path),
        sample_rate_hz=finding.sample_rate_hz,
        num_samples=finding.num_samples,
        text=item.text or "",
        language=item.language,
        speaker=item.speaker,
        corpus=item.corpus or corpus_name,
        band_hz=item.band_hz,
        response=" ".join(item.response),
        continuation=item.continuation,
        translation=item.translation,
        chat=item.chat,
        built=item.built,
        start_sec=item.start_sec,
        channel=-1 if item.channel is None else item.channel,
    )


def _without_held_out(
    item: RawItem, split: str, held_out: Set[str], fractions: Mapping[str, float]
) -> RawItem:
    """An item of the training split without the answers whose text is spoken in a held-out clip."""
    if split != "train":
        return item

    def trains(text: str, language: str) -> bool:
        if item.split:  # the corpus has splits of its own
            return normalise_text(text, language) not in held_out
        return split_of(text, language, fractions) == "train"

    return dataclasses.replace(
        item,
        response=item.response if all(trains(text, item.language) for text in item.response) else (),
        continuation=item.continuation if trains(item.continuation, item.language) else "",
        translation=item.translation if trains(item.translation, "en") else "",
    )


def _write_texts(folder: Path, inventory: Inventory, splits: list[str | None], plan: Plan) -> None:
    """Each transcript once, by its split; documents of the text source by their own hash."""
    texts: dict[str, dict[str, None]] = {"train": {}, "dev": {}}
    for item, split in zip(inventory.items, splits, strict=True):
        if split in texts and item.text:
            texts[split][item.text] = None
    for text in plan.text_source.texts():
        place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        texts["dev" if place < plan.text_dev_share else "train"][text] = None
    for split, lines in texts.items():
        write_whole(folder / "texts" / f"{split}.txt", "".join(f"{line}\n" for line in lines))


def _report(inventory: Inventory, findings: list[Finding], splits: list[str | None]) -> dict[str, Any]:
    pairs = list(zip(inventory.items, findings, strict=True))
    refused = [LeftOut(name=i.key, reason=f.reason, detail=f.detail, bad=True) for i, f in pairs if f.reason]
    unusable = [entry for entry in inventory.left_out if entry.bad]
    bad, left_out = [*refused, *unusable], [entry for entry in inventory.left_out if not entry.bad]
    clips: dict[str, Counter[str]] = {}
    seconds: dict[str, Counter[str]] = {}
    for (item, finding), split in zip(pairs, splits, strict=True):
        if split is not None:
            clips.setdefault(item.language, Counter())[split] += 1
            duration_sec = finding.num_samples / finding.sample_rate_hz
            seconds.setdefault(item.language, Counter())[split] += duration_sec  # type: ignore[assignment]
    hours = {lang: {split: round(s / 3600, 4) for split, s in by.items()} for lang, by in seconds.items()}
    chats = [
        {**chat_facts(item.chat, item.key), "text": item.text, "language": item.language}
        for item, finding in pairs
        if item.chat and not finding.reason
    ]
    return {
        "num_items": len(pairs) + len(unusable),
        "num_good": len(pairs) - len(refused),
        **({"chats": count_chats(chats)} if chats else {}),
        "bad": _counts(entry.reason for entry in bad),
        "left_out": _counts(entry.reason for entry in left_out),
        "clips": clips,
        "hours": hours,
        "bad_items": [{"key": e.name, "reason": e.reason, "detail": e.detail} for e in bad],
        "left_out_items": [{"name": e.name, "reason": e.reason} for e in left_out],
    }


def _counts(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _stop_if_bad(report: Mapping[str, Any], path: Path, max_bad_share: float) -> None:
    num_items, num_bad = report["num_items"], len(report["bad_items"])
    if num_items == 0:
        raise UserError(f"{path}: the corpus holds no recording with a transcript")
    if num_bad > max_bad_share * num_items:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in report["bad"].items())
        first = report["bad_items"][0]
        raise UserError(
            f"{num_bad} of {num_items} recordings are bad ({reasons}; first: {first['key']}: "
            f"{first['detail'] or first['reason']}), more than "
            f"checks.max_bad_share={max_bad_share} allows; all are listed in {path}"
        )
