"""Time to the first samples of a spoken reply of 10 s: in chunks, against whole stretches. Mini sizes, random weights.

Both write codes by the language model; the parts are those of ``mel_decoder=streaming flow=streaming``, so that both
say the same samples.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import compare

from omniaudio.cli.main import compose
from omniaudio.config import build
from omniaudio.dialogue.model import DialogueSettings, SpokenLanguageModel
from omniaudio.dialogue.speech_stream import StreamSettings, Stretches
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.generate import Frame, Generator, SpeechEnd

FRAMES = 125
STREAM = StreamSettings(chunk_frames=12, first_frames=4)


def new_model() -> SpokenLanguageModel:
    torch.manual_seed(0)
    words = ["experiment=baichuan_audio/flow", "scale=mini", "mel_decoder=streaming", "flow=streaming"]
    config = compose("train", words)
    parts = {name: build(config[name]) for name in ("tokenizer", "lm", "flow", "vocoder")}
    for name in ("tokenizer", "flow"):
        for parameter in parts[name].parameters():
            if not parameter.any():  # the first weights of residual branches, which would hide what they see
                torch.nn.init.normal_(parameter, std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        text = TextTokenizer.train(["please hold the line"] * 3, 280, Path(folder) / "tokenizer.json")
    return SpokenLanguageModel(**parts, text_tokenizer=text, settings=DialogueSettings(stream=STREAM)).eval()


model = new_model()


def spoken(chunk_frames: int) -> Iterator[np.ndarray]:
    """Pieces of one reply of speech, each when it is there."""
    stretches = Stretches(model, dataclasses.replace(STREAM, chunk_frames=chunk_frames), seed=0)
    generator = Generator(model.lm, max_text_tokens=0, max_frames=FRAMES)
    prompt = model.text_prompt("please hold the line")
    for event in generator.stream(prompt, "speech", torch.Generator().manual_seed(0)):
        if isinstance(event, (Frame, SpeechEnd)):
            wav_N, _ = stretches.next(event)
            if len(wav_N):
                yield wav_N


def same(_: np.ndarray, whole_N: np.ndarray) -> str:
    streamed_N = np.concatenate(list(spoken(STREAM.chunk_frames)))
    if len(whole_N) < 0.9 * FRAMES / 12.5 * model.sample_rate_hz or len(streamed_N) != len(whole_N):
        return f"{len(streamed_N)} and {len(whole_N)} samples"
    worst = float(np.abs(streamed_N - whole_N).max())
    return "" if worst <= 1e-3 * max(1.0, float(np.abs(whole_N).max())) else f"largest difference {worst:.2g}"


compare(
    "16 first audio of a spoken reply of 10 s", lambda: next(spoken(STREAM.chunk_frames)), lambda: next(spoken(0)),
    same, "whole stretches", 4, f"frames before it: {FRAMES / (STREAM.first + STREAM.chunk_frames):.1f}",
)  # fmt: skip
