"""Clips of shards as files with their manifest: for folders that hold no recordings beside their shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniaudio.data.chats import FACTS
from omniaudio.data.shards import ShardReader
from omniaudio.files import write_whole
from omniaudio.progress import track
from omniaudio.types import Utterance

TEXT_FACTS = ("response", "continuation", "translation")


def write_clips(shards: Path, split: str, folder: Path) -> list[Utterance]:
    """Write every clip of a split as ``folder``/<key>.flac, as it stands in the shards.

    Returns:
        what the shards' facts tell of each, in order; facts that a manifest has no field for are not among it. Clips
        of a joined folder that are for one kind of document alone are left out.

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
        **{name: facts.get(name, "") for name in TEXT_FACTS},
    )
