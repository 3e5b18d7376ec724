"""Waveform while the mel still comes: each piece is made of a window of mel frames that holds all it depends on."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.types import device_of
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.source import SourceStream

FADE_FRAMES = 2
"""Over so many frames, at most, one window goes over into the next."""


class Vocoder(Protocol):
    """Log-mel (B, M, T) to waveform (B, T * hop), each sample made of the frames around it."""

    mel_spec: MelSpec

    @property
    def reach_frames(self) -> tuple[int, int]: ...

    def __call__(self, mel_BMT: Tensor) -> Tensor: ...


class VocoderStream:
    """Mel frames in pieces of any size in, samples out; in all as many as the vocoder makes of the whole mel.

    With the vocoder's own reach as look-ahead, the samples are those of the whole mel: seams cannot be heard. With less
    they come earlier and are a guess at what the missing frames change; the next window fades in over what was guessed
    beyond the seam. Phases of a harmonic source run on. Memory and work of a call do not depend on what came before.

    Args:
        vocoder: in eval mode.
        look_ahead: mel frames that must follow a frame before it is spoken; None: all that it depends on. 0 is 1 where
            it depends on any: without something to fade over, seams click.
    """

    def __init__(self, vocoder: Vocoder, look_ahead: int | None = None) -> None:
        self.vocoder = vocoder
        before, after = vocoder.reach_frames
        pitch_reach = vocoder.f0_predictor.reach_frames if isinstance(vocoder, HiFT) else 0
        if look_ahead is not None and look_ahead < 0:
            raise UserError(f"streaming: look_ahead {look_ahead} mel frames; at least 0")
        enough = after + pitch_reach
        self.look_ahead = enough if look_ahead is None else min(max(look_ahead, 1), enough)
        self._num_fade = 0 if self.look_ahead == enough else FADE_FRAMES * vocoder.mel_spec.hop
        self._before = max(before, pitch_reach)
        self._pitch_ahead = min(
            pitch_reach, max(0, self.look_ahead - FADE_FRAMES)
        )  # something is left to fade over
        self._begin()

    def _begin(self) -> None:
        device, spec = device_of(self.vocoder), self.vocoder.mel_spec  # type: ignore[arg-type]
        self._source = SourceStream(self.vocoder.source) if isinstance(self.vocoder, HiFT) else None
        self._mel_MT = torch.zeros(spec.num_mels, 0, device=device)  # frames from _first on
        self._excitation_N = torch.zeros(0, device=device)  # from the same frame on
        self._tail_N = torch.zeros(0, device=device)  # what the last window said of what comes now
        self._first = self._spoken = 0

    @property
    def _seen(self) -> int:
        return self._first + self._mel_MT.shape[1]

    @torch.no_grad()
    def push(self, mel_MT: Tensor) -> Tensor:
        """The next frames (M, T) of log-mel; returns the samples (N,) that are ready."""
        self._mel_MT = torch.cat([self._mel_MT, mel_MT.to(self._mel_MT)], dim=1)
        self._excite(self._seen - self._pitch_ahead)
        end = self._seen - self.look_ahead
        if end <= self._spoken:
            return mel_MT.new_zeros(0)
        return self._speak(end, self._seen - self._pitch_ahead)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The mel is over: the samples (N,) that are left. The stream is ready for another mel."""
        self._excite(self._seen)
        left_N = self._mel_MT.new_zeros(0)
        if self._seen > self._spoken:
            left_N = self._speak(self._seen, self._seen)
        self._begin()
        return left_N

    def _excite(self, end: int) -> None:
        """Excitation up to a frame, from the F0 of the frames that have none yet."""
        if self._source is None:
            return
        assert isinstance(self.vocoder, HiFT)
        begin = self._first + len(self._excitation_N) // self.vocoder.mel_spec.hop
        if end > begin:
            f0_BT = self.vocoder.f0_predictor(self._mel_MT[None])[:, begin - self._first : end - self._first]
            self._excitation_N = torch.cat([self._excitation_N, self._source.push(f0_BT)[0]])

    def _speak(self, end: int, window_end: int) -> Tensor:
        """Samples of the frames from ``_spoken`` to ``end``, made of all that is held before ``window_end``."""
        hop, first = self.vocoder.mel_spec.hop, self._first
        window_BMT = self._mel_MT[None, :, : window_end - first]
        if isinstance(self.vocoder, HiFT):
            excitation_BN = self._excitation_N[None, : (window_end - first) * hop]
            wav_N = self.vocoder.filter(window_BMT, excitation_BN)[0]
        else:
            wav_N = self.vocoder(window_BMT)[0]
        wav_N = wav_N[(self._spoken - first) * hop :]
        num_faded = min(len(self._tail_N), len(wav_N))
        fade_in_N = torch.linspace(0, 1, num_faded + 2, device=wav_N.device)[1:-1]
        faded_N = self._tail_N[:num_faded].lerp(wav_N[:num_faded], fade_in_N)
        wav_N = torch.cat([faded_N, wav_N[num_faded:]])
        num_ready = (end - self._spoken) * hop
        self._tail_N = wav_N[num_ready : num_ready + self._num_fade]
        self._spoken = end
        gone = max(0, end - self._before - first)
        self._mel_MT, self._excitation_N = self._mel_MT[:, gone:], self._excitation_N[gone * hop :]
        self._first += gone
        return wav_N[:num_ready]
