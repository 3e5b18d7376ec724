"""Preference pairs of recordings: a text to be read aloud, and two clips of one voice of which one says it.

The clips of each voice (speaker and language) are put in random order, or in that of their length, and every two
neighbours are each other's rejected reply. So neither voice nor language, in the latter case nor length, tells which
one is better; and as each clip is chosen once and rejected once, a model that does not read the text is right in just
half of the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from omniaudio.data.index import text_number
from omniaudio.data.mixture import seed_of
from omniaudio.data.pairs import Pair, write_pair
from omniaudio.data.shards import ShardReader, ShardWriter, load_npy
from omniaudio.errors import UserError
from omniaudio.frontend.text import normalise_text


def write_recorded(
    codes_dir: str | Path, folder: Path, num_prompts: Mapping[str, int], seed: int, same_length: bool = False
) -> dict[str, dict[str, int]]:
    """Pairs of the clips of code shards into shards.

    Args:
        codes_dir: code shards; facts ``text``, ``language``, ``speaker``.
        folder: of the pairs' shards; train pairs are of train clips, dev pairs of dev clips.
        num_prompts: by split, how many pairs at most; two clips make two.
        seed: which of them, and in which order.
        same_length: the two clips are nearly as long as each other.

    Returns:
        by split: prompts (clips), pairs, and clips left out by reason.
    """
    for split, most in num_prompts.items():
        if not isinstance(most, int) or most < 2:
            raise UserError(
                f"config num_prompts.{split}: {most} must be at least 2: two clips make two pairs"
            )
    if not isinstance(same_length, bool):
        raise UserError(f"config same_length: {same_length!r} must be true or false")
    told: dict[str, dict[str, int]] = {}
    for split, most in num_prompts.items():
        reader = ShardReader(codes_dir, split)
        counts = Counter(prompts=len(reader))
        rng = np.random.default_rng(seed_of(seed, "recordings", 0, split))
        with ShardWriter(folder, split, fingerprint=reader.fingerprint) as writer:
            for couple in _couples(reader, most, rng, counts, same_length):
                for chosen, rejected in (couple, couple[::-1]):
                    write_pair(writer, _pair(reader, chosen, rejected))
                counts["pairs"] += 2
        told[split] = {name: number for name, number in counts.items() if number}
    return told


def _couples(
    reader: ShardReader, most: int, rng: np.random.Generator, counts: Counter[str], same_length: bool
) -> Iterator[tuple[int, int]]:
    """Two clips of one voice with other words each; what is left out is counted."""
    items = rng.permutation(_with_words(reader, counts))
    language, speaker, num_frames = (
        np.asarray(reader.column(name))[items] for name in ("language", "speaker", "num_frames")
    )
    order = np.lexsort((*[num_frames] * same_length, speaker, language))  # equals stay in random order
    items, voice = items[order], np.stack([language, speaker], axis=1)[order]
    begins = np.flatnonzero(np.r_[True, (voice[1:] != voice[:-1]).any(1)][: len(items)])
    sizes = np.diff(np.r_[begins, len(items)])
    firsts = np.flatnonzero((np.arange(len(items)) - np.repeat(begins, sizes)) % 2 == 0)
    ends = np.repeat(begins + sizes, sizes)[firsts]
    counts["left out: its voice has no other clip that is free"] += int((firsts + 1 == ends).sum())
    firsts = rng.permutation(firsts[firsts + 1 < ends])
    taken = 0
    for first in firsts.tolist():
        couple = int(items[first]), int(items[first + 1])
        if taken + 2 > most:
            counts["left out: num_prompts asks for no more"] += 2
        elif len({_words(reader, item) for item in couple}) < 2:
            counts["left out: the clip beside it has the same words"] += 2
        else:
            taken += 2
            yield couple


def _with_words(reader: ShardReader, counts: Counter[str]) -> np.ndarray:
    """Clips that may be read aloud, of voices that are known."""
    text, speaker, only = (np.asarray(reader.column(name)) for name in ("text", "speaker", "only"))
    to_read = (text != 0) & ((only == 0) | (only == text_number("tts")))
    counts["left out: it has no text, or is for another kind of document"] += int((~to_read).sum())
    counts["left out: its speaker is unknown"] += int((to_read & (speaker == 0)).sum())
    return np.flatnonzero(to_read & (speaker != 0))


def _words(reader: ShardReader, item: int) -> str:
    facts = reader.entries[item].facts
    return normalise_text(facts["text"], facts["language"])


def _pair(reader: ShardReader, chosen: int, rejected: int) -> Pair:
    entry, other = reader.entries[chosen], reader.entries[rejected]
    codes, worse = (load_npy(reader.member(item, "codes.npy")) for item in (chosen, rejected))
    return Pair(
        key=entry.key,
        language=entry.facts["language"],
        prompt=entry.facts["text"],
        chosen=[codes],
        rejected=[worse],
        facts={
            "speaker": entry.facts["speaker"],
            "rejected_of": other.key,
            "rejected_text": other.facts["text"],
        },
    )
