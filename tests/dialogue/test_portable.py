"""Graphs for other runtimes give torch's numbers, at lengths that they were not made with."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniaudio.acoustic.timbre import Timbre
from omniaudio.dialogue import portable
from omniaudio.dialogue.portable import (
    TRACED_FRAMES,
    FlowStep,
    GivenSource,
    PlainVocoder,
    check_onnx,
    drawn_source,
    save_onnx,
    step_program,
    vocoder_program,
    write_onnx,
    write_programs,
)
from omniaudio.errors import UserError
from omniaudio.vocoders.hift import HiFT
from tests.acoustic.test_dit import new_dit
from tests.acoustic.test_flow_matching import new_flow
from tests.vocoders.vocoder_fixtures import ALL

NUM_FRAMES = 57
"""More than a chunk of the flow's attention, and not the length that was followed."""
assert NUM_FRAMES != TRACED_FRAMES


def loud(kind: str) -> nn.Module:
    """A vocoder whose output is not silence."""
    torch.manual_seed(0)
    vocoder: Any = ALL[kind]().eval()
    vocoder.fold_weight_norm()
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
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
    monkeypatch.setattr(model.flow.estimator, "chunk_frames", 20)
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


def test_a_loop_over_steps_is_the_flows_decoding(chunked) -> None:
    flow = chunked.flow
    noise, mu = torch.randn(2, 1, flow.mel_spec.num_mels, NUM_FRAMES)
    valid_BT = torch.ones(1, NUM_FRAMES, dtype=torch.bool)
    facts = portable.step_facts(chunked)
    times, x = torch.tensor(facts["times"]), noise
    with torch.no_grad():
        for now, then in pairwise(times):
            x = x + (then - now) * FlowStep(flow)(x, mu, now, torch.tensor(facts["guidance"]))
        want = flow.integrate(noise, mu, valid_BT, len(times) - 1, facts["guidance"])
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


def test_programs_are_written_and_read(chunked, tmp_path) -> None:
    assert write_programs(tmp_path, chunked) == ["flow_step.pt2", "vocoder.pt2"]
    step = torch.export.load(tmp_path / "flow_step.pt2").module()
    x, mu = torch.randn(2, 1, chunked.mel_spec.num_mels, NUM_FRAMES)
    given = (x, mu, torch.tensor(0.2), torch.tensor(0.9))
    with torch.no_grad():
        torch.testing.assert_close(step(*given), FlowStep(chunked.flow)(*given), atol=1e-4, rtol=1e-4)


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
def test_an_export_has_graphs_and_the_numbers_around_them(model, tmp_path) -> None:
    runtime()
    assert write_onnx(tmp_path, model) == ["flow_step.onnx", "vocoder.onnx", "onnx.json"]
    facts = json.loads((tmp_path / "onnx.json").read_text())
    assert facts["flow_step"]["inputs"] == ["x", "mu", "time", "guidance"]
    assert facts["vocoder"]["inputs"] == ["mel"] and facts["vocoder"]["sample_rate_hz"] == 24_000
    assert facts["flow_step"]["times"][-1] == 1 and facts["flow_step"]["mel_mean"] == model.flow.mel_mean


def test_missing_packages_are_one_line(monkeypatch) -> None:
    monkeypatch.setattr(portable, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript: pip install 'omniaudio\[onnx\]'"):
        check_onnx()
