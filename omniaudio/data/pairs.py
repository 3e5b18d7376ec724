"""Preference pairs in shards: a prompt, and two replies to it of which one is the better.

A sample has the facts

    prompt              json [[role, [part, ...]], ...]: the chat up to the user's last message; or a text alone, to be
                        read aloud as in documents of the kind ``tts``: then each reply is one sound
    chosen, rejected    json [part, ...]: the replies
    sounds              frames of every sound, in the order of their numbers; num_frames: of all
    language            of the prompt

where a part is a text, or the number of a sound; the frames of all sounds stand in ``codes.npy`` one after the other
(no such member where there is none). What else is known of a pair (rewards, what was heard) are more facts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.data.document_steps import checked_tokenizer, rehearsal
from omniaudio.data.mixture import MixturePlan, OneByOne, PlannedDocument, deal
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy, load_npy
from omniaudio.data.steps import none_whole, readable
from omniaudio.fingerprint import Fingerprint, check_fingerprints
from omniaudio.sequence.chat import ChatLayout, Message, Segment, segments_of
from omniaudio.sequence.spans import Document, DocumentBuilder, DocumentLayouts, LengthBuilder, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import PackedBatch

PAIR, CHOSEN, REJECTED = "pair", "chosen", "rejected"
"""The kind of a planned pair, and the kinds of its two documents."""


@dataclass(kw_only=True)
class Pair:
    """Two replies to a prompt, a chat or a text to be read aloud; sounds are codes (S, K)."""

    key: str
    language: str
    prompt: Sequence[Message] | str
    chosen: list[Segment]
    rejected: list[Segment]
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_pair(writer: ShardWriter, pair: Pair) -> None:
    """Add a pair to a split."""
    sounds: list[np.ndarray] = []

    def numbered(parts: Sequence[Segment]) -> list[str | int]:
        found: list[str | int] = []
        for part in parts:
            if not isinstance(part, str):
                sounds.append(np.asarray(part, np.uint16))
            found.append(part if isinstance(part, str) else len(sounds) - 1)
        return found

    prompt: Any = pair.prompt
    if not isinstance(prompt, str):
        prompt = [[m["role"], numbered(segments_of(m["content"]))] for m in prompt]
    told = {"prompt": prompt, CHOSEN: numbered(pair.chosen), REJECTED: numbered(pair.rejected)}
    facts = {
        **{name: json.dumps(value, ensure_ascii=False) for name, value in told.items()},
        "sounds": [len(codes) for codes in sounds],
        "num_frames": sum(map(len, sounds)),
        "language": pair.language,
        **pair.facts,
    }
    members = {"codes.npy": dump_npy(np.concatenate(sounds))} if sounds else {}
    writer.write(pair.key, members, facts)


class PairSteps:
    """Packed pairs: the two documents of each stand side by side, kinds ``chosen`` and ``rejected``.

    Args:
        token_space: ids; the codes of the pairs must be of its codebook sizes.
        text_tokenizer: folder or file of the text tokenizer.
        pairs_dir: shards of ``write_pair``.
        split: train or dev.
        tokens_per_step: LLM positions of a global batch, over both documents of its pairs.
        seed: of the order.
        max_positions: longest document; pairs with a longer one are left out and counted.
    """

    def __init__(
        self,
        token_space: TokenSpace,
        text_tokenizer: str | Path,
        pairs_dir: str | Path,
        split: str,
        tokens_per_step: int,
        seed: int = 0,
        max_positions: int | None = None,
    ) -> None:
        self.reader = ShardReader(pairs_dir, split)
        self.check_layout(token_space.fingerprint())
        tokenizer = checked_tokenizer(text_tokenizer, token_space)
        self.token_space, self.decode = token_space, tokenizer.decode
        encode = functools.lru_cache(maxsize=1 << 16)(tokenizer.encode)
        self._whole, self._counted = (
            (ChatLayout(token_space, encode, builder), DocumentLayouts(token_space, builder=builder))
            for builder in (DocumentBuilder, LengthBuilder)
        )
        self._longest = max_positions or tokens_per_step
        self.plan = MixturePlan(
            OneByOne(_Lengths(self)),
            {PAIR: 1.0},
            tokens_per_step,
            seed,
            max_document_tokens=2 * self._longest,
        )

    def batch(self, step: int, part: int, num_parts: int) -> PackedBatch:
        """One part of a step's pairs in a single row."""
        planned = self.plan[step]
        pairs, damaged = readable(self.documents, deal(planned, part, num_parts), spare=planned)
        if not pairs:
            raise none_whole(damaged)
        batch = pack([document for pair in pairs for document in pair])
        batch.damaged = damaged
        return batch

    def largest(self, num_parts: int) -> Iterator[PackedBatch]:
        """Batches as large as a part of any step can be: one of audio alone, one of text alone."""
        for kind in ("audio", "text"):
            batch = rehearsal(self.token_space, kind, self.plan, num_parts, documents_each=2)
            batch.kinds = [CHOSEN, REJECTED] * (len(batch.kinds) // 2)
            yield batch

    def documents(self, planned: PlannedDocument) -> list[Document]:
        """The two documents of a pair."""
        (item,) = planned.item_ids
        sounds = self.reader.entries[item].facts["sounds"]
        codes = self.reader.member(item, "codes.npy") if sounds else None
        frames = np.split(load_npy(codes), [*accumulate(sounds[:-1])]) if codes else []
        return self._replies(item, self._whole, frames)

    def length(self, item: int) -> int:
        """LLM positions of a pair; more than a step has if one of its documents is too long."""
        frames = [range(num) for num in self.reader.entries[item].facts["sounds"]]
        lengths = [len(document) for document in self._replies(item, self._counted, frames)]
        return sum(lengths) if max(lengths) <= self._longest else self.plan.tokens_per_step + 1

    def check_layout(self, layout: Fingerprint) -> None:
        check_fingerprints(layout, self.reader.fingerprint, str(self.reader.folder))

    def _replies(
        self, item: int, form: tuple[ChatLayout, DocumentLayouts], sounds: Sequence[Any]
    ) -> list[Document]:
        (chat, layouts), entry = form, self.reader.entries[item]
        prompt, *replies = (json.loads(entry.facts[name]) for name in ("prompt", CHOSEN, REJECTED))

        if isinstance(prompt, str):
            return [
                layouts.tts(f"{entry.key}/{kind}", chat.encode(prompt), sounds[number], kind)
                for (number,), kind in zip(replies, (CHOSEN, REJECTED), strict=True)
            ]

        def sounding(parts: Sequence[str | int]) -> list[Segment]:
            return [part if isinstance(part, str) else sounds[part] for part in parts]

        messages: list[Message] = [{"role": role, "content": sounding(parts)} for role, parts in prompt]
        spoken = any(isinstance(part, int) for reply in replies for part in reply)  # one prompt for both
        return [
            chat.answered(messages, sounding(reply), spoken, kind, f"{entry.key}/{kind}")
            for reply, kind in zip(replies, (CHOSEN, REJECTED), strict=True)
        ]


class _Lengths(Sequence[int]):
    """LLM positions of every pair, each counted when it is asked for."""

    def __init__(self, source: PairSteps) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source.reader)

    def __getitem__(self, item: Any) -> Any:
        return self._source.length(item)
