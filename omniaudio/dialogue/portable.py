"""Prenet, flow and vocoder for other runtimes: ONNX graphs, and torch.export programs.

flow_prenet.onnx  hidden (1, T, D): states of the tokenizer's decoder   ->  mu (1, C, T): the condition
flow_step.onnx    x (1, M, T): a point of the path; mu (1, C, T);
                  time in [0, 1], guidance: scalars                     ->  velocity (1, M, T), guided; an export with
                                                                            flow_guidance 0 takes none: half the work
vocoder.onnx      mel (1, M, T): log-mel                                ->  wav (1, T * hop), in [-1, 1]
onnx.json         the numbers around them: times of the steps, guidance; mean, scale and kind of the mel; rates in Hz

Inputs and outputs have these names and are float32; T, frames of the mel, is at least 2 and otherwise free. ``x`` and
``velocity`` are of the standardised mel. The loop over the times is the runtime's: x = normal noise, then
x += (times[i + 1] - times[i]) * velocity (Euler), then mel = x * mel_std + mel_mean. tests/cli/test_export.py has it in
numpy.

States have the mel's rate in all systems here; slower ones are repeated first. C is M, but for a flow with slots for
speaker or prompt, whose condition Timbre makes: flow_prenet's is that of an unknown voice. A vocoder with a harmonic
source also takes its starting ``phase`` (1, H) and ``noise`` (1, T, hop, H): a graph draws nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.flow_matching import FlowMatchingDecoder, step_times
from omniaudio.dialogue.speech_stream import chunks_of
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.types import device_of
from omniaudio.vocoders.hift import HiFT

if TYPE_CHECKING:
    from omniaudio.dialogue.model import SpokenLanguageModel

NEEDED = ("onnx", "onnxscript")
TRACED_FRAMES = 23  # of the example that is followed; any length works afterwards
OUTPUTS = {"flow_prenet": "mu", "flow_step": "velocity", "vocoder": "wav"}
"""Graphs -> name of what each gives."""


class FlowPrenet(nn.Module):
    """The condition of a whole stretch."""

    def __init__(self, flow: FlowMatchingDecoder) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states at the mel's rate (1, T, D) to the condition (1, C, T) of an unknown voice."""
        condition: Tensor = self.flow.estimator.timbre(self.flow.prenet.guess(hidden).transpose(1, 2))
        return condition


