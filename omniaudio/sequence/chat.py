"""Chat turns <-> documents: ``<bos_sys>system<c_q>user<audiotext_start><c_a>reply<eos>``.

Where the space has a ``bos``, it comes first of all.

``audiotext_start`` before ``c_a`` asks for a spoken reply, its absence for text (arXiv:2502.17239). A
spoken reply is text and audio in turn; the user's audio is heard audio. Only replies bear loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.sequence.spans import Document, DocumentBuilder, Frames
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import Codes

Segment = str | Codes | Frames
Role = Literal["system", "user", "assistant"]


class _Said(TypedDict):
    role: Role
    content: Segment | list[Segment]


class Message(_Said, total=False):
    """One turn. ``content``: text, codes, or a list of both in order."""

    text: str  # what its sounds say, where that is known; read by ``in_writing`` alone


def unread(message: Message) -> list[Segment]:
    """The sounds of a message of which it has no text; an assistant's written words are the text of its sounds."""
    segments = segments_of(message["content"])
    sounds: list[Segment] = [segment for segment in segments if not isinstance(segment, str)]
    written = message["role"] == "assistant" and len(sounds) < len(segments)
    return [] if written or "text" in message else sounds


def in_writing(message: Message) -> Message:
    """The message without its sounds: their text stands in the place of the first, an assistant's is there already."""
    segments = segments_of(message["content"])
    written: list[Segment] = [segment for segment in segments if isinstance(segment, str)]
    if len(written) == len(segments) or (message["role"] == "assistant" and written):
        return {"role": message["role"], "content": written}
    first = next(i for i, segment in enumerate(segments) if not isinstance(segment, str))
    parts = [*segments[:first], message["text"], *segments[first:]]
    words = [part.strip() for part in parts if isinstance(part, str)]
    return {"role": message["role"], "content": " ".join(filter(None, words))}


class ChatLayout:
    """Messages to ids.

    Args:
        space: token ids.
        encode: text -> ids (``TextTokenizer.encode``).
        builder: see DocumentLayouts.
    """

    def __init__(
        self,
        space: TokenSpace,
        encode: Callable[[str], list[int]],
        builder: Callable[[TokenSpace], Any] = DocumentBuilder,
    ) -> None:
        self.space = space
        self.encode = encode
        self._builder = builder

    def document(self, messages: Sequence[Message], kind: str, key: str) -> Document:
        """A whole chat, last turn the assistant's, with loss on every reply."""
        if not messages or messages[-1]["role"] != "assistant":
            raise UserError(f"chat {key!r}: the last message must be the assistant's")
        return self._turns(messages).build(kind, key)

    def prompt(
        self, messages: Sequence[Message], reply: Literal["text", "speech"], key: str = "prompt"
    ) -> Document:
        """The chat up to the point where the assistant speaks: input of the Generator."""
        if not messages or messages[-1]["role"] != "user":
            raise UserError(f"chat {key!r}: the last message must be the user's")
        builder = self._turns(messages)
        return self._ask(builder, spoken=reply == "speech").build("prompt", key)

    def answered(
        self, messages: Sequence[Message], reply: Sequence[Segment], spoken: bool, kind: str, key: str
    ) -> Document:
        """A chat up to the user's last turn with one more reply, which alone bears loss.

        Args:
            spoken: whether speech was asked for, whatever the reply is.
        """
        if not messages or messages[-1]["role"] != "user":
            raise UserError(f"chat {key!r}: the last message before the reply must be the user's")
        builder = self._ask(self._turns(messages, loss=False), spoken)
        self._reply(builder, reply, loss=True)
        return builder.build(kind, key)

    def _turns(self, messages: Sequence[Message], loss: bool = True) -> DocumentBuilder:
        space = self.space
        builder = self._builder(space).text(space.beginning, loss=False)
        if messages[0]["role"] != "system":
            builder.text([space.bos_sys], loss=False)
        for i, message in enumerate(messages):
            segments = segments_of(message["content"])
            if message["role"] == "assistant":
                self._ask(builder, spoken=any(not isinstance(segment, str) for segment in segments))
                self._reply(builder, segments, loss)
                continue
            if message["role"] not in ("system", "user") or (message["role"] == "system" and i > 0):
                raise UserError(
                    f"chat: message {i} has the role {message['role']!r}; system comes first, then user "
                    "and assistant in turn"
                )
            builder.text([space.bos_sys if message["role"] == "system" else space.c_q], loss=False)
            for segment in segments:
                if isinstance(segment, str):
                    builder.text(self.encode(segment), loss=False)
                else:
                    builder.heard(_frames(segment))
        return builder

    def _ask(self, builder: DocumentBuilder, spoken: bool) -> DocumentBuilder:
        return builder.text([self.space.audiotext_start] * spoken + [self.space.c_a], loss=False)

    def _reply(self, builder: DocumentBuilder, segments: Sequence[Segment], loss: bool) -> None:
        for segment in segments:
            if isinstance(segment, str):
                builder.text(self.encode(segment), loss)
            else:
                builder.spoken(_frames(segment), loss)
        builder.text([self.space.eos], loss)


def segments_of(content: Segment | list[Segment]) -> list[Segment]:
    """The parts of a message in order."""
    return list(content) if isinstance(content, list) else [content]


def _frames(segment: Codes | Frames) -> np.ndarray | Tensor:
    if not isinstance(segment, Codes):
        return segment
    if len(segment.num_frames_B) != 1:
        raise UserError(f"chat: codes of {len(segment.num_frames_B)} items; one segment is one item")
    return segment.codes_BSK[0, : int(segment.num_frames_B[0])].cpu()
