"""Training steps of the language models: planned by mixture, composed from code shards and texts, packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.data.compose import DocumentComposer
from omniaudio.data.mixture import Mixture, MixturePlan, OneByOne, PlannedDocument, deal, largest_part
from omniaudio.data.shards import ShardReader
from omniaudio.data.steps import none_whole, readable
from omniaudio.data.texts import MappedIds, MappedTexts
from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint, check_fingerprints
from omniaudio.frontend.text import TextTokenizer
from omniaudio.sequence.spans import Document, DocumentLayouts, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import PackedBatch


class DocumentSteps:
    """Packed documents of a mixture.

    Args:
        token_space: ids; the code shards must be of its codebook sizes.
        text_tokenizer: folder or file of the text tokenizer.
        mixture: what documents are made, in which shares.
        tokens_per_step: LLM positions of a global batch.
        codes_dir: folder of code shards.
        split: train, dev or test.
        texts_path: documents of the kind ``text``, one a line; not opened where that kind has no weight.
        seed: of order and composition.
        max_positions: longest document. A text that may be longer is cut, a chat is cut behind replies, any other is
            left out and counted.
    """

    def __init__(
        self,
        token_space: TokenSpace,
        text_tokenizer: str | Path,
        mixture: Mixture,
        tokens_per_step: int,
        codes_dir: str | Path,
        split: str,
        texts_path: str | Path | None = None,
        seed: int = 0,
        max_positions: int | None = None,
    ) -> None:
        self.reader = ShardReader(codes_dir, split)
        self.check_layout(token_space.fingerprint())
        longest = min(max_positions or tokens_per_step, tokens_per_step)
        texts = MappedTexts(texts_path, longest - num_framing(token_space)) if texts_path is not None else ()
        tokenizer = checked_tokenizer(text_tokenizer, token_space)
        self.token_space, self.decode = token_space, tokenizer.decode
        self.composer = DocumentComposer(
            self.reader,
            tokenizer.encode,
            token_space,
            texts,
            max_clips=mixture.max_clips,
            max_joined_frames=mixture.max_joined_frames,
            loss_on_intlv_audio=mixture.loss_on_intlv_audio,
            longest=longest,
            voices=mixture.voices,
        )
        streams = mixture.streams(self.composer.occurs, all_named=split == "train")
        self.plan = MixturePlan(
            self.composer, streams, tokens_per_step, seed, mixture.temperature, max_positions
        )
        if split == "train":
            self.composer.check_voices(self.plan.kinds)
        if "text" in self.plan.kinds and not texts:
            raise UserError(
                f"mixture.weights.text is {mixture.weights['text']}, but texts_path {texts_path} has no texts"
            )

    def batch(self, step: int, part: int, num_parts: int) -> PackedBatch:
        """One part of a step's documents in a single row."""
        planned = self.plan[step]
        documents, damaged = readable(self.document, deal(planned, part, num_parts), spare=planned)
        if not documents:
            raise none_whole(damaged)
        batch = pack(documents)
        batch.damaged = damaged
        return batch

    def largest(self, num_parts: int) -> Iterator[PackedBatch]:
        """Batches as large as a part of any step can be: one of audio alone, one of text alone."""
        yield rehearsal(self.token_space, "audio", self.plan, num_parts)
        yield rehearsal(self.token_space, "text", self.plan, num_parts)

    def document(self, planned: PlannedDocument) -> Document:
        """What the plan asks for, composed."""
        return self.composer.compose(planned.kind, planned.item_ids, planned.seed)

    def check_layout(self, layout: Fingerprint) -> None:
        check_fingerprints(layout, self.reader.fingerprint, str(self.reader.folder))


class TextSteps:
    """Packed texts: training of the text model alone.

    Documents longer than ``max_positions`` are cut there; the rest is a document of its own.

    Args:
        token_space: ids.
        text_tokenizer: folder or file of the text tokenizer.
        texts_path: one document a line.
        tokens_per_step: LLM positions of a global batch.
        seed: of the order.
        max_positions: longest document.
    """

    def __init__(
        self,
        token_space: TokenSpace,
        text_tokenizer: str | Path,
        texts_path: str | Path,
        tokens_per_step: int,
        seed: int = 0,
        max_positions: int = 512,
    ) -> None:
        tokenizer = checked_tokenizer(text_tokenizer, token_space)
        self.token_space, self.decode = token_space, tokenizer.decode
        framing = num_framing(token_space)
        longest = min(max_positions, tokens_per_step) - framing
        self.layouts = DocumentLayouts(token_space)
        self.pieces = MappedIds(texts_path, tokenizer, longest)
        if not self.pieces:
            raise UserError(f"{texts_path}: no texts")
        self.plan = MixturePlan(
            OneByOne(_Positions(self.pieces, framing)),
            {"text": 1.0},
            tokens_per_step,
            seed,
            max_document_tokens=max_positions,
        )

    def batch(self, step: int, part: int, num_parts: int) -> PackedBatch:
        """One part of a step's texts in a single row."""
        documents = deal(self.plan[step], part, num_parts)
        return pack([self.document(document) for document in documents])

    def largest(self, num_parts: int) -> Iterator[PackedBatch]:
        """A batch as large as a part of any step can be."""
        yield rehearsal(self.token_space, "text", self.plan, num_parts)

    def document(self, planned: PlannedDocument) -> Document:
        """What the plan asks for."""
        item = planned.item_ids[0]
        return self.layouts.text(f"text/{item}", self.pieces[item])

    def check_layout(self, layout: Fingerprint) -> None:
        """Texts hold no codes."""


class _Positions:
    """Lengths (omniaudio.data.planning) of the documents that are a piece of ids, and what stands around it."""

    def __init__(self, pieces: MappedIds, framing: int) -> None:
        self.pieces, self.framing = pieces, framing

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: int) -> int:
        return len(self.pieces[item]) + self.framing


def num_framing(space: TokenSpace) -> int:
    """Positions of a text document beside its text: eos, and bos if there is one."""
    return len(space.beginning) + 1


def rehearsal(
    space: TokenSpace, kind: str, plan: MixturePlan, num_parts: int, documents_each: int = 1
) -> PackedBatch:
    """Documents of one kind, the first of the greatest length, of as many positions as a part of a step may have.

    Args:
        documents_each: documents that a planned one consists of, here of one length.
    """
    layouts, rest = DocumentLayouts(space), largest_part(plan.tokens_per_step, plan.longest, num_parts)
    framing, documents = num_framing(space), list[Document]()
    while rest > 0:
        # a frame of audio with its marks is no shorter than 3
        room = max(3, min(rest, plan.longest) // documents_each - framing)
        content: Any = np.zeros((room - 2, space.num_books), np.int64) if kind == "audio" else [0] * room
        documents += [getattr(layouts, kind)("rehearsal", content)] * documents_each
        rest -= (room + framing) * documents_each
    return pack(documents)


def checked_tokenizer(path: str | Path, space: TokenSpace) -> TextTokenizer:
    """The text tokenizer; its ids must fit the token space."""
    tokenizer = TextTokenizer.from_file(path)
    if tokenizer.vocab_size > space.text_vocab_size:
        raise UserError(
            f"{path}: the text tokenizer has {tokenizer.vocab_size} ids, "
            f"token_space.text_vocab_size is {space.text_vocab_size}"
        )
    return tokenizer
