"""Manifests: one Utterance a line, as json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omniaudio.data.shards import KEY
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.types import Utterance

FIELDS: dict[str, Any] = {
    "sample_rate_hz": int, "num_samples": int, "band_hz": int, "start_sec": int | float, "channel": int,
}  # fmt: skip
"""Fields of Utterance that are no strings."""


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all. A key that comes twice is a UserError."""
    seen: set[str] = set()
    lines = []
    for utterance in utterances:
        if utterance.key in seen:
            raise UserError(f"{path}: key {utterance.key!r} comes twice; keys must be unique")
        seen.add(utterance.key)
        lines.append(json.dumps(dataclasses.asdict(utterance), ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest; a line that is not an Utterance is a UserError with file, line and what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such manifest")
    utterances: list[Utterance] = []
    first_line: dict[str, int] = {}
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines() would also cut at U+0085 in a text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        utterance = _utterance(line, f"{path}:{number}")
        if utterance.key in first_line:
            raise UserError(
                f"{path}:{number}: key {utterance.key!r} stands on line {first_line[utterance.key]} already"
            )
        first_line[utterance.key] = number
        utterances.append(utterance)
    return utterances


def _utterance(line: str, where: str) -> Utterance:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid json ({error})") from error
    names = [f.name for f in dataclasses.fields(Utterance)]
    needed = {f.name for f in dataclasses.fields(Utterance) if f.default is dataclasses.MISSING}
    if not isinstance(found, dict) or not needed <= set(found) <= set(names):
        shown = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{where}: found {shown}, expected the fields {', '.join(names)}")
    for name in found:
        kind = FIELDS.get(name, str)
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise UserError(f"{where}: {name} is {found[name]!r}, expected {getattr(kind, '__name__', kind)}")
    if not KEY.fullmatch(found["key"]):
        raise UserError(f"{where}: key {found['key']!r} may hold letters, digits, '-', '_' and '/' only")
    if ".." in Path(found["audio_path"]).parts[1:]:
        # only a leading '..' (the folder beside the manifest's) may leave the folder
        raise UserError(f"{where}: audio_path {found['audio_path']!r} climbs out of its folder")
    if min(found["num_samples"], found["sample_rate_hz"]) <= 0:
        raise UserError(f"{where}: num_samples and sample_rate_hz must be positive")
    return Utterance(**found)
