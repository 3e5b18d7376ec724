"""What an exported model answers with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from omniaudio.dialogue.speech_stream import Stretches
from omniaudio.lm.generate import Cut, Event, Frame, Reply, SpeechEnd, TextToken
from omniaudio.sequence.chat import Message, Segment
from omniaudio.sequence.spans import Document
from omniaudio.types import Codes

if TYPE_CHECKING:
    from omniaudio.dialogue.model import SpokenLanguageModel

UNFINISHED = "\ufffd"
"""What bytes decode to that are not yet a letter."""


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


class ReplyChunk(TypedDict, total=False):
    """The next of a reply: a piece of text, or a stretch of speech with its codes; at its end, how it ended."""

    saved_positions: int  # first of all, where the history is text: see SpokenReply
    text: str
    wav: np.ndarray  # (N,) float32 at the model's sample_rate_hz
    codes_SK: Tensor
    complete: bool  # last of all, and alone: see SpokenReply; a reply that was cancelled ends without


def spoken_reply(
    model: SpokenLanguageModel, reply: Reply, seed: int, asked: tuple[Document, int]
) -> SpokenReply:
    """What the language model said, in words and sound.

    Args:
        model: of which it is the reply.
        reply: text and codes.
        seed: see SpokenLanguageModel.reply.
        asked: the prompt, and the positions that its history as text saved.
    """
    events: list[dict[str, Any]] = []
    wavs: list[np.ndarray] = []
    for segment in reply.segments:
        if isinstance(segment, Tensor):
            codes = Codes(codes_BSK=segment[None], num_frames_B=torch.tensor([len(segment)]))
            wavs.append(model.decode(codes.to(model.device), seed=seed))
            seconds = round(len(wavs[-1]) / model.sample_rate_hz, 3)
            events.append({"speech_sec": seconds, "frames": len(segment), "codes": segment.tolist()})
        else:
            events.append({"text": model.text_tokenizer.decode(segment)})
    return {
        "text": model.text_tokenizer.decode(reply.text_ids).strip(),
        "wav": np.concatenate(wavs) if wavs else None,
        "sample_rate_hz": model.sample_rate_hz,
        "events": events,
        "complete": reply.complete,
        "prompt_positions": len(asked[0]),
        "saved_positions": asked[1],
    }


def in_chunks(
    model: SpokenLanguageModel,
    events: Iterable[Event],
    seed: int,
    chunk_frames: int | None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[ReplyChunk]:
    """Events of a reply as text and sound, each when it is there. Arguments as in SpokenLanguageModel.stream."""
    settings, ids, told, complete = model.settings.stream, list[int](), "", True
    if chunk_frames is not None:
        settings = dataclasses.replace(settings, chunk_frames=chunk_frames)
    speech = Stretches(model, settings, seed)
    for event in events:
        if cancelled is not None and cancelled():
            return
        if isinstance(event, Cut) or (isinstance(event, SpeechEnd) and not event.complete):
            complete = False
        if isinstance(event, TextToken):
            ids.append(event.token_id)
            text = model.text_tokenizer.decode(ids)
            if text != told and not text.endswith(UNFINISHED):  # the first bytes of a letter
                yield {"text": text[len(told) :]}
                told = text
        elif isinstance(event, (Frame, SpeechEnd)):
            wav_N, codes_SK = speech.next(event)
            if len(wav_N):
                yield {"wav": wav_N, "codes_SK": codes_SK}
    rest = model.text_tokenizer.decode(ids)[len(told) :]
    if rest:
        yield {"text": rest}
    yield {"complete": complete}


def message_of(reply: SpokenReply | Sequence[ReplyChunk]) -> Message:
    """A reply, or the chunks of it that came before it was left, as a turn of the chat that goes on."""
    if isinstance(reply, dict):
        content: list[Segment] = [
            event["text"] if "text" in event else np.array(event["codes"]) for event in reply["events"]
        ]
        return {"role": "assistant", "content": content}
    said: list[Segment] = []
    for chunk in reply:
        if "text" in chunk:
            if said and isinstance(said[-1], str):
                said[-1] += chunk["text"]
            else:
                said.append(chunk["text"])
        elif "codes_SK" in chunk:
            if said and isinstance(said[-1], Tensor):
                said[-1] = torch.cat([said[-1], chunk["codes_SK"]])
            else:
                said.append(chunk["codes_SK"])
    return {"role": "assistant", "content": said}
