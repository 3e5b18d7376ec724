"""A document as a person reads it: text as text, frames as a count, special tokens by name, and what is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from omniaudio.sequence.spans import Document
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL

Piece = tuple[str, bool]
"""What stands there, and whether the model learns to produce it."""


def pieces_of(document: Document, space: TokenSpace, decode: Callable[[Sequence[int]], str]) -> list[Piece]:
    """The parts of a document in order; neighbours of one sort are one part.

    A text of which the first tokens are given and the rest is learned comes in two parts. ``<57 frames>`` is learned
    when the hidden state before each of the frames has a frame to predict.
    """
    ids = document.ids_L.tolist()
    learned = [False]
    for i in range(len(ids) - 1):
        target = document.audio_label_LK[i, 0] if ids[i + 1] == space.audio_pad else document.text_label_L[i]
        learned.append(int(target) != NO_LABEL)
    names = {token_id: name for name, token_id in reversed(space.special_ids.items())}  # eos before pad

    def sort_of(position: int) -> tuple[str, bool]:
        token_id = ids[position]
        if token_id == space.audio_pad:
            return "frames", learned[position]
        return names.get(token_id, "text"), learned[position]

    pieces: list[Piece] = []
    for (sort, taught), positions in groupby(range(len(ids)), sort_of):
        part = list(positions)
        if sort == "text":
            pieces.append((decode([ids[i] for i in part]), taught))
        elif sort == "frames":
            pieces.append((f"<{len(part)} frames>", taught))
        else:
            pieces += [(f"<{sort}>", taught)] * len(part)
    return pieces
