"""Clips of shards as files with their manifest: for folders that hold no recordings beside their shards.

What a build knows of a clip beyond the fields of a manifest goes along as json, in the field ``built``::

    passage, place   what follows what (of a clip of a chat these stand in ``chat``)
    start_sec        where it lies in the recording that it was cut from
    spoken           the text as it was read aloud
    words            [[word, start, end], ...] in seconds
    cer, dnsmos, ... scores: any other name with a number
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniaudio.data.chats import FACTS
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.progress import track
from omniaudio.types import Utterance

TEXT_FACTS = ("response", "continuation", "translation")
BUILT = {"passage": str, "place": int, "start_sec": int | float, "spoken": str, "words": list}
"""Facts of a build that are no scores."""
OTHERS = {field.name for field in dataclasses.fields(Utterance)} | {*FACTS} | {"num_frames", "only"}
"""Facts that other fields of a manifest tell, or that no manifest may."""
SCORE = re.compile(r"[a-z][a-z0-9_]*")


def write_clips(shards: Path, split: str, folder: Path) -> list[Utterance]:
    """Write every clip of a split as ``folder``/<key>.flac, as it stands in the shards.

    Returns:
        what the shards' facts tell of each, in order. Clips of a joined folder that are for one kind of document
        alone are left out.

    Raises:
        UserError: there are no such shards, or they hold no sound, or the disk is full.
    """
    reader = ShardReader(shards, split)
    utterances = []
    for position, entry in enumerate(track(reader.entries, f"Writing clips of {split}", len(reader))):
        if "only" in entry.facts:  # refused by a build, or held out elsewhere (omniaudio join)
            continue
        path = folder / f"{entry.key}.flac"
        write_whole(path, reader.member(position, "flac"))
        utterances.append(_utterance(entry.key, path.resolve(), entry.facts))
    return utterances


def _utterance(key: str, path: Path, facts: Mapping[str, Any]) -> Utterance:
    chat = {name: facts[name] for name in FACTS if name in facts} if "role" in facts else {}
    built = {name: value for name, value in facts.items() if name not in chat and _is_built(name, value)}
    return Utterance(
        key=key,
        audio_path=str(path),
        sample_rate_hz=facts["sample_rate_hz"],
        num_samples=facts["num_samples"],
        text=facts["text"],
        language=facts["language"],
        speaker=facts["speaker"],
        corpus=facts["corpus"],
        band_hz=int(facts.get("band_hz", 0)),
        chat=json.dumps(chat, ensure_ascii=False) if chat else "",
        built=json.dumps(built) if built else "",  # in ASCII: no table cuts or joins its lines
        **{name: facts.get(name, "") for name in TEXT_FACTS},
    )


def built_facts(text: str, where: str) -> dict[str, Any]:
    """Facts of a build from their json, as manifests keep them; anything else is a UserError."""
    try:
        found: Any = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # half a character is no text
        good = isinstance(found, dict) and all(_is_built(name, value) for name, value in found.items())
    except (ValueError, OverflowError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{where}: built is {text[:80]!r}, expected json with {', '.join(BUILT)} and scores")
    return dict(found)


def _is_built(name: str, value: Any) -> bool:
    """Whether it is a fact that a build adds to what a manifest has fields for."""
    if name == "words":
        return isinstance(value, list) and all(map(_is_word, value))
    if not isinstance(value, str) and not _is_number(value):
        return False
    if name in BUILT:
        return isinstance(value, BUILT[name])
    return name not in OTHERS and _is_number(value) and SCORE.fullmatch(name) is not None


def _is_word(found: Any) -> bool:
    return (
        isinstance(found, list)
        and len(found) == 3
        and isinstance(found[0], str)
        and all(map(_is_number, found[1:]))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
