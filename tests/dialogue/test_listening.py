"""A turn that is heard while it is spoken is answered as its codes are, and leaves nothing behind."""

import dataclasses
import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.lm.generate import Generator
from omniaudio.quantizers.streaming import StreamingEncoder
from tests.dialogue.tiny_experiment import speech

PAST: list[Any] = [
    {"role": "user", "content": np.ones((4, 3), np.int64)},
    {"role": "assistant", "content": ["a word", np.ones((3, 3), np.int64)]},
]


@pytest.fixture
def quick(model: SpokenLanguageModel, monkeypatch: pytest.MonkeyPatch) -> SpokenLanguageModel:
    """Segments of 5 frames that hear 10 of their past, and few words beside speech."""
    allowed_text = Generator.allowed_text

    def few(self: Generator, may_speak: bool) -> torch.Tensor:
        allowed_V = allowed_text(self, may_speak)
        allowed_V[100 : self.lm.token_space.text_vocab_size] = False
        allowed_V[:97] = False
        return allowed_V

    monkeypatch.setattr(Generator, "allowed_text", few)
    stream = dataclasses.replace(model.settings.stream, segment_frames=5, segment_context_frames=10)
    monkeypatch.setattr(model, "settings", dataclasses.replace(model.settings, stream=stream))
    return model


