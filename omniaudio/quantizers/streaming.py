"""Codes while the speaker still speaks: fixed segments, each heard with some of the past.

The encoder attends in both directions, so a segment that has not heard the rest of the clip gets other codes
than the clip as a whole. The number of codes is the same, and segments of 30 s without context are exactly the
chunks of ``SpeechTokenizer.encode``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.quantizers.speech_tokenizer import MIN_SAMPLES, SpeechTokenizer
from omniaudio.types import Codes, device_of


class StreamingEncoder:
    """Waveform in pieces of any size in, codes of whole segments out.

    Memory and work of a call depend on the segment and its context, not on what came before.

    Args:
        tokenizer: in eval mode.
        segment_frames: code frames that come out at once; the delay.
        context_frames: code frames of the past that a segment is heard with.
    """

    def __init__(
        self, tokenizer: SpeechTokenizer, segment_frames: int = 25, context_frames: int = 50
    ) -> None:
        self.tokenizer = tokenizer
        self.samples_per_frame = round(tokenizer.sample_rate_hz / tokenizer.code_rate_hz)
        most = tokenizer.chunk_samples // self.samples_per_frame
        if segment_frames < 1 or context_frames < 0 or segment_frames + context_frames > most:
            raise UserError(
                f"streaming: segment_frames {segment_frames} + context_frames {context_frames} must be "
                f"1 to {most}, what the encoder hears at once"
            )
        self.segment_frames, self.context_frames = segment_frames, context_frames
        self.reset()

    def reset(self) -> None:
        """Forget everything: another recording begins."""
        self._past = torch.zeros(0)
        self._waiting = torch.zeros(0)

    @property
    def num_waiting(self) -> int:
        """Samples that have no codes yet."""
        return len(self._waiting)

    def push(self, wav_N: Tensor) -> Codes:
        """Hear the next samples, float (N,) in [-1, 1]; returns the codes (1, S, K) of segments now complete."""
        if wav_N.ndim != 1:
            raise UserError(f"streaming: samples of shape {tuple(wav_N.shape)}; expected one channel (N,)")
        self._waiting = torch.cat([self._waiting, wav_N.detach().cpu().float()])
        segment, pieces = self.segment_frames * self.samples_per_frame, []
        while len(self._waiting) >= segment:
            pieces.append(self._encode(self._waiting[:segment]))
            self._waiting = self._waiting[segment:]
        return self._joined(pieces)

    def flush(self) -> Codes:
        """The recording is over: codes of what waits; the encoder is ready for another one."""
        codes = self._joined([self._encode(self._waiting)])
        self.reset()
        return codes

    def _encode(self, segment_N: Tensor) -> Tensor:
        heard_N = torch.cat([self._past, segment_N])
        num_past = len(self._past) // self.samples_per_frame
        self._past = heard_N[max(0, len(heard_N) - self.context_frames * self.samples_per_frame) :]
        if len(heard_N) < MIN_SAMPLES or not len(segment_N):
            return self._none()
        device = device_of(self.tokenizer)
        codes = self.tokenizer.encode(heard_N[None].to(device), torch.tensor([len(heard_N)], device=device))
        return codes.codes_BSK[0, num_past:].cpu()

    def _none(self) -> Tensor:
        return torch.zeros(0, len(self.tokenizer.codebook_sizes), dtype=torch.int64)

    def _joined(self, pieces: list[Tensor]) -> Codes:
        codes_SK = torch.cat([self._none(), *pieces])
        return Codes(codes_BSK=codes_SK[None], num_frames_B=torch.tensor([len(codes_SK)]))
