"""Text and code frames -> one document of LLM ids with labels: the layouts of arXiv:2502.17239, table 4.

    heard audio    <audio_start> PAD x n <audio_end>            never a label inside
    spoken audio   <audiogen_start> PAD x n <audiogen_end>      frame 1 is predicted at audiogen_start,
                                                                frame i+1 at PAD i, "end" at PAD n

The label at a position is what its hidden state must predict: ``text_label`` the next id,
``audio_label`` the next frame. The two never stand at one position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL, PackedBatch

Frames = np.ndarray | Tensor
"""Codes of one stretch of audio: integers (S, K)."""


@dataclass(kw_only=True)
class Document:
    """One training example: a stretch of ids that attends only to itself."""

    ids_L: Tensor
    codes_LK: Tensor  # codes at audio_pad positions, 0 elsewhere
    text_label_L: Tensor
    audio_label_LK: Tensor
    kind: str
    key: str

    def __len__(self) -> int:
        return len(self.ids_L)

    def part(self, begin: int, end: int | None = None) -> Document:
        """Some of its positions."""
        return replace(self, **{name: getattr(self, name)[begin:end] for name in BY_POSITION})

    def followed_by(self, other: Document) -> Document:
        """This, and then the positions of another."""
        pairs = {name: [getattr(self, name), getattr(other, name)] for name in BY_POSITION}
        joined: dict[str, Any] = {name: torch.cat(pair) for name, pair in pairs.items()}
        return replace(self, **joined)


BY_POSITION = ("ids_L", "codes_LK", "text_label_L", "audio_label_LK")
"""What a document has for each of its positions."""


class DocumentBuilder:
    """Appends segments; ``loss`` says whether the model shall learn to produce the segment."""

    def __init__(self, space: TokenSpace) -> None:
        self.space = space
        self._ids: list[int] = []
        self._learned: list[bool] = []  # the id here is a label for the position before
        self._codes: list[tuple[int, Tensor]] = []  # (position of the first PAD, frames)
        self._audio_labels: list[tuple[int, Tensor]] = []  # (position of audiogen_start, frames + end)

    def __len__(self) -> int:
        return len(self._ids)

    def text(self, ids: Sequence[int], loss: bool) -> DocumentBuilder:
        """Text ids, or special tokens by id."""
        self._ids.extend(ids)
        self._learned.extend([loss] * len(ids))
        return self

    def heard(self, codes_SK: Frames) -> DocumentBuilder:
        """Audio that the model listens to."""
        return self._audio(codes_SK, self.space.audio_start, self.space.audio_end, loss=False)

    def spoken(self, codes_SK: Frames, loss: bool) -> DocumentBuilder:
        """Audio in the form in which the model speaks it."""
        start = len(self._ids)
        frames_SK = self._checked(codes_SK)
        if loss:
            end_1K = torch.tensor([self.space.end_frame])
            self._audio_labels.append((start, torch.cat([frames_SK, end_1K])))
        return self._audio(frames_SK, self.space.audiogen_start, self.space.audiogen_end, loss)

    def build(self, kind: str, key: str) -> Document:
        """The document of everything appended so far."""
        num_positions, num_books = len(self._ids), self.space.num_books
        ids_L = torch.tensor(self._ids, dtype=torch.int64)
        codes_LK = torch.zeros(num_positions, num_books, dtype=torch.int64)
        audio_label_LK = torch.full((num_positions, num_books), NO_LABEL)
        for position, frames_SK in self._codes:
            codes_LK[position : position + len(frames_SK)] = frames_SK
        for position, frames_SK in self._audio_labels:
            audio_label_LK[position : position + len(frames_SK)] = frames_SK
        learned_L = torch.tensor(self._learned, dtype=torch.bool)
        text_label_L = torch.full((num_positions,), NO_LABEL)
        text_label_L[:-1] = torch.where(learned_L[1:], ids_L[1:], NO_LABEL)
        return Document(
            ids_L=ids_L,
            codes_LK=codes_LK,
            text_label_L=text_label_L,
            audio_label_LK=audio_label_LK,
            kind=kind,
            key=key,
        )

    def _audio(self, codes_SK: Frames, first: int, last: int, loss: bool) -> DocumentBuilder:
        frames_SK = self._checked(codes_SK)
        self._codes.append((len(self._ids) + 1, frames_SK))
        self._ids.extend([first] + [self.space.audio_pad] * len(frames_SK) + [last])
        self._learned.extend([loss] + [False] * (len(frames_SK) + 1))
        return self

    def _checked(self, codes_SK: Frames) -> Tensor:
        frames_SK = torch.as_tensor(np.asarray(codes_SK).astype(np.int64))
        if frames_SK.ndim != 2 or frames_SK.shape[1] != self.space.num_books or not len(frames_SK):
            raise UserError(
                f"codes of shape {tuple(frames_SK.shape)}: expected at least one frame of "
                f"{self.space.num_books} books"
            )
        sizes_K = torch.tensor(self.space.codebook_sizes)
        if ((frames_SK < 0) | (frames_SK >= sizes_K)).any():
            raise UserError(
                f"codes {frames_SK.amin(0).tolist()}..{frames_SK.amax(0).tolist()} lie outside the books of "
                f"{list(self.space.codebook_sizes)} codes: were they made by another tokenizer?"
            )
        return frames_SK


class Length(int):
    """A document of which only the number of positions is known."""

    def __len__(self) -> int:
        return self


class LengthBuilder:
    """A DocumentBuilder that only counts: the positions of a document whose codes are not read, only their number."""

    def __init__(self, space: TokenSpace) -> None:
        self._num_positions = 0

    def __len__(self) -> int:
        return self._num_positions

    def text(self, ids: Sequence[int], loss: bool) -> LengthBuilder:
        self._num_positions += len(ids)
        return self

    def heard(self, codes_SK: Sized) -> LengthBuilder:
        self._num_positions += len(codes_SK) + 2
        return self

    def spoken(self, codes_SK: Sized, loss: bool) -> LengthBuilder:
        return self.heard(codes_SK)

    def build(self, kind: str, key: str) -> Length:
        return Length(self._num_positions)


class DocumentLayouts:
    """Documents of every kind of pretraining data.

    ``eos`` ends each document and belongs to its last segment: it bears loss when that segment does. ``bos`` begins
    each where the space has it, and bears none.

    Args:
        space: token ids.
        loss_on_intlv_audio: the ablation in which interleaved audio bears loss; it is then laid out as
            spoken audio.
        builder: what documents are built with; LengthBuilder counts their positions.
    """

    def __init__(
        self,
        space: TokenSpace,
        loss_on_intlv_audio: bool = False,
        builder: Callable[[TokenSpace], Any] = DocumentBuilder,
    ) -> None:
        self.space = space
        self.loss_on_intlv_audio = loss_on_intlv_audio
        self._builder = builder

    def _begin(self, given: Sequence[int] = ()) -> Any:
        """A document with the ids that begin it, which bear no loss."""
        return self._builder(self.space).text([*self.space.beginning, *given], loss=False)

    def answer(
        self, kind: str, key: str, prompt: Sequence[int], audio: Frames, answer: Sequence[int]
    ) -> Document:
        """<prompt, audio, answer>: asr (transcript), aqa (response), s2tt (translation)."""
        builder = self._begin(prompt).heard(audio)
        return builder.text([*answer, self.space.eos], loss=True).build(kind, key)

    def asr(self, key: str, prompt: Sequence[int], audio: Frames, transcript: Sequence[int]) -> Document:
        return self.answer("asr", key, prompt, audio, transcript)

    def tts(self, key: str, text: Sequence[int], audio: Frames, kind: str = "tts") -> Document:
        """<text, audio>: loss on audio; audiogen_start and eos belong to the audio."""
        builder = self._begin(text).spoken(audio, loss=True)
        return builder.text([self.space.eos], loss=True).build(kind, key)

    def to_read(self, key: str, text: Sequence[int]) -> Document:
        """<text> as ``tts`` begins: what the model is to read aloud."""
        prompt: Document = self._begin(text).build("prompt", key)
        return prompt

    def audio(self, key: str, audio: Frames) -> Document:
        """<audio>: loss on audio."""
        builder = self._begin().spoken(audio, loss=True)
        return builder.text([self.space.eos], loss=True).build("audio", key)

    def text(self, key: str, ids: Sequence[int]) -> Document:
        """Text only: every id is learned but the first of the document."""
        return self._begin().text([*ids, self.space.eos], loss=True).build("text", key)

    def intlv(
        self,
        key: str,
        prompt: Sequence[int],
        segments: Sequence[tuple[Sequence[int], Frames]],
        audio_first: bool = True,
    ) -> Document:
        """<audio_1, text_2, audio_3, ...>, or <text_1, audio_2, ...>: every segment in one form only.

        Args:
            key: names the document in messages.
            prompt: says that speech and text alternate; no loss.
            segments: (text ids, codes) in spoken order.
            audio_first: whether the odd segments are audio.
        """
        builder, loss = self._begin(prompt), False
        for i, (ids, audio) in enumerate(segments):
            is_audio = (i % 2 == 0) == audio_first
            loss = self.loss_on_intlv_audio or not is_audio
            if not is_audio:
                builder.text(ids, loss=True)
            elif self.loss_on_intlv_audio:
                builder.spoken(audio, loss=True)
            else:
                builder.heard(audio)
        return builder.text([self.space.eos], loss=loss).build("intlv", key)

    def itts(
        self, key: str, prompt: Sequence[int], segments: Sequence[tuple[Sequence[int], Frames]]
    ) -> Document:
        """<text_1, audio_1, text_2, audio_2, ...>: loss on all but the first text."""
        builder = self._begin(prompt)
        for i, (ids, audio) in enumerate(segments):
            builder.text(ids, loss=i > 0).spoken(audio, loss=True)
        return builder.text([self.space.eos], loss=True).build("itts", key)


def pack(documents: Sequence[Document]) -> PackedBatch:
    """Documents laid one after the other in a single row."""
    return PackedBatch(
        keys=[document.key for document in documents],
        ids_L=torch.cat([document.ids_L for document in documents]),
        codes_LK=torch.cat([document.codes_LK for document in documents]),
        text_label_L=torch.cat([document.text_label_L for document in documents]),
        audio_label_LK=torch.cat([document.audio_label_LK for document in documents]),
        doc_len_G=torch.tensor([len(document) for document in documents]),
        kinds=[document.kind for document in documents],
    )
