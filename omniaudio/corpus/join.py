"""Several folders of shards as one: what was prepared and what was built, trained on together.

Tars are linked, not copied, so a joined folder takes no space of its own on the same file system. Segments that a
build refused join the training split with the fact ``only``: the one kind of document that they may become.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.corpus.build.pipeline import REFUSED
from omniaudio.corpus.split import SPLITS
from omniaudio.data.chats import HELD_OUT, count_held_out
from omniaudio.data.index import (
    Entry,
    Listing,
    index_path,
    link_shard,
    list_path,
    listed_splits,
    read_index,
    text_number,
    write_index,
    write_listing,
)
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError
from omniaudio.files import link, user_os_errors, write_whole
from omniaudio.fingerprint import digest
from omniaudio.frontend.text import normalise_text

STAMP = "joined.json"
COUNTED = "clips and chats that are held out"
"""Part of the key: folders that were joined before these were counted are joined again."""


def shards_of(folder: Path) -> Path:
    """The shards of a data folder, or a folder of shards itself (codes)."""
    for place in (folder / "shards", folder):
        if place.is_dir() and listed_splits(place):
            return place
    raise UserError(f"{folder}: holds no finished shards; prepare, build or extract them first")


def join(folders: Sequence[Path], out: Path, refused: bool = True) -> dict[str, Any]:
    """Make ``out`` the folder of all ``folders``' samples; done before, it stays.

    Args:
        folders: data folders (of prepare, build or join), or folders of code shards; all of one sort.
        out: for data folders shards, texts and ATTRIBUTION; for code shards the shards alone.
        refused: also take what builds refused (splits asr and tts), each for its own kind.

    Returns:
        by folder ``samples`` by split, and what is ``held_out`` of those that stand in the training split, because
        their text or passage is in a held-out split of any folder (see ``count_held_out``).

    Raises:
        UserError: a folder without shards, both sorts, a key in two folders, ``out`` holds something else.
    """
    if len(folders) < 2:
        raise UserError(f"folders: {len(folders)} given; name at least two, folders=[data/one,data/other]")
    places = [shards_of(folder) for folder in folders]
    whole = [place != folder for place, folder in zip(places, folders, strict=True)]
    if len(set(whole)) > 1:
        named = ", ".join(
            str(folder) for folder, is_whole in zip(folders, whole, strict=True) if not is_whole
        )
        raise UserError(f"folders: {named} holds code shards, the others hold audio: join one sort at a time")
    here = out.resolve()
    if inside := [folder for folder in folders if here in (folder.resolve(), *folder.resolve().parents)]:
        raise UserError(f"{out}: {inside[0]} is joined into it; give another data_dir")
    target = out / "shards" if whole[0] else out
    key = digest(
        [[_content(place) for place in places], [_texts(folder) for folder in folders], refused, COUNTED]
    )
    if (known := _stamp(out)) and known["key"] == key and _is_whole(target):
        return known
    if out.exists() and not known and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and no joined folder; give another data_dir")
    with user_os_errors(out):
        if out.exists():
            shutil.rmtree(out)
        write_whole(out / STAMP, json.dumps({"key": None}))  # whatever follows in it is ours
        target.mkdir(exist_ok=True)
    samples: dict[str, dict[str, int]] = {str(folder): {} for folder in folders}
    keys = _Keys()
    held_out = _held_out(places)
    for split in SPLITS:
        names: list[str] = []
        for folder, place in zip(folders, places, strict=True):
            for source in (split, *(REFUSED if refused and split == "train" else ())):
                count = _add_split(place, source, target, split, names, keys, held_out)
                if count:
                    samples[str(folder)][source] = count
        write_listing(target, split, names)
    keys.check()
    if whole[0]:
        _join_texts(folders, out)
    told = {"key": key, "samples": samples, "held_out": _count_held_out(target, samples)}
    write_whole(out / STAMP, json.dumps(told, ensure_ascii=False, indent=1))
    return told


def _count_held_out(target: Path, samples: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """By folder; the samples of each follow each other in the training split."""
    reader, counts, begin = ShardReader(target, "train"), {}, 0
    for folder, number in samples.items():
        end = begin + sum(number.get(split, 0) for split in ("train", *REFUSED))
        counts[folder] = count_held_out(reader, range(begin, end))
        begin = end
    return counts


def _content(place: Path) -> list[str]:
    return [list_path(place, split).read_text("utf-8") for split in listed_splits(place)]


def _texts(folder: Path) -> list[str]:
    paths = (folder / name for name in ("texts/train.txt", "texts/dev.txt", "ATTRIBUTION"))
    return [path.read_text("utf-8") for path in paths if path.is_file()]


def _is_whole(target: Path) -> bool:
    try:
        for split in SPLITS:
            ShardReader(target, split)
    except UserError:
        return False
    return True


def _held_out(places: Sequence[Path]) -> set[tuple[str, str]]:
    """What no folder may train on: the texts and passages of all held-out samples."""
    found: set[tuple[str, str]] = set()
    for place in places:
        for split in ("dev", "test"):
            if list_path(place, split).is_file():
                found |= {
                    told for entry in ShardReader(place, split).entries for told in _told(entry.facts, place)
                }
    return found


def _told(facts: Mapping[str, Any], place: Path) -> list[tuple[str, str]]:
    """A sample's text, the same in all folders, and its passage, which is one of its folder."""
    text = normalise_text(str(facts.get("text", "")), str(facts.get("language", "")))
    passage = facts.get("passage")
    return [("", text)] * bool(text) + [(str(place), str(passage))] * bool(passage)


