"""What an exported model answers with."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from torch import Tensor

from omniaudio.sequence.chat import Message, Segment


class SpokenReply(TypedDict):
    """What the model said."""

    text: str  # all text of the reply
    wav: np.ndarray | None  # (N,) float32 at sample_rate_hz, all speech of the reply; None without speech
    sample_rate_hz: int
    events: list[
        dict[str, Any]
    ]  # in order: {"text": ...} or {"speech_sec": ..., "frames": ..., "codes": [[...]]}
    complete: bool  # False when a limit of length cut the reply off
    prompt_positions: int  # LLM positions that were read
    saved_positions: int  # that the prompt would have had beside them with its history as audio


def message_of(reply: SpokenReply) -> Message:
    """A reply as a turn of the chat that goes on."""
    content: list[Segment] = [
        event["text"] if "text" in event else np.array(event["codes"]) for event in reply["events"]
    ]
    return {"role": "assistant", "content": content}


class ReplyChunk(TypedDict, total=False):
    """The next of a reply: a piece of text, or a stretch of speech with its codes."""

    saved_positions: int  # first of all, where the history is text: see SpokenReply
    text: str
    wav: np.ndarray  # (N,) float32 at the model's sample_rate_hz
    codes_SK: Tensor