class FlowStep(nn.Module):
    """One evaluation of the velocity, guided or not; ``chunks`` are those that the model decodes with."""

    def __init__(self, flow: FlowMatchingDecoder, chunks: Chunks | None = None) -> None:
        super().__init__()
        self.flow, self.chunks = flow, chunks

    def forward(self, x: Tensor, mu: Tensor, time: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Point (1, M, T) and condition (1, C, T), flow time and guidance (scalars) to the velocity (1, M, T).

        ``mu`` is what FlowPrenet gives; ``x`` and the result are standardised mels. Without guidance, the velocity
        without condition is not asked for.
        """
        if guidance is None:
            return self._velocity(x, mu, torch.tensor([True], device=x.device), time)
        shown, keep_B = torch.cat([mu, torch.zeros_like(mu)]), torch.tensor([True, False], device=x.device)
        out = self._velocity(x.repeat(2, 1, 1), shown, keep_B, time)
        return (1 + guidance) * out[:1] - guidance * out[1:]

    def _velocity(self, x: Tensor, shown: Tensor, keep_B: Tensor, time: Tensor) -> Tensor:
        valid_BT = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
        return self.flow.velocity(x, shown, keep_B, time.expand(len(x)), valid_BT, self.chunks)


class GivenSource(nn.Module):
    """A vocoder whose harmonic source is told its phases and noise instead of drawing them."""

    def __init__(self, vocoder: HiFT) -> None:
        super().__init__()
        self.vocoder = vocoder

    def forward(self, mel: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        """Log-mel (1, M, T), phases (1, H) and noise (1, T, hop, H) to waveform (1, T * hop)."""
        source = self.vocoder.source
        f0_BN = self.vocoder.f0_predictor(mel).float().repeat_interleave(source.hop, dim=1)
        excitation_BN, _ = source.excite(f0_BN, phase, noise.flatten(1, 2))
        return self.vocoder.filter(mel, excitation_BN)


class PlainVocoder(nn.Module):
    """A vocoder that reads nothing but a mel."""

    def __init__(self, vocoder: nn.Module) -> None:
        super().__init__()
        self.vocoder = vocoder

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (1, M, T) to waveform (1, T * hop)."""
        wav: Tensor = self.vocoder(mel)
        return wav


def programs(model: SpokenLanguageModel) -> dict[str, torch.export.ExportedProgram]:
    """``flow_prenet``, ``flow_step`` and ``vocoder`` as programs of torch.export, the number of frames left open."""
    return {
        "flow_prenet": prenet_program(model.flow),
        "flow_step": step_program(
            model.flow,
            chunks_of(model.tokenizer, model.flow, model.settings.stream),
            model.settings.flow_guidance > 0,
        ),
        "vocoder": vocoder_program(model.vocoder),
    }


def prenet_program(flow: FlowMatchingDecoder) -> torch.export.ExportedProgram:
    """FlowPrenet of a flow."""
    hidden = torch.zeros(1, TRACED_FRAMES, flow.prenet.hidden_width, device=device_of(flow))
    shapes = {"hidden": {1: torch.export.Dim("num_frames", min=2)}}
    return torch.export.export(FlowPrenet(flow).eval(), (hidden,), dynamic_shapes=shapes)


def step_program(
    flow: FlowMatchingDecoder, chunks: Chunks | None = None, guided: bool = True
) -> torch.export.ExportedProgram:
    """FlowStep of a flow, with or without the input ``guidance``."""
    num_frames = torch.export.Dim("num_frames", min=2)
    mel = torch.zeros(1, flow.mel_spec.num_mels, TRACED_FRAMES, device=device_of(flow))
    mu = torch.zeros(1, flow.estimator.timbre.width, TRACED_FRAMES, device=mel.device)
    scalar = torch.tensor(0.5, device=mel.device)
    shapes: dict[str, Any] = {"x": {2: num_frames}, "mu": {2: num_frames}, "time": None}
    given: tuple[Tensor, ...] = (mel, mu, scalar)
    if guided:
        given, shapes = (*given, scalar.clone()), {**shapes, "guidance": None}
    return torch.export.export(FlowStep(flow, chunks).eval(), given, dynamic_shapes=shapes)


def vocoder_program(vocoder: nn.Module) -> torch.export.ExportedProgram:
    """GivenSource of a vocoder with a harmonic source, PlainVocoder of any other."""
    num_frames = torch.export.Dim("num_frames", min=2)
    mel_spec: Any = vocoder.mel_spec
    mel = torch.zeros(1, mel_spec.num_mels, TRACED_FRAMES, device=device_of(vocoder))
    shapes: dict[str, Any] = {"mel": {2: num_frames}}
    if not isinstance(vocoder, HiFT):
        return torch.export.export(PlainVocoder(vocoder).eval(), (mel,), dynamic_shapes=shapes)
    phase, noise = drawn_source(vocoder, TRACED_FRAMES)
    shapes |= {"phase": None, "noise": {1: num_frames}}
    return torch.export.export(GivenSource(vocoder).eval(), (mel, phase, noise), dynamic_shapes=shapes)


def drawn_source(vocoder: HiFT, num_frames: int) -> tuple[Tensor, Tensor]:
    """Phases (1, H) and noise (1, T, hop, H) that the vocoder itself draws in evaluation."""
    hop = vocoder.mel_spec.hop
    phase, noise = vocoder.source.draw(torch.zeros(1, num_frames * hop, device=device_of(vocoder)))
    return phase, noise.unflatten(1, (num_frames, hop))


def write_programs(folder: Path, model: SpokenLanguageModel) -> list[str]:
    """Write the programs as ``flow_prenet.pt2`` and so on (``torch.export.load`` reads them); returns their names."""
    names = []
    for name, program in programs(model).items():
        torch.export.save(program, folder / f"{name}.pt2")
        names.append(f"{name}.pt2")
    return names


def write_onnx(folder: Path, model: SpokenLanguageModel) -> list[str]:
    """Write ``flow_prenet.onnx``, ``flow_step.onnx``, ``vocoder.onnx`` and ``onnx.json``; returns their names.

    Raises:
        UserError: see ``check_onnx``.
    """
    check_onnx(model.settings.flow_solver)
    rates = {"hidden_rate_hz": model.flow.hidden_rate_hz, "mel_rate_hz": model.mel_spec.mel_rate_hz}
    facts: dict[str, dict[str, Any]] = {
        "flow_prenet": {**rates},
        "flow_step": {**step_facts(model)},
        "vocoder": {"sample_rate_hz": model.sample_rate_hz, "mel": model.mel_spec.facts()},
    }
    for name, program in programs(model).items():
        facts[name]["inputs"] = save_onnx(program, folder / f"{name}.onnx")
    write_whole(folder / "onnx.json", json.dumps(facts, indent=1))
    return [*(f"{name}.onnx" for name in facts), "onnx.json"]


def save_onnx(program: torch.export.ExportedProgram, path: Path) -> list[str]:
    """Write a program as an ONNX graph, a file named as in OUTPUTS; returns the names of its inputs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of other libraries' operations
    graph = torch.onnx.export(program, output_names=[OUTPUTS[path.stem]], dynamo=True, verbose=False)
    assert graph is not None
    graph.save(path)
    return [str(value.name) for value in graph.model.graph.inputs]


def step_facts(model: SpokenLanguageModel) -> Mapping[str, Any]:
    """What the loop around the flow's step needs."""
    settings = model.settings
    times = step_times(settings.flow_steps, settings.flow_warp)
    return {
        "times": times.tolist(),
        "guidance": settings.flow_guidance,
        "mel": "x * mel_std + mel_mean",
        "mel_mean": model.flow.mel_mean,
        "mel_std": model.flow.mel_std,
    }


def check_onnx(solver: str) -> None:
    """Refuse, before anything is written, where ONNX cannot be, and a solver whose steps are not those of a graph."""
    if solver != "euler":
        raise UserError(
            f"config dialogue.flow_solver: {solver!r}; a graph is one step of euler, export it with "
            "dialogue.flow_solver=euler"
        )
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"onnx=true needs {', '.join(missing)}: pip install 'omniaudio[onnx]'")