def _stamp(out: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((out / STAMP).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _add_split(
    place: Path,
    source: str,
    target: Path,
    split: str,
    names: list[str],
    keys: _Keys,
    held_out: set[tuple[str, str]],
) -> int:
    """Link the shards of one split as further shards of another; returns their samples.

    A sample of the training split whose text or passage another folder, or a refused one's own, holds out stays and is
    learned by none.
    """
    if not list_path(place, source).is_file():
        return 0
    count = 0
    for shard in Listing(place, source).shards:
        tar = place / f"{shard.name}.tar"
        names.append(f"{split}-{len(names):06d}")
        copy = target / f"{names[-1]}.tar"
        head, _, entries = read_index(index_path(tar))
        keys.add([entry.key for entry in entries], place)
        only = [_only(entry, place, source, split, held_out) for entry in entries]
        if not any(only):
            link_shard(tar, copy)
        else:
            link(tar, copy)
            lines = [
                {
                    "key": entry.key,
                    "facts": {**entry.facts, **({"only": kind} if kind else {})},
                    "members": {name: [m.offset, m.size, m.crc32] for name, m in entry.members.items()},
                }
                for entry, kind in zip(entries, only, strict=True)
            ]
            write_index(copy, head["num_bytes"], head["fingerprint"], lines)
        count += len(entries)
    return count


def _only(entry: Entry, place: Path, source: str, split: str, held_out: set[tuple[str, str]]) -> str:
    """The one kind that a sample is for, HELD_OUT for none; empty for all."""
    if split == "train" and not held_out.isdisjoint(_told(entry.facts, place)):
        return HELD_OUT
    return source if source != split else ""


class _Keys:
    """Keys of all samples, eight bytes each: they must differ."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._places: list[Path] = []

    def add(self, keys: list[str], place: Path) -> None:
        self._hashes.append(np.array([text_number(key) for key in keys], np.uint64))
        self._places.append(place)

    def check(self) -> None:
        """Raise a UserError if a key stands twice."""
        if not self._hashes:
            return
        every, counts = np.unique(np.concatenate(self._hashes), return_counts=True)
        twice = every[counts > 1]
        if len(twice):
            places = [
                str(p)
                for hashes, p in zip(self._hashes, self._places, strict=True)
                if np.isin(hashes, twice).any()
            ]
            raise UserError(
                f"folders: {len(twice)} samples have the same key in {' and in '.join(dict.fromkeys(places))}; "
                "prepare them in one command (corpus=several), or build one under another pipeline.corpus"
            )


def _join_texts(folders: Sequence[Path], out: Path) -> None:
    """Each text once, in the order of the folders; attributions one after the other."""
    dev: dict[str, None] = {}
    for split in ("dev", "train"):
        lines: dict[str, None] = {}
        for folder in folders:
            path = folder / "texts" / f"{split}.txt"
            if path.is_file():
                lines.update(dict.fromkeys(path.read_text("utf-8").split("\n")))
        for line in ("", *dev):  # what one folder holds out another does not train on
            lines.pop(line, None)
        dev = dev or lines
        write_whole(out / "texts" / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    attributions = [
        path.read_text("utf-8").strip() for folder in folders if (path := folder / "ATTRIBUTION").is_file()
    ]
    write_whole(out / "ATTRIBUTION", "\n\n".join(dict.fromkeys(attributions)) + "\n")
