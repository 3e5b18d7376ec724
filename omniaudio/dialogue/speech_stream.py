"""Speech while its codes still come: what the model says of a stretch, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from omniaudio.acoustic.flow_stream import FlowStream, Noise, can_stream
from omniaudio.acoustic.unet import Chunks
from omniaudio.dialogue.remel import remel
from omniaudio.errors import UserError
from omniaudio.lm.generate import Frame, SpeechEnd
from omniaudio.quantizers.decoder_stream import DecoderStream
from omniaudio.quantizers.mel_decoder import FRAMES_PER_CODE, CausalMelDecoder
from omniaudio.types import Codes
from omniaudio.vocoders.stream import VocoderStream

if TYPE_CHECKING:
    from omniaudio.dialogue.model import DecodePath, SpokenLanguageModel

FADE_FRAMES = 8
"""Mel frames, at most, over which one window goes over into the next."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How a stretch of speech is cut into chunks.

    Args:
        chunk_frames: code frames that are decoded at once; 0: the whole stretch.
        first_frames: of the first chunk, at most ``chunk_frames``: the sooner something is heard.
        context_frames, look_ahead_frames: code frames before and after a chunk that are decoded with it again. For
            decoders and flows that know whole stretches only; those trained for streaming remember instead, and need
            none.
        vocoder_look_ahead: see VocoderStream.
    """

    chunk_frames: int = 0
    first_frames: int = 4
    context_frames: int = 50
    look_ahead_frames: int = 4
    vocoder_look_ahead: int | None = None

    def __post_init__(self) -> None:
        least = {"chunk_frames": 0, "first_frames": 1, "context_frames": 1, "look_ahead_frames": 0}
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


def remembers(model: SpokenLanguageModel, path: DecodePath) -> bool:
    """Whether decoder and flow were made to go on where they stopped, so that chunks give the mel of the whole."""
    return path == "flow" and isinstance(model.tokenizer.decoder, CausalMelDecoder) and can_stream(model.flow)


class SpeechStream:
    """Codes of one stretch of speech in pieces of any size in, samples out, in all as many as ``decode`` gives.

    Where ``remembers``, they are the samples of ``decode`` with the same settings (up to what
    ``vocoder_look_ahead`` leaves out). Otherwise each chunk is decoded within a window of its neighbours, with the
    noise of its place: near to ``decode``, whose norms and attention see the whole stretch, but not the same.
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
        if not settings.chunk_frames:
            raise UserError("streaming: dialogue.stream.chunk_frames is 0, the whole stretch at once")
        path = model.settings.mel_path if path is None else path
        self._mel: _RememberedMel | _WindowMel
        if remembers(model, path):
            self._mel = _RememberedMel(model, num_books, seed)
        else:
            self._mel = _WindowMel(model, settings, num_books, path, seed)
        self._ahead = settings.look_ahead_frames if isinstance(self._mel, _WindowMel) else 0
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
        return (
            SpeechStream(self._model, self._settings, seed=self._seed)
            if self._settings.chunk_frames
            else None
        )

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


class _RememberedMel:
    """Chunks of codes to mel by decoder and flow that go on where they stopped."""

    def __init__(self, model: SpokenLanguageModel, num_books: int | None, seed: int) -> None:
        self._decoder = DecoderStream(model.tokenizer, num_books)
        generator = torch.Generator().manual_seed(seed)
        self._flow = FlowStream(model.flow, generator, **model.settings.flow_options())

    def push(self, chunk_SK: Tensor, ahead_SK: Tensor) -> Tensor:
        return self._flow.push(self._decoder.push(chunk_SK))


class _WindowMel:
    """Chunks of codes to mel, each decoded as a stretch of its own with the codes around it."""

    def __init__(
        self,
        model: SpokenLanguageModel,
        settings: StreamSettings,
        num_books: int | None,
        path: DecodePath,
        seed: int,
    ) -> None:
        self._model, self._num_books, self._path = model, num_books, path
        self._context = settings.context_frames
        ratio = model.mel_spec.mel_rate_hz / model.tokenizer.code_rate_hz
        self._per_code = round(ratio)
        most = model.tokenizer.chunk_frames
        window = settings.context_frames + settings.chunk_frames + 2 * settings.look_ahead_frames
        if self._per_code != ratio or window > most:
            raise UserError(
                f"streaming: context, chunk and twice the look-ahead are {window} code frames, at most {most}; "
                f"and {ratio:g} mel frames a code must be a whole number"
            )
        self._noise = Noise(model.flow, torch.Generator().manual_seed(seed))
        self._past_SK = torch.zeros(0, len(model.tokenizer.codebook_sizes), dtype=torch.int64)
        self._begin = self._done = 0  # first code that is held; mel frames given out
        self._tail_MT = torch.zeros(model.mel_spec.num_mels, 0, device=model.device)

    def push(self, chunk_SK: Tensor, ahead_SK: Tensor) -> Tensor:
        first = self._begin * self._per_code
        heard_SK = torch.cat([self._past_SK, chunk_SK])
        mel_MT = self._decode(torch.cat([heard_SK, ahead_SK]), first)
        end = first + mel_MT.shape[1]
        if len(ahead_SK):  # otherwise the window ends here
            end = min(end, first + len(heard_SK) * self._per_code - 1)
        piece_MT, rest_MT = mel_MT[:, self._done - first :].split(
            [end - self._done, first + mel_MT.shape[1] - end], dim=1
        )
        num_faded = min(self._tail_MT.shape[1], piece_MT.shape[1])
        fade_in_T = torch.linspace(0, 1, num_faded + 2, device=mel_MT.device)[1:-1]
        faded_MT = self._tail_MT[:, :num_faded].lerp(piece_MT[:, :num_faded], fade_in_T)
        self._tail_MT, self._done = rest_MT[:, :FADE_FRAMES], end
        self._past_SK = heard_SK[max(0, len(heard_SK) - self._context) :]
        self._begin += len(heard_SK) - len(self._past_SK)
        return torch.cat([faded_MT, piece_MT[:, num_faded:]], dim=1)

    def _decode(self, codes_SK: Tensor, first: int) -> Tensor:
        """Mel (M, T) of a window whose first frame is the ``first`` of the stretch."""
        model, device = self._model, self._model.device
        codes = Codes(codes_BSK=codes_SK[None], num_frames_B=torch.tensor([len(codes_SK)])).to(device)
        decoded = model.tokenizer.decode(codes, self._num_books)
        if self._path != "flow":
            own_BMT = decoded.refined_BMT if self._path == "refined" else decoded.coarse_BMT
            return remel(own_BMT, decoded.mel_len_B, model.tokenizer.decoder_mel_spec, model.mel_spec)[0][0]
        size = model.flow.estimator.chunk_frames
        num_frames = int(model.flow.mel_length(decoded.hidden_len_B))
        mel_BMT, _ = model.flow.decode(
            decoded.hidden_BTD,
            decoded.hidden_len_B,
            noise=self._noise.frames(first, first + num_frames),
            chunks=Chunks(size - first % size, size),  # where they would lie in the stretch
            **model.settings.flow_options(),
        )
        return mel_BMT[0]


def _array(wav_N: Tensor) -> np.ndarray:
    samples_N: np.ndarray = wav_N.float().cpu().numpy()
    return samples_N
