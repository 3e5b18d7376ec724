"""Speech chunk by chunk: the samples of the whole where the parts were made for it, near to them elsewhere."""

import copy
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from omniaudio.cli.main import compose
from omniaudio.config import build
from omniaudio.dialogue.model import DialogueSettings, SpokenLanguageModel
from omniaudio.dialogue.speech_stream import SpeechStream, StreamSettings
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.lm.generate import Frame, SpeechEnd, TextToken
from omniaudio.quantizers.mel_decoder import CausalMelDecoder
from omniaudio.types import Codes
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.istft import ISTFTVocoder
from tests.dialogue.tiny_experiment import BOOKS, flow_config
from tests.vocoders.vocoder_fixtures import SOURCE, slow_wave, step_at_seams

SMOOTH = 1.5
"""Most that a step at a seam may be of those around it."""


def randomised(*modules: torch.nn.Module) -> None:
    """The first weights of residual branches are zero and would hide what a layer sees."""
    torch.manual_seed(0)
    for parameter in itertools.chain(*(module.parameters() for module in modules)):
        torch.nn.init.normal_(parameter, std=0.4)


def new_hift(mel_spec: MelSpec) -> HiFT:
    """With a voice, and at times without, that the mel moves."""
    torch.manual_seed(0)
    vocoder = HiFT(mel_spec, 16, [8, 15], [16, 31], [3], [[1, 3]], [7, 7], 8, 16, 4, SOURCE).eval()
    vocoder.fold_weight_norm()
    with torch.no_grad():
        vocoder.source.mix.weight.fill_(2.0)
        vocoder.f0_predictor.classifier.weight.mul_(1000)
    return vocoder


@pytest.fixture(scope="module", params=["istft", "hift"])
def streaming(model: SpokenLanguageModel, request: pytest.FixtureRequest) -> SpokenLanguageModel:
    """Parts that were made to be streamed; two flow steps."""
    tokenizer, config = copy.deepcopy(model.tokenizer), flow_config()
    tokenizer.decoder = CausalMelDecoder(16, 20, 1, 2, 16, refine_width=8, refine_layers=1)
    for part in ("prenet", "estimator"):
        config[part]["look_back"] = 30
    flow = build(config)
    randomised(tokenizer.decoder, flow)
    spec = model.mel_spec
    vocoder = new_hift(spec) if request.param == "hift" else ISTFTVocoder(spec, 16, 16, 2, 1920)
    settings = DialogueSettings(max_text_tokens=5, max_frames=6, flow_steps=2)
    return SpokenLanguageModel(tokenizer, model.lm, flow, vocoder, model.text_tokenizer, settings).eval()


