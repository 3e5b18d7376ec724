"""How soon speech is heard, and whether it keeps up, by size of chunk."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.dialogue.speech_stream import SpeechStream
from omniaudio.lm.generate import Frame, Generator
from omniaudio.metrics.signal import seam_step
from omniaudio.types import Codes

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """Speech in chunks of one size.

    Attributes:
        chunk_frames: code frames; 0: the whole stretch at once.
        first_sec: from the beginning of the stretch to its first samples: the codes they wait for, and decoding them.
        factor: time of decoding the stretch over its length; with ``lm_factor``, below 1 keeps up.
        lm_factor: time in which the language model writes the codes, over their length.
        mel_error: mean absolute difference from the whole stretch's log-mel.
        worst: largest difference of a sample from the whole stretch's.
        seam: largest step from sample to sample at a seam, over those around it: see ``seam_step``.
    """

    chunk_frames: int
    first_sec: float
    factor: float
    lm_factor: float
    mel_error: float = 0.0
    worst: float = 0.0
    seam: float = 0.0


def written_codes(
    model: SpokenLanguageModel, text: str, num_frames: int, clock: Clock = time.perf_counter
) -> tuple[Tensor, float]:
    """Codes (S, K) of a text read aloud, again and again until there are enough, and the seconds a frame took."""
    frames, spent, seed = list[Tensor](), 0.0, 0
    while len(frames) < num_frames:
        generator = Generator(
            model.lm, audio=model.settings.audio, max_text_tokens=0, max_frames=num_frames - len(frames)
        )
        began = clock()
        events = generator.stream(model.text_prompt(text), "speech", torch.Generator().manual_seed(seed))
        frames += [event.codes_K for event in events if isinstance(event, Frame)]
        spent, seed = spent + clock() - began, seed + 1
    return torch.stack(frames), spent / num_frames


def latency_rows(
    model: SpokenLanguageModel,
    codes_SK: Tensor,
    frame_sec: float,
    sizes: Sequence[int],
    clock: Clock = time.perf_counter,
) -> list[LatencyRow]:
    """Decode a stretch of codes in chunks of each size, and whole (the first row).

    Args:
        codes_SK: of one stretch.
        frame_sec: time in which the language model writes a frame.
        sizes: code frames; other settings are the model's.
    """
    codes = Codes(codes_BSK=codes_SK[None], num_frames_B=torch.tensor([len(codes_SK)])).to(model.device)
    rows, settings = list[LatencyRow](), model.settings
    lm_factor = frame_sec * model.tokenizer.code_rate_hz
    try:
        for size in sizes:
            stream = dataclasses.replace(settings.stream, chunk_frames=size)
            model.settings = dataclasses.replace(settings, stream=stream)
            began = clock()
            whole_N = model.decode(codes)
            spent, seconds = clock() - began, len(whole_N) / model.sample_rate_hz
            if not rows:
                first_sec = len(codes_SK) * frame_sec + spent
                rows.append(
                    LatencyRow(
                        chunk_frames=0, first_sec=first_sec, factor=spent / seconds, lm_factor=lm_factor
                    )
                )
            rows.append(_row(model, codes_SK, frame_sec, whole_N, clock))
    finally:
        model.settings = settings
    return rows


def _row(
    model: SpokenLanguageModel, codes_SK: Tensor, frame_sec: float, whole_N: np.ndarray, clock: Clock
) -> LatencyRow:
    settings = model.settings.stream
    stream, pieces, first_sec, began = SpeechStream(model, settings), list[np.ndarray](), 0.0, clock()
    for count, codes_K in enumerate(codes_SK, 1):
        pieces.append(stream.push(codes_K[None]))
        if len(pieces[-1]) and not first_sec:
            first_sec = count * frame_sec + clock() - began
    pieces.append(stream.finish())
    spent, streamed_N = clock() - began, np.concatenate(pieces)
    seams = np.unique(np.cumsum([len(piece) for piece in pieces]))
    inner = [int(n) for n in seams if 0 < n < len(streamed_N)]
    mels = [model.true_mel(wav_N, model.sample_rate_hz)[0] for wav_N in (streamed_N, whole_N)]
    return LatencyRow(
        chunk_frames=settings.chunk_frames,
        first_sec=first_sec or len(codes_SK) * frame_sec + spent,
        factor=spent * model.sample_rate_hz / len(streamed_N),
        lm_factor=frame_sec * model.tokenizer.code_rate_hz,
        mel_error=float((mels[0] - mels[1]).abs().mean()),
        worst=float(np.abs(streamed_N - whole_N).max()),
        seam=seam_step(streamed_N, inner, model.sample_rate_hz),
    )


def latency_table(rows: Sequence[LatencyRow], frame_sec: float) -> list[list[str]]:
    """Head and lines; ``frame_sec`` is the length of a code frame."""
    head = ["chunk", "first audio", "decoding / real time", "with the language model", "mel from whole",
            "largest sample from whole", "step at seams / around"]  # fmt: skip
    lines = []
    for row in rows:
        size = f"{row.chunk_frames} ({row.chunk_frames * frame_sec:.2f} s)" if row.chunk_frames else "whole"
        line = [size, f"{row.first_sec:.2f} s", f"{row.factor:.2f}", f"{row.factor + row.lm_factor:.2f}"]
        same = (
            [f"{row.mel_error:.3f}", f"{row.worst:.1g}", f"{row.seam:.2f}"] if row.chunk_frames else [""] * 3
        )
        lines.append([*line, *same])
    return [head, *lines]
