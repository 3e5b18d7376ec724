"""Graphs for other runtimes give torch's numbers, at lengths that they were not made with."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.timbre import Timbre
from omniaudio.dialogue import portable
from omniaudio.dialogue.portable import (
    TRACED_FRAMES,
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
from tests.acoustic.test_dit import new_dit
from tests.acoustic.test_flow_matching import new_flow
from tests.acoustic.test_flow_stream import new_flow as random_flow
from tests.vocoders.vocoder_fixtures import ALL

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


def loud(kind: str) -> nn.Module:
    """A vocoder whose output is not silence."""
    torch.manual_seed(0)
    vocoder: Any = ALL[kind]().eval()
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
def test_a_loop_over_steps_is_the_flows_decoding(chunked, chunks) -> None:
    flow = chunked.flow
    noise, mu = torch.randn(2, 1, flow.mel_spec.num_mels, NUM_FRAMES)
    valid_BT = torch.ones(1, NUM_FRAMES, dtype=torch.bool)
    facts = portable.step_facts(chunked)
    times, x = torch.tensor(facts["times"]), noise
    with torch.no_grad():
        for now, then in pairwise(times):
            x = x + (then - now) * FlowStep(flow, chunks)(x, mu, now, torch.tensor(facts["guidance"]))
        want = flow.integrate(noise, mu, valid_BT, len(times) - 1, facts["guidance"], chunks=chunks)
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
    assert write_programs(tmp_path, chunked) == ["flow_prenet.pt2", "flow_step.pt2", "vocoder.pt2"]
    step = torch.export.load(tmp_path / "flow_step.pt2").module()
    x, mu = torch.randn(2, 1, chunked.mel_spec.num_mels, NUM_FRAMES)
    given = (x, mu, torch.tensor(0.2), torch.tensor(0.9))
    with torch.no_grad():
        torch.testing.assert_close(step(*given), FlowStep(chunked.flow, chunks)(*given), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(step(*given), FlowStep(chunked.flow)(*given), atol=1e-3)


def test_a_step_with_a_transformer_and_slots_for_the_voice_is_a_program_too() -> None:
    flow = new_flow(new_dit(20, num_mels=4, timbre=Timbre(4, 3, True))).eval()
    x, mu = torch.randn(1, 4, NUM_FRAMES), torch.randn(1, 12, NUM_FRAMES)
    given = (x, mu, torch.tensor(0.2), torch.tensor(0.9))
    with torch.no_grad():
        torch.testing.assert_close(step_program(flow).module()(*given), FlowStep(flow)(*given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v1", "hift", "istft"])
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


@pytest.mark.slow
def test_the_onnx_graph_of_a_step_is_the_step(chunked, tmp_path) -> None:
    runtime()
    save_onnx(step_program(chunked.flow), tmp_path / "flow_step.onnx")
    step = session(tmp_path / "flow_step.onnx")
    for guidance, time in ((0.0, 0.1), (0.7, 0.9)):
        x, mu = torch.randn(2, 1, chunked.mel_spec.num_mels, NUM_FRAMES)
        given = {"x": x, "mu": mu, "time": torch.tensor(time), "guidance": torch.tensor(guidance)}
        with torch.no_grad():
            want = FlowStep(chunked.flow)(**given)
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


def test_missing_packages_are_one_line(monkeypatch) -> None:
    monkeypatch.setattr(portable, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript: pip install 'omniaudio\[onnx\]'"):
        check_onnx()
