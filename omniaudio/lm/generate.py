"""One loop for text and speech: text until ``audiogen_start``, frames until book 0 says "end", text again.

Every event is given out as soon as it is known, so that decoding to sound can start while the model goes on.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.lm.audio_head import KeyValue
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.sampling import SamplingSettings, draw
from omniaudio.sequence.spans import Document
from omniaudio.types import device_of

if TYPE_CHECKING:
    from transformers import Cache

ReplyForm = Literal["free", "text", "speech"]
"""``free``: as the model likes; ``text``: never speech; ``speech``: begins with speech (text to speech)."""

TEXT_SAMPLING = SamplingSettings(temperature=0.8, top_k=20, top_p=0.85, repetition=1.1)
AUDIO_SAMPLING = SamplingSettings(temperature=0.5, top_k=5, top_p=0.85, repetition=1.3)
GREEDY = SamplingSettings(temperature=0.0)


@dataclass(frozen=True)
class TextToken:
    """The model said a text token."""

    token_id: int


@dataclass(frozen=True)
class Frame:
    """The model spoke one frame: int64 (K,)."""

    codes_K: Tensor


@dataclass(frozen=True)
class SpeechEnd:
    """A stretch of speech is over. ``complete`` is False when ``max_frames`` cut it off."""

    complete: bool


@dataclass(frozen=True)
class Cut:
    """``max_text_tokens`` ended the reply."""


Event = TextToken | Frame | SpeechEnd | Cut


@dataclass
class Reply:
    """All events in order: text as lists of ids, speech as (S, K) codes."""

    segments: list[list[int] | Tensor] = field(default_factory=list)
    complete: bool = True

    @property
    def text_ids(self) -> list[int]:
        """Text of all segments, joined."""
        return [token_id for segment in self.segments if isinstance(segment, list) for token_id in segment]

    @property
    def codes(self) -> list[Tensor]:
        """Speech segments, (S, K) each."""
        return [segment for segment in self.segments if isinstance(segment, Tensor)]


class Generator:
    """Lets an AudioLM go on from a prompt, one document at a time, with a key-value cache.

    The text penalty counts text of this reply; the audio penalty counts, book by book, the codes of the
    stretch of speech at hand. "End of audio" is allowed in book 0 only, and not before the first frame.

    Args:
        lm: the model, in eval mode.
        text: sampling of text; the default is the published one.
        audio: sampling of codes; the default is the published one.
        max_text_tokens, max_frames: limits of a whole reply.
    """

    def __init__(
        self,
        lm: AudioLM,
        text: SamplingSettings = TEXT_SAMPLING,
        audio: SamplingSettings = AUDIO_SAMPLING,
        max_text_tokens: int = 512,
        max_frames: int = 750,
    ) -> None:
        self.lm, self.text, self.audio = lm, text, audio
        self.max_text_tokens, self.max_frames = max_text_tokens, max_frames
        space = lm.token_space
        self._allowed_V = torch.arange(space.vocab_size) < space.text_vocab_size
        self._allowed_V[list(space.special_ids.values())] = False
        self._allowed_V[space.eos] = True

    def allowed_text(self, may_speak: bool) -> Tensor:
        """(V,) True for ids that may come in text: text, eos and, if wished, audiogen_start."""
        allowed_V = self._allowed_V.clone()
        allowed_V[self.lm.token_space.audiogen_start] = may_speak
        return allowed_V

    def reply(self, prompt: Document, form: ReplyForm = "free", seed: int = 0) -> Reply:
        """The whole reply to a prompt."""
        return collect(self.stream(prompt, form, torch.Generator().manual_seed(seed)))

    def stream(
        self,
        prompt: Document,
        form: ReplyForm = "free",
        generator: torch.Generator | None = None,
        cache: Cache | None = None,
    ) -> Iterator[Event]:
        """Events of the reply to a prompt, each when it is known.

        Args:
            prompt: what the model goes on from; if its last id is ``audiogen_start``, speech follows.
            form: what kind of reply.
            generator: randomness, on the CPU.
            cache: past of an earlier call, which ``prompt`` continues; extended in place.
        """
        if not len(prompt):
            raise UserError("generate: the prompt is empty")
        vocab_size = self.lm.token_space.vocab_size
        if int(prompt.ids_L.max()) >= vocab_size:
            raise UserError(f"generate: the prompt has ids outside the token space of {vocab_size}")
        cache = cache if cache is not None else self.lm.backbone.new_cache()
        return _Run(self, form, generator, cache).events(prompt)


class _Run:
    """State of one reply."""

    def __init__(
        self, owner: Generator, form: ReplyForm, generator: torch.Generator | None, cache: Cache
    ) -> None:
        self.owner, self.lm, self.space = owner, owner.lm, owner.lm.token_space
        self.form, self.generator, self.cache = form, generator, cache
        self.device = device_of(owner.lm)
        self.hidden_D = torch.empty(0)  # of the last position
        self.said: list[int] = []
        self.num_frames = 0

    def events(self, prompt: Document) -> Iterator[Event]:
        self._feed_embeds(self._embed(prompt))
        speaking = int(prompt.ids_L[-1]) == self.space.audiogen_start
        if self.form == "speech" and not speaking:
            self._feed_token(self.space.audiogen_start)
            speaking = True
        while True:
            if speaking:
                complete = yield from self._speak()
                yield SpeechEnd(complete)
                if not complete:
                    return
                self._feed_token(self.space.audiogen_end)
                speaking = False
            if len(self.said) >= self.owner.max_text_tokens:
                if self.owner.max_text_tokens:  # with 0, speech alone was asked for
                    yield Cut()
                return
            token_id = self._next_token()
            if token_id == self.space.eos:
                return
            self._feed_token(token_id)
            speaking = token_id == self.space.audiogen_start
            if not speaking:
                self.said.append(token_id)
                yield TextToken(token_id)

    def _speak(self) -> collections.abc.Generator[Event, None, bool]:
        """Frames of one stretch of speech; returns whether the model itself came to its end."""
        history: list[list[int]] = [[] for _ in self.space.codebook_sizes]
        while self.num_frames < self.owner.max_frames:
            frame = self._next_frame(history)
            if frame is None:
                return True
            self.num_frames += 1
            codes_K = torch.tensor(frame)
            yield Frame(codes_K)
            for book, code in enumerate(frame):
                history[book].append(code)
            with torch.inference_mode():
                self._feed_embeds(self.lm.embed_frames(codes_K[None].to(self.device)))
        return False

    @torch.inference_mode()
    def _embed(self, prompt: Document) -> Tensor:
        return self.lm.embed(prompt.ids_L.to(self.device), prompt.codes_LK.to(self.device))

    @torch.inference_mode()
    def _feed_token(self, token_id: int) -> None:
        self._feed_embeds(self.lm.backbone.embed_text(torch.tensor([token_id], device=self.device)))

    @torch.inference_mode()
    def _feed_embeds(self, embeds_LD: Tensor) -> None:
        self.hidden_D = self.lm.backbone.step(embeds_LD, self.cache)[-1]

    @torch.inference_mode()
    def _next_token(self) -> int:
        logits_V = self.lm.backbone.lm_head(self.hidden_D)[: self.space.vocab_size].float().cpu()
        may_speak = self.form != "text" and self.num_frames < self.owner.max_frames
        allowed_V = self.owner.allowed_text(may_speak)
        return draw(logits_V.where(allowed_V, -torch.inf), self.owner.text, self.said, self.generator)

    @torch.inference_mode()
    def _next_frame(self, history: list[list[int]]) -> list[int] | None:
        """The codes of the next frame, or None for "end of audio"."""
        x_1D, past, frame = self.hidden_D[None], list[KeyValue](), list[int]()
        for book, size in enumerate(self.space.codebook_sizes):
            logits_V = self.lm.audio_head.step(x_1D, past)[0].float().cpu()
            if book > 0 or not history[0]:
                logits_V[size] = -torch.inf
            code = draw(logits_V, self.owner.audio, history[book], self.generator)
            if code == size:
                return None
            frame.append(code)
            embed_1D = self.lm.audio_embed[book](torch.tensor([code], device=self.device))
            x_1D = embed_1D if book == 0 else x_1D + embed_1D
        return frame


def collect(events: Iterable[Event]) -> Reply:
    """Events to a reply."""
    reply, frames = Reply(), list[Tensor]()
    for event in events:
        if isinstance(event, Frame):
            frames.append(event.codes_K)
        elif isinstance(event, SpeechEnd):
            reply.complete = reply.complete and event.complete
            if frames:
                reply.segments.append(torch.stack(frames))
            frames = []
        elif isinstance(event, Cut):
            reply.complete = False
        elif reply.segments and isinstance(reply.segments[-1], list):
            reply.segments[-1].append(event.token_id)
        else:
            reply.segments.append([event.token_id])
    return reply