def cut(wav_N: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of odd sizes, some of them empty."""
    sizes = itertools.cycle([1, 0, 4001, 333, 9000])
    while len(wav_N):
        size = next(sizes)
        yield wav_N[:size]
        wav_N = wav_N[size:]


def same(chunks: list[Any], expected: list[Any]) -> None:
    assert [chunk.keys() for chunk in chunks] == [chunk.keys() for chunk in expected]
    for chunk, wanted in zip(chunks, expected, strict=True):
        if "wav" in chunk:
            assert torch.equal(chunk["codes_SK"], wanted["codes_SK"])
            np.testing.assert_array_equal(chunk["wav"], wanted["wav"])
        else:
            assert chunk == wanted


@pytest.mark.parametrize(
    ("rate_hz", "task", "speak", "history"),
    [(16000, None, True, "audio"), (44100, "repeat", True, "text"), (8000, "transcribe", False, "audio")],
)
def test_the_reply_is_that_to_the_codes_of_the_streaming_encoder(
    quick: SpokenLanguageModel, rate_hz: int, task: str | None, speak: bool, history: str
) -> None:
    wav_N = speech(2.1, rate_hz, 1)
    options: dict[str, Any] = {"speak": speak, "history": history}
    listener = quick.listen(rate_hz, PAST, task, **options)
    for piece_N in cut(wav_N):
        listener.hear(piece_N)
    chunks = list(listener.reply(seed=3, chunk_frames=2))
    encoder, whole_N = (
        StreamingEncoder(quick.tokenizer, 5, 10),
        torch.from_numpy(resample(wav_N, rate_hz, 16000)),
    )
    codes_SK = torch.cat([part.codes_BSK[0] for part in (encoder.push(whole_N), encoder.flush())])
    question = quick.question(wav_N, rate_hz, task)["content"]
    words = question[1:] if isinstance(question, list) else []
    (heard_SK, *asked) = listener.message["content"]  # type: ignore[misc]
    assert len(codes_SK) == 26 and torch.equal(heard_SK, codes_SK) and asked == words
    expected = list(quick.stream([*PAST, listener.message], seed=3, chunk_frames=2, **options))
    assert expected and any("wav" in chunk for chunk in expected) == speak
    told = list(quick.reply_to(cut(wav_N), rate_hz, PAST, task, seed=3, chunk_frames=2, **options))
    same(told, expected)
    same(chunks, expected[history == "text" :])
    if history == "text":
        assert told[0] == {"saved_positions": listener.saved_positions}


def test_when_the_speech_ends_its_last_segment_alone_is_left(
    quick: SpokenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, encode, step = list[tuple[str, int]](), type(quick.tokenizer).encode, type(quick.lm.backbone).step

    def coded(self: Any, wav_BN: torch.Tensor, num_samples_B: torch.Tensor) -> Any:
        work.append(("coded", wav_BN.shape[1] // 1280))
        return encode(self, wav_BN, num_samples_B)

    def read(self: Any, embeds_LD: torch.Tensor, cache: Any) -> torch.Tensor:
        work.append(("read", len(embeds_LD)))
        return step(self, embeds_LD, cache)

    monkeypatch.setattr(type(quick.tokenizer), "encode", coded)
    monkeypatch.setattr(type(quick.lm.backbone), "step", read)
    listener = quick.listen(16000, PAST)
    wav_N = speech(3.0, 16000, 0)
    for piece_N in np.split(wav_N, range(1280, len(wav_N), 1280)):
        listener.hear(piece_N)
    past = len(quick.chat.prompt([*PAST, listener.message], "speech")) - 35 - 3
    segments = [("coded", min(15, 5 + heard)) for heard in range(0, 35, 5)]
    assert work == [("read", past), *(part for segment in segments for part in (segment, ("read", 5)))]
    work.clear()
    next(listener.reply())
    assert work == [("coded", 12), ("read", 2 + 3)], "two frames, and what closes the turn"


def test_what_is_left_at_any_moment_leaves_nothing_behind(
    quick: SpokenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the user speaks, when the microphone breaks, and at every chunk of the reply."""
    caches, new_cache = list[Any](), type(quick.lm.backbone).new_cache

    def watched(self: Any) -> Any:
        cache = new_cache(self)
        caches.append(weakref.ref(cache))
        return cache

    def broken() -> Iterator[np.ndarray]:
        yield wav_N
        raise OSError("the microphone is gone")

    wav_N = speech(1.3, 16000, 0)
    whole, chance = list(quick.reply_to(cut(wav_N), 16000, seed=2)), torch.get_rng_state()
    monkeypatch.setattr(type(quick.lm.backbone), "new_cache", watched)
    quick.listen(16000).hear(wav_N)
    with pytest.raises(OSError, match="microphone"):
        next(quick.reply_to(broken(), 16000))
    for num in range(1, len(whole) + 1):
        reply = quick.reply_to(cut(wav_N), 16000, seed=2)
        for _ in range(num):
            next(reply)
        reply.close()  # type: ignore[attr-defined]
    gc.collect()
    assert len(caches) == 2 + len(whole) > 3 and not any(cache() for cache in caches)
    assert torch.equal(torch.get_rng_state(), chance)
    same(list(quick.reply_to(cut(wav_N), 16000, seed=2)), whole)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([], "the speech ended after 0 samples, too few for a frame"),
        ([np.zeros(700, np.float32)], "the speech ended after 700 samples, too few"),
        ([np.zeros((800, 2), np.float32)], "shape .800, 2.: expected one channel"),
        ([np.full(800, np.nan, np.float32)], "finite"),
        ([np.zeros(800, np.int16)], "speech of int16: expected floats"),
    ],
)
def test_what_cannot_be_heard_is_one_line(quick: SpokenLanguageModel, pieces: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        next(quick.reply_to(iter(pieces), 16000))
    assert "\n" not in str(error.value)


def test_mistakes_are_one_line(quick: SpokenLanguageModel) -> None:
    for rate_hz in (0, -8000, float("nan")):
        with pytest.raises(UserError, match="listening: rate_hz .*: samples a second, above 0"):
            quick.listen(rate_hz)
    with pytest.raises(UserError, match="task 'sing' is not one of transcribe"):
        quick.listen(16000, task="sing")
    listener = quick.listen(16000)
    listener.hear(speech(0.5, 16000, 0))
    listener.reply()
    for again in (listener.reply, lambda: listener.hear(np.zeros(1, np.float32))):
        with pytest.raises(UserError, match="this turn is over"):
            again()
