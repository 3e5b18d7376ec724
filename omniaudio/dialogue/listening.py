"""A user's turn that is heard while it is spoken, so that little is left to do when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omniaudio.dialogue.replies import ReplyChunk, in_chunks
from omniaudio.errors import UserError
from omniaudio.frontend.audio import Resampler, one_channel
from omniaudio.lm.generate import Generator, ReplyForm
from omniaudio.quantizers.streaming import StreamingEncoder
from omniaudio.sequence.chat import Message, segments_of
from omniaudio.sequence.spans import Document, DocumentBuilder
from omniaudio.types import Codes

if TYPE_CHECKING:
    from transformers import Cache

    from omniaudio.dialogue.model import SpokenLanguageModel


class Listener:
    """Samples of a turn in pieces of any size in, then the reply.

    The language model reads the turns before at once, and the speech segment by segment while it goes on: at its end,
    the last segment is left (``segment_frames`` of StreamSettings). A segment is heard without what follows it, so the
    codes are not those of the whole recording but where one segment holds all; to the codes of ``message`` the reply is
    that of ``SpokenLanguageModel.stream``. Whoever stops listening, or leaves the reply, just drops it.

    Args:
        model: in eval mode.
        generator: of its language model.
        rate_hz: of the samples.
        turn: the turn with one frame in the place of the speech, which comes first in it.
        prompt: the chat with this turn.
        form: of the reply.
        saved_positions: see SpokenReply.

    Attributes:
        saved_positions: as given.

    Raises:
        UserError: ``rate_hz`` is no rate.
    """

    def __init__(
        self,
        model: SpokenLanguageModel,
        generator: Generator,
        rate_hz: float,
        turn: Message,
        prompt: Document,
        form: ReplyForm,
        saved_positions: int = 0,
    ) -> None:
        if not 0 < rate_hz < float("inf"):
            raise UserError(f"listening: rate_hz {rate_hz}: samples a second, above 0")
        settings, tokenizer, space = model.settings.stream, model.tokenizer, model.lm.token_space
        self.saved_positions = saved_positions
        self._model, self._generator, self._turn, self._form = model, generator, turn, form
        self._resampler, self._num_samples = Resampler(rate_hz, tokenizer.sample_rate_hz), 0
        self._encoder = StreamingEncoder(tokenizer, settings.segment_frames, settings.segment_context_frames)
        place = int((prompt.ids_L == space.audio_pad).nonzero()[-1])
        self._codes_SK, self._rest = prompt.codes_LK[:0], prompt.part(place + 1)
        self._cache: Cache | None = model.lm.backbone.new_cache()
        generator.read(prompt.part(0, place), self._cache)

    @property
    def message(self) -> Message:
        """The turn with the codes that were heard so far, for the chat that goes on; complete with the reply."""
        _, *words = segments_of(self._turn["content"])
        return {"role": "user", "content": [self._codes_SK, *words]}

    def hear(self, piece_N: np.ndarray) -> None:
        """The next samples, float (N,) in [-1, 1].

        Raises:
            UserError: not one channel of finite floats, or the turn is over.
        """
        cache, wav_N = self._open_cache(), one_channel(piece_N)
        self._num_samples += len(wav_N)
        codes_SK = self._encode(self._resampler.push(wav_N))
        if len(codes_SK):
            self._generator.read(self._frames(codes_SK), cache)

    def reply(
        self, seed: int = 0, chunk_frames: int | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Iterator[ReplyChunk]:
        """The turn is over: what the model answers. Arguments as in ``SpokenLanguageModel.stream``.

        Raises:
            UserError: too little was heard for a frame of codes, or the turn was over before.
        """
        cache, rest = self._open_cache(), self._rest
        self._cache = None
        last_SK = torch.cat([self._encode(self._resampler.finish()), self._added(self._encoder.flush())])
        if not len(self._codes_SK):
            raise UserError(
                f"listening: the speech ended after {self._num_samples} samples, too few for a frame of codes"
            )
        if len(last_SK):
            rest = self._frames(last_SK).followed_by(rest)
        generator = torch.Generator().manual_seed(seed)
        events = self._generator.stream(rest, self._form, generator, cache)
        return in_chunks(self._model, events, seed, chunk_frames, cancelled)

    def _open_cache(self) -> Cache:
        if self._cache is None:
            raise UserError("listening: this turn is over; the next one needs a new model.listen(...)")
        return self._cache

    def _encode(self, wav_N: np.ndarray) -> Tensor:
        return self._added(self._encoder.push(torch.from_numpy(wav_N)))

    def _added(self, codes: Codes) -> Tensor:
        """Codes (S, K) that are new."""
        new_SK = codes.codes_BSK[0]
        self._codes_SK = torch.cat([self._codes_SK, new_SK])
        return new_SK

    def _frames(self, codes_SK: Tensor) -> Document:
        heard = DocumentBuilder(self._model.lm.token_space).heard(codes_SK).build("prompt", "heard")
        return heard.part(1, -1)  # without the marks around it
