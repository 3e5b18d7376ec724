"""Graphs for other runtimes give torch's numbers, at lengths that they were not made with."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.timbre import Timbre
from omniaudio.cli.main import compose
from omniaudio.config import build
from omniaudio.dialogue import portable
from omniaudio.dialogue.portable import (
    TRACED_FRAMES,
    FlowPrenet,
    FlowStep,
    GivenSource,
    PlainVocoder,
    check_onnx,
    drawn_source,
    prenet_program,
    save_onnx,
    step_program,
    vocoder_program,
    write_programs,
)
from omniaudio.errors import UserError
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.istft import ISTFTVocoder
from tests.acoustic.test_dit import new_dit
from tests.acoustic.test_flow_matching import new_flow
from tests.acoustic.test_flow_stream import new_flow as random_flow
from tests.vocoders.vocoder_fixtures import ALL, SPEC

NUM_FRAMES = 57
"""More than a chunk of the flow's attention, and not the length that was followed."""
assert NUM_FRAMES != TRACED_FRAMES


@torch.no_grad()
def stirred(module: nn.Module) -> nn.Module:
    """Random numbers in all weights: the first ones of residual branches are zero and would hide them."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def published(name: str) -> nn.Module:
    """A vocoder of conf/vocoder with few channels: its rates, kernels and blocks."""
    words = ["experiment=baichuan_audio/vocoder", "scale=tiny", f"vocoder={name}", "vocoder.base_channels=32"]
    vocoder: nn.Module = build(compose("train", words)["vocoder"])
    return vocoder


KINDS = {
    **ALL,
    "causal": lambda: ISTFTVocoder(SPEC, 16, 32, 2, 1920, causal=True),
    "v2": lambda: published("hifigan_v2"),
    "v3": lambda: published("hifigan_v3"),
}


def loud(kind: str) -> nn.Module:
    """A vocoder whose output is not silence."""
    torch.manual_seed(0)
    vocoder: Any = KINDS[kind]().eval()
    vocoder.fold_weight_norm()
    stirred(vocoder)
    with torch.no_grad():
        if isinstance(vocoder, HiFT):
            vocoder.f0_predictor.classifier.bias.fill_(150.0)  # voiced: without a tone no phase is heard
    return vocoder


def wrapped(vocoder: nn.Module) -> nn.Module:
    return GivenSource(vocoder) if isinstance(vocoder, HiFT) else PlainVocoder(vocoder)


def inputs_of(vocoder: Any) -> dict[str, Tensor]:
    inputs = {"mel": torch.randn(1, vocoder.mel_spec.num_mels, NUM_FRAMES) - 3}
    if isinstance(vocoder, HiFT):
        inputs["phase"], inputs["noise"] = drawn_source(vocoder, NUM_FRAMES)
    return inputs


def runtime() -> Any:
    for name in portable.NEEDED:
        pytest.importorskip(name, reason="the extra [onnx] is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


def session(path: Any) -> Any:
    return runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture
def chunked(model, monkeypatch):
    flow: Any = stirred(copy.deepcopy(model.flow))
    flow.estimator.chunk_frames = 20
    monkeypatch.setitem(model._modules, "flow", flow)
    return model


def test_a_source_that_is_told_its_draws_says_what_the_vocoder_says() -> None:
    vocoder = loud("hift")
    inputs = inputs_of(vocoder)
    with torch.no_grad():
        assert torch.equal(GivenSource(vocoder)(**inputs), vocoder(inputs["mel"]))
        quiet = GivenSource(vocoder)(inputs["mel"], inputs["phase"], 0 * inputs["noise"])
        assert not torch.allclose(quiet, vocoder(inputs["mel"]), atol=1e-3)
        turned = GivenSource(vocoder)(inputs["mel"], 0 * inputs["phase"], inputs["noise"])
        assert not torch.allclose(turned, vocoder(inputs["mel"]), atol=1e-3)
        again = vocoder(inputs["mel"])
        assert torch.equal(again, GivenSource(vocoder)(**inputs)), "it draws again"


@pytest.mark.parametrize("chunks", [None, Chunks(3, 8)], ids=["its own chunks", "those of a stream"])
@pytest.mark.parametrize("guidance", [0.7, 0.0])
def test_a_loop_over_steps_is_the_flows_decoding(chunked, chunks, guidance, monkeypatch) -> None:
    flow, settings = chunked.flow, dataclasses.replace(chunked.settings, flow_guidance=guidance)
    monkeypatch.setattr(chunked, "settings", settings)
    noise, mu = torch.randn(2, 1, flow.mel_spec.num_mels, NUM_FRAMES)
    valid_BT = torch.ones(1, NUM_FRAMES, dtype=torch.bool)
    facts = portable.step_facts(chunked)
    times, x = torch.tensor(facts["times"]), noise
    told = [torch.tensor(facts["guidance"])] if guidance else []
    with torch.no_grad():
        for now, then in pairwise(times):
            x = x + (then - now) * FlowStep(flow, chunks)(x, mu, now, *told)
        want = flow.integrate(noise, mu, valid_BT, len(times) - 1, guidance, chunks=chunks)
    assert (want - noise).std() > 0.1
    torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["v1", "hift", "istft"])
def test_the_program_of_a_vocoder_is_the_vocoder(kind) -> None:
    vocoder = loud(kind)
    inputs = inputs_of(vocoder)
    with torch.no_grad():
        want = wrapped(vocoder)(**inputs)
        assert want.std() > 1e-3
        torch.testing.assert_close(
            vocoder_program(vocoder).module()(*inputs.values()), want, atol=1e-4, rtol=1e-4
        )


def test_programs_are_written_and_read(chunked, tmp_path, monkeypatch) -> None:
    """The step is cut as the model decodes: parts that were made to be streamed have the chunks of their stream."""
    chunks = Chunks(3, 8)
    monkeypatch.setattr(portable, "chunks_of", lambda *parts: chunks)
    monkeypatch.setitem(chunked._modules, "vocoder", stirred(copy.deepcopy(chunked.vocoder)))
    assert write_programs(tmp_path, chunked) == ["flow_prenet.pt2", "flow_step.pt2", "vocoder.pt2"]
    flow, (x, mu) = chunked.flow, torch.randn(2, 1, chunked.mel_spec.num_mels, NUM_FRAMES)
    hidden = torch.randn(1, NUM_FRAMES, flow.prenet.hidden_width)
    scalars = torch.tensor(0.2), torch.tensor(0.9)
    wanted = {
        "flow_prenet": (FlowPrenet(flow), (hidden,)),
        "flow_step": (FlowStep(flow, chunks), (x, mu, *scalars)),
        "vocoder": (chunked.vocoder, (x - 3,)),
    }
    for name, (module, given) in wanted.items():
        read = torch.export.load(tmp_path / f"{name}.pt2").module()
        with torch.no_grad():
            want = module(*given)
            assert want.std() > 1e-3
            torch.testing.assert_close(read(*given), want, atol=1e-4, rtol=1e-4, msg=name)
    with torch.no_grad():
        whole = FlowStep(flow)(x, mu, *scalars)
        assert not torch.allclose(whole, FlowStep(flow, chunks)(x, mu, *scalars), atol=1e-3)


def test_a_step_with_a_transformer_and_slots_for_the_voice_is_a_program_too() -> None:
    flow = voiced_dit()
    x, mu = torch.randn(1, 4, NUM_FRAMES), torch.randn(1, 12, NUM_FRAMES)
    given = (x, mu, torch.tensor(0.2), torch.tensor(0.9))
    with torch.no_grad():
        torch.testing.assert_close(step_program(flow).module()(*given), FlowStep(flow)(*given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v1", "v2", "v3", "hift", "istft", "causal"])
def test_the_onnx_graph_of_a_vocoder_is_the_vocoder(kind, tmp_path) -> None:
    runtime()
    vocoder = loud(kind)
    names = save_onnx(vocoder_program(vocoder), tmp_path / "vocoder.onnx")
    inputs = inputs_of(vocoder)
    assert names == list(inputs)
    with torch.no_grad():
        want = wrapped(vocoder)(**inputs)
    (found,) = session(tmp_path / "vocoder.onnx").run(None, {name: x.numpy() for name, x in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), want, atol=1e-4, rtol=1e-4)


def voiced_dit() -> FlowMatchingDecoder:
    """A transformer with slots for speaker and prompt."""
    flow = new_flow(new_dit(20, num_mels=4, timbre=Timbre(4, 3, True))).eval()
    return cast(FlowMatchingDecoder, stirred(flow))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit", "without guidance"])
def test_the_onnx_graph_of_a_step_is_the_step(chunked, kind, tmp_path) -> None:
    runtime()
    flow = voiced_dit() if kind == "dit" else chunked.flow
    guided = kind != "without guidance"
    names = save_onnx(step_program(flow, guided=guided), tmp_path / "flow_step.onnx")
    assert names == ["x", "mu", "time", *(["guidance"] if guided else [])]
    step = session(tmp_path / "flow_step.onnx")
    for guidance, time in ((0.0, 0.1), (0.7, 0.9)):
        x = torch.randn(1, flow.mel_spec.num_mels, NUM_FRAMES)
        mu = torch.randn(1, flow.estimator.timbre.width, NUM_FRAMES)
        given = {"x": x, "mu": mu, "time": torch.tensor(time), "guidance": torch.tensor(guidance)}
        given = {name: given[name] for name in names}
        with torch.no_grad():
            want = FlowStep(flow)(**given)
        (found,) = step.run(None, {name: value.numpy() for name, value in given.items()})
        torch.testing.assert_close(torch.from_numpy(found), want, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("look_back", [None, 9], ids=["published", "limited, with slots"])
def test_the_onnx_graph_of_the_prenet_is_what_the_flow_reads(look_back, tmp_path) -> None:
    runtime()
    flow = random_flow(look_back, slots=look_back is not None)
    assert save_onnx(prenet_program(flow), tmp_path / "flow_prenet.onnx") == ["hidden"]
    prenet = session(tmp_path / "flow_prenet.onnx")
    for num_frames in (5, NUM_FRAMES):
        hidden, length_B = torch.randn(1, num_frames, 6), torch.tensor([num_frames])
        with torch.no_grad():
            want = flow.estimator.timbre(flow.prenet(hidden, length_B, length_B))
        (found,) = prenet.run(["mu"], {"hidden": hidden.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), want, atol=1e-4, rtol=1e-4)


def test_without_guidance_a_program_asks_for_one_velocity(chunked, monkeypatch) -> None:
    settings = dataclasses.replace(chunked.settings, flow_guidance=0.0)
    monkeypatch.setattr(chunked, "settings", settings)
    monkeypatch.setattr(portable, "vocoder_program", lambda vocoder: None)
    mel = torch.randn(1, chunked.mel_spec.num_mels, NUM_FRAMES)
    asked, velocity = list[int](), FlowMatchingDecoder.velocity

    def spy(self: Any, x: Tensor, *given: Any) -> Tensor:
        asked.append(len(x))
        return velocity(self, x, *given)

    monkeypatch.setattr(FlowMatchingDecoder, "velocity", spy)
    step = portable.programs(chunked)["flow_step"].module()
    assert asked and set(asked) == {1}
    with torch.no_grad():
        want = FlowStep(chunked.flow)(mel, mel, torch.tensor(0.2), torch.tensor(0.0))
        torch.testing.assert_close(step(mel, mel, torch.tensor(0.2)), want, atol=1e-5, rtol=1e-5)


def test_missing_packages_are_one_line(monkeypatch) -> None:
    monkeypatch.setattr(portable, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript: pip install 'omniaudio\[onnx\]'"):
        check_onnx("euler")
