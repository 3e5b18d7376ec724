"""Speech while its codes still come: what the model says of a stretch, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.flow_stream import FlowStream, has_limits
from omniaudio.dialogue.remel import remel
from omniaudio.errors import UserError
from omniaudio.lm.generate import Frame, SpeechEnd
from omniaudio.quantizers.decoder_stream import DecoderStream
from omniaudio.quantizers.mel_decoder import FRAMES_PER_CODE, CausalMelDecoder
from omniaudio.types import Codes
from omniaudio.vocoders.stream import VocoderStream

if TYPE_CHECKING:
    from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
    from omniaudio.dialogue.model import DecodePath, SpokenLanguageModel
    from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer

FADE_FRAMES = 8
"""Mel frames, at most, over which one window goes over into the next."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How a stretch of speech is cut into chunks.

    Args:
        chunk_frames: code frames that are decoded at once; 0: the whole stretch. ``reply`` decodes stretches whole in
            any case but that of parts made for chunks (see ``chunks_of``). Exports are made with 12, about a second;
            here it is 0, for older ones that do not say: their streams stay as they were.
        first_frames: of the first chunk, at most ``chunk_frames``: the sooner something is heard.
        context_frames: code frames of the past that the attention of a flow without a limit of its own sees, and the
            norms of the tokenizer's own mels.
        look_ahead_frames: code frames after a chunk that the tokenizer's own mels wait for; flow matching needs none.
        vocoder_look_ahead: see VocoderStream.
        segment_frames, segment_context_frames: of a user who is heard while speaking: code frames that are coded and
            read at once, the most that is left to do when the speech ends; code frames of the past that they are
            heard with (see StreamingEncoder).
    """

    chunk_frames: int = 0
    first_frames: int = 4
    context_frames: int = 50
    look_ahead_frames: int = 4
    vocoder_look_ahead: int | None = None
    segment_frames: int = 25
    segment_context_frames: int = 50

    def __post_init__(self) -> None:
        least = {"chunk_frames": 0, "first_frames": 1, "context_frames": 1, "look_ahead_frames": 0}
        least |= {"segment_frames": 1, "segment_context_frames": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"dialogue.stream.{name} {getattr(self, name)}: at least {low}")

    @property
    def first(self) -> int:
        """Code frames of the first chunk."""
        return min(self.first_frames, self.chunk_frames)

    @property
    def mel_chunks(self) -> Chunks | None:
        """The same in frames of hidden states, of which the last code has one less; None: no chunks."""
        if not self.chunk_frames:
            return None
        return Chunks(FRAMES_PER_CODE * self.first - 1, FRAMES_PER_CODE * self.chunk_frames)


def chunks_of(
    tokenizer: SpeechTokenizer, flow: FlowMatchingDecoder, settings: StreamSettings
) -> Chunks | None:
    """How flow matching cuts a stretch: as its stream does, if decoder and flow were made to say the same in chunks."""
    same = isinstance(tokenizer.decoder, CausalMelDecoder) and has_limits(flow)
    return settings.mel_chunks if same else None


class SpeechStream:
    """Codes of one stretch of speech in pieces of any size in, samples out, in all as many as ``decode`` gives.

    Decoder, flow and vocoder go on where they stopped, with the noise of the place. With a CausalMelDecoder and a flow
    with limits, the samples are those of ``decode`` with the same settings (but for what ``vocoder_look_ahead`` leaves
    out). Parts that were trained on whole stretches say nearly the same: their norm sees the past instead of the whole,
    their attention this chunk instead of theirs, and no more of the past than ``context_frames``.
    Memory and work of a chunk do not depend on what came before. What is dropped before its end leaves nothing behind.

    Args:
        model: in eval mode.
        settings: with ``chunk_frames``.
        num_books, path, seed: see SpokenLanguageModel.mel.
    """

    def __init__(
        self,
        model: SpokenLanguageModel,
        settings: StreamSettings,
        num_books: int | None = None,
        path: DecodePath | None = None,
        seed: int = 0,
    ) -> None:
        from omniaudio.dialogue.model import check_decode_path

        if not settings.chunk_frames:
            raise UserError("streaming: dialogue.stream.chunk_frames is 0, the whole stretch at once")
        path = model.settings.mel_path if path is None else check_decode_path(path)
        self._mel: _FlowMel | _OwnMel
        if path == "flow":
            self._mel, self._ahead = _FlowMel(model, settings, num_books, seed), 0
        else:
            self._mel, self._ahead = _OwnMel(model, settings, num_books, path), settings.look_ahead_frames
        self._vocoder = VocoderStream(cast(Any, model.vocoder), settings.vocoder_look_ahead)
        self._waiting_SK = torch.zeros(0, len(model.tokenizer.codebook_sizes), dtype=torch.int64)
        self._size, self._next_size = settings.first, settings.chunk_frames

    @torch.inference_mode()
    def push(self, codes_SK: Tensor) -> np.ndarray:
        """The next codes (S, K); returns the samples (N,), float32, that are ready."""
        self._waiting_SK = torch.cat([self._waiting_SK, codes_SK.cpu()])
        wavs = [np.zeros(0, np.float32)]
        while len(self._waiting_SK) >= self._size + self._ahead:
            ahead_SK = self._waiting_SK[self._size : self._size + self._ahead]
            mel_MT = self._mel.push(self._waiting_SK[: self._size], ahead_SK)
            self._waiting_SK = self._waiting_SK[self._size :]
            self._size = self._next_size
            wavs.append(_array(self._vocoder.push(mel_MT)))
        return np.concatenate(wavs)

    @torch.inference_mode()
    def finish(self) -> np.ndarray:
        """The stretch is over: the samples (N,) that are left."""
        wav_N = np.zeros(0, np.float32)
        if len(self._waiting_SK):
            mel_MT = self._mel.push(self._waiting_SK, self._waiting_SK[:0])
            self._waiting_SK = self._waiting_SK[:0]
            wav_N = _array(self._vocoder.push(mel_MT))
        return np.concatenate([wav_N, _array(self._vocoder.finish())])


class Stretches:
    """Events of a reply to chunks of its speech; one stretch ends before the next begins.

    Args:
        model, settings, seed: see SpeechStream; without ``chunk_frames``, a stretch comes whole when it ends.
    """

    def __init__(self, model: SpokenLanguageModel, settings: StreamSettings, seed: int) -> None:
        self._model, self._settings, self._seed = model, settings, seed
        self._none_SK = torch.zeros(0, len(model.tokenizer.codebook_sizes), dtype=torch.int64)
        self._codes_SK, self._speech = self._none_SK, self._new()

    def _new(self) -> SpeechStream | None:
        if not self._settings.chunk_frames:
            return None
        return SpeechStream(self._model, self._settings, seed=self._seed)

    def next(self, event: Frame | SpeechEnd) -> tuple[np.ndarray, Tensor]:
        """Samples (N,) that can be heard after an event, often none, and the codes (S, K) that came since the last."""
        wav_N = np.zeros(0, np.float32)
        if isinstance(event, Frame):
            self._codes_SK = torch.cat([self._codes_SK, event.codes_K[None].cpu()])
            if self._speech is not None:
                wav_N = self._speech.push(event.codes_K[None])
        elif self._speech is not None:
            wav_N, self._speech = self._speech.finish(), self._new()
        else:
            num_frames_B = torch.tensor([len(self._codes_SK)])
            codes = Codes(codes_BSK=self._codes_SK[None], num_frames_B=num_frames_B).to(self._model.device)
            wav_N = self._model.decode(codes, seed=self._seed)
        codes_SK = self._codes_SK
        if len(wav_N) or isinstance(event, SpeechEnd):
            self._codes_SK = self._none_SK
        return wav_N, codes_SK


class _FlowMel:
    """Chunks of codes to mel by decoder and flow that go on where they stopped."""

    def __init__(
        self, model: SpokenLanguageModel, settings: StreamSettings, num_books: int | None, seed: int
    ) -> None:
        self._decoder = DecoderStream(model.tokenizer, num_books)
        generator = torch.Generator().manual_seed(seed)
        look_back = FRAMES_PER_CODE * settings.context_frames
        self._flow = FlowStream(model.flow, generator, look_back, **model.settings.flow_options())

    def push(self, chunk_SK: Tensor, ahead_SK: Tensor) -> Tensor:
        return self._flow.push(self._decoder.push(chunk_SK))


class _OwnMel:
    """Chunks of codes to the tokenizer's own mel: states by a decoder that goes on, mels in windows of them."""

    def __init__(
        self, model: SpokenLanguageModel, settings: StreamSettings, num_books: int | None, path: DecodePath
    ) -> None:
        self._model, self._path, self._context = model, path, settings.context_frames
        self._decoder = DecoderStream(model.tokenizer, num_books)
        ratio = model.mel_spec.mel_rate_hz / model.tokenizer.code_rate_hz
        self._per_code = round(ratio)
        if self._per_code != ratio:
            raise UserError(f"streaming: {ratio:g} mel frames a code; the vocoder's must be a whole number")
        self._hidden_TD = self._decoder.push(torch.zeros(0, len(model.tokenizer.codebook_sizes)))
        self._first = self._heard = self._given = 0  # codes: first that is held, heard, given out
        self._done = 0  # mel frames given out
        self._tail_MT = torch.zeros(model.mel_spec.num_mels, 0, device=model.device)

    def push(self, chunk_SK: Tensor, ahead_SK: Tensor) -> Tensor:
        new_SK = torch.cat([chunk_SK, ahead_SK])[self._heard - self._given :]
        self._hidden_TD = torch.cat([self._hidden_TD, self._decoder.push(new_SK)])
        self._heard += len(new_SK)
        self._given += len(chunk_SK)
        mel_MT, first = self._decode(), self._first * self._per_code
        end = first + mel_MT.shape[1]
        if len(ahead_SK):  # otherwise the window ends here
            end = min(end, self._given * self._per_code - 1)
        piece_MT, rest_MT = mel_MT[:, self._done - first :].tensor_split([end - self._done], dim=1)
        num_faded = min(self._tail_MT.shape[1], piece_MT.shape[1])
        fade_in_T = torch.linspace(0, 1, num_faded + 2, device=mel_MT.device)[1:-1]
        faded_MT = self._tail_MT[:, :num_faded].lerp(piece_MT[:, :num_faded], fade_in_T)
        self._tail_MT, self._done = rest_MT[:, :FADE_FRAMES], end
        gone = max(0, self._given - self._context - self._first)
        self._hidden_TD, self._first = self._hidden_TD[gone * FRAMES_PER_CODE :], self._first + gone
        return torch.cat([faded_MT, piece_MT[:, num_faded:]], dim=1)

    def _decode(self) -> Tensor:
        """Mel (M, T) of the states that are held, for the vocoder."""
        tokenizer = self._model.tokenizer
        length_B = torch.tensor([len(self._hidden_TD)], device=self._hidden_TD.device)
        made = tokenizer.decoder.mels(self._hidden_TD[None], length_B)
        own_BMT = made.refined_BMT if self._path == "refined" else made.coarse_BMT
        return remel(own_BMT, made.mel_len_B, tokenizer.decoder_mel_spec, self._model.mel_spec)[0][0]


def _array(wav_N: Tensor) -> np.ndarray:
    samples_N: np.ndarray = wav_N.float().cpu().numpy()
    return samples_N