def new_codes(num_codes: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(num_codes)
    return torch.stack([torch.randint(size, (num_codes,), generator=draws) for size in BOOKS], 1)


def whole(model: SpokenLanguageModel, codes_SK: torch.Tensor, **options: Any) -> np.ndarray:
    return model.decode(
        Codes(codes_BSK=codes_SK[None], num_frames_B=torch.tensor([len(codes_SK)])), **options
    )


def pieces_of(stream: SpeechStream, codes_SK: torch.Tensor, size: int) -> list[np.ndarray]:
    return [*(stream.push(piece) for piece in codes_SK.split(size)), stream.finish()]


@pytest.mark.parametrize(
    "chunk,first,num_codes,pushed",
    [(1, 1, 9, 1), (6, 2, 1, 1), (6, 4, 40, 1), (6, 4, 40, 7), (90, 90, 40, 40)],
)
def test_parts_that_remember_say_the_samples_of_the_whole(
    streaming: SpokenLanguageModel, chunk: int, first: int, num_codes: int, pushed: int
) -> None:
    settings = StreamSettings(chunk_frames=chunk, first_frames=first)
    codes_SK, before = new_codes(num_codes), streaming.settings
    pieces = pieces_of(SpeechStream(streaming, settings, seed=5), codes_SK, pushed)
    try:
        streaming.settings = dataclasses.replace(before, stream=settings)
        offline_N = whole(streaming, codes_SK, seed=5)
    finally:
        streaming.settings = before
    error = np.abs(np.concatenate(pieces) - offline_N).max()
    assert error < 1e-4 * np.abs(offline_N).max()
    if num_codes > chunk:
        assert sum(len(piece) > 0 for piece in pieces) > 1
        assert np.abs(offline_N - whole(streaming, codes_SK, seed=5)).max() > 10 * error, "chunks matter"


@pytest.mark.parametrize("path", ["flow", "refined", "coarse"])
def test_parts_that_know_whole_stretches_give_as_many_samples_and_no_clicks(
    model: SpokenLanguageModel, path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocoder in whose speech a click would be heard: without its fade, or where samples are said twice, it is."""
    vocoder = copy.deepcopy(model.vocoder)
    randomised(vocoder)
    monkeypatch.setitem(model._modules, "vocoder", slow_wave(vocoder))
    settings = StreamSettings(
        chunk_frames=5, first_frames=2, context_frames=6, look_ahead_frames=2, vocoder_look_ahead=2
    )
    codes_SK, rate_hz = new_codes(33), model.sample_rate_hz
    pieces = pieces_of(SpeechStream(model, settings, path=path), codes_SK, 1)
    assert sum(map(len, pieces)) == len(whole(model, codes_SK, path=path))
    assert sum(len(piece) > 0 for piece in pieces) > 6
    assert step_at_seams(pieces, rate_hz) <= SMOOTH
    assert step_at_seams(pieces, rate_hz, repeated=100) > 5 * SMOOTH
    stream = SpeechStream(model, settings, path=path)
    stream._vocoder._num_fade = 0
    assert step_at_seams(pieces_of(stream, codes_SK, 1), rate_hz) > 5 * SMOOTH


@pytest.mark.parametrize("chunk", [5, 50])
def test_own_mels_are_those_of_the_whole_where_all_is_in_sight(
    streaming: SpokenLanguageModel, chunk: int
) -> None:
    """One window for all; and in several, what is left is the norm over the window."""
    settings = StreamSettings(chunk_frames=chunk, first_frames=chunk, look_ahead_frames=3)
    codes_SK = new_codes(20)
    streamed_N = np.concatenate(pieces_of(SpeechStream(streaming, settings, 2, "refined"), codes_SK, 3))
    offline_N = whole(streaming, codes_SK, num_books=2, path="refined")
    error_N = np.abs(streamed_N - offline_N)
    if chunk == 50:
        assert error_N.max() < 1e-5 * np.abs(offline_N).max() + 1e-7
    if not isinstance(streaming.vocoder, HiFT):  # whose phases remember the windows before
        assert error_N[-400:].max() < 1e-5 * np.abs(offline_N).max() + 1e-7, "the last window holds all"


@pytest.mark.parametrize("path", ["flow", "refined"])
def test_memory_and_work_do_not_grow(
    model: SpokenLanguageModel, path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, mels = list[int](), type(model.tokenizer.decoder).mels

    def spy(self: Any, hidden_BTD: torch.Tensor, hidden_len_B: torch.Tensor) -> Any:
        seen.append(int(hidden_len_B))
        return mels(self, hidden_BTD, hidden_len_B)

    monkeypatch.setattr(type(model.tokenizer.decoder), "mels", spy)
    settings = StreamSettings(chunk_frames=5, first_frames=2, context_frames=6, look_ahead_frames=2)
    stream, held = SpeechStream(model, settings, path=path), list[int]()
    for codes_SK in new_codes(70).split(5):
        stream.push(codes_SK)
        if path == "flow":
            held.append(stream._mel._flow.num_values)  # type: ignore[union-attr]
    if path == "flow":
        assert len(set(held[3:])) == 1
    else:
        assert seen[0] == 4 * (2 + 2) - 1 and set(seen[3:]) == {4 * (6 + 5 + 2) - 1}


def events(num_frames: int) -> list[Any]:
    return [TextToken(70), *map(Frame, new_codes(num_frames)), SpeechEnd(True), TextToken(71)]


def test_speech_comes_while_its_stretch_goes_on(
    streaming: SpokenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()

    def generate(*_: Any) -> Any:
        for event in events(20):
            asked.append(event)
            yield event

    monkeypatch.setattr("omniaudio.lm.generate.Generator.stream", generate)
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    chunks, heard_after = [], list[int]()
    for chunk in streaming.stream(messages, chunk_frames=4):
        chunks.append(chunk)
        if "wav" in chunk:
            heard_after.append(len(asked))
    assert heard_after[0] == 1 + 4 and len(heard_after) >= 4, "after the first four frames"
    codes_SK = torch.cat([chunk["codes_SK"] for chunk in chunks if "wav" in chunk])
    assert torch.equal(codes_SK, new_codes(20))
    asked.clear()
    at_once = [chunk for chunk in streaming.stream(messages) if "wav" in chunk]
    assert len(at_once) == 1
    wav_N = np.concatenate([chunk["wav"] for chunk in chunks if "wav" in chunk])
    assert len(wav_N) == len(at_once[0]["wav"])


def test_a_reply_in_chunks_is_the_reply_and_one_that_is_left_leaves_nothing(
    streaming: SpokenLanguageModel,
) -> None:
    before, codes = streaming.settings, Codes(codes_BSK=new_codes(9)[None], num_frames_B=torch.tensor([9]))
    messages: list[Any] = [{"role": "user", "content": codes}]
    try:
        settings = StreamSettings(chunk_frames=2, first_frames=1)
        streaming.settings = dataclasses.replace(before, stream=settings, max_frames=30)
        spoken = 0
        for seed in range(4):
            reply = streaming.reply(messages, seed=seed)
            cut = streaming.stream(messages, seed=seed)
            next(cut)
            cut.close()
            wavs = [chunk["wav"] for chunk in streaming.stream(messages, seed=seed) if "wav" in chunk]
            assert bool(wavs) == (reply["wav"] is not None)
            if wavs:
                np.testing.assert_allclose(np.concatenate(wavs), reply["wav"], atol=1e-4)
            spoken += len(wavs)
        assert spoken > 4
    finally:
        streaming.settings = before


def test_mistakes_are_one_line(model: SpokenLanguageModel) -> None:
    with pytest.raises(UserError, match=r"dialogue.stream.context_frames 0: at least 1"):
        StreamSettings(context_frames=0)
    with pytest.raises(UserError, match="chunk_frames is 0"):
        SpeechStream(model, StreamSettings())
    with pytest.raises(UserError, match="'magic' is not one of flow, refined, coarse"):
        SpeechStream(model, StreamSettings(chunk_frames=5), path="magic")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"dialogue.stream.chunk_frames -1: at least 0"):
        next(model.stream([{"role": "user", "content": "hello"}], chunk_frames=-1))


@pytest.mark.parametrize(("words", "chunk_frames"), [([], 12), (["dialogue.stream.chunk_frames=0"], 0)])
def test_an_export_keeps_the_chunks(words: list[str], chunk_frames: int) -> None:
    dialogue = compose("export", ["system=baichuan_audio", "scale=tiny", *words])["dialogue"]
    made = {"_target_": "omniaudio.dialogue.model.DialogueSettings", **dialogue}
    settings = build(made, "dialogue", _parts_only=True)
    assert settings.stream == StreamSettings(chunk_frames=chunk_frames)


def test_chunks_by_default_change_the_stream_and_not_the_reply(
    model: SpokenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of parts that were not made for chunks."""
    codes_SK, before = new_codes(20), model.settings
    whole_N = whole(model, codes_SK, seed=1)
    stream = StreamSettings(chunk_frames=4)
    monkeypatch.setattr(model, "settings", dataclasses.replace(before, stream=stream))
    np.testing.assert_array_equal(whole(model, codes_SK, seed=1), whole_N)
    monkeypatch.setattr("omniaudio.lm.generate.Generator.stream", lambda *_: iter(events(20)))
    wavs = [chunk["wav"] for chunk in model.stream([{"role": "user", "content": "hello"}]) if "wav" in chunk]
    assert len(wavs) >= 4 and sum(map(len, wavs)) == len(whole_N)
