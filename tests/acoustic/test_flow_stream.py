"""Flow matching chunk by chunk: as offline with the same chunks, in bounded memory."""

import pytest
import torch

from omniaudio.acoustic.dit import ConditionalDiT
from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.flow_stream import FlowStream, Noise
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.timbre import Timbre
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec

SPEC = MelSpec(24000, 1920, 480, 1920, 4, 0.0, 8000.0, "ln", False)


def new_flow(
    look_back: int | None = 9, hidden_rate_hz: float = 50.0, kind: str = "unet", slots: bool = False
) -> FlowMatchingDecoder:
    """All weights random: the first weights of residual branches are zero and would hide attention."""
    torch.manual_seed(0)
    sight = {"chunk_frames": 8, "look_back": look_back, "timbre": Timbre(4, 3, True) if slots else None}
    flow = FlowMatchingDecoder(
        SPEC,
        Prenet(6, 16, 8, 2, 2, 16, num_mels=4, look_back=look_back),
        ConditionalUNet(4, 8, 1, 2, 2, 4, 16, **sight)
        if kind == "unet"
        else ConditionalDiT(4, 8, 2, 2, 16, 16, **sight),
        hidden_rate_hz,
        mel_mean=-5.0,
        mel_std=2.0,
    ).eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return flow


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("solver", "kind"), [("euler", "unet"), ("midpoint", "unet"), ("euler", "dit")])
@pytest.mark.parametrize(
    "first,size,num_frames",
    [(1, 1, 12), (3, 4, 1), (3, 4, 40), (8, 8, 7), (8, 8, 48), (2, 50, 130), (500, 500, 130)],
)
def test_streamed_is_offline_with_the_same_chunks(
    solver: str, kind: str, first: int, size: int, num_frames: int
) -> None:
    flow, hidden = new_flow(kind=kind), torch.randn(num_frames, 6)
    stream = FlowStream(flow, seeded(), num_steps=2, solver=solver)
    pieces = [stream.push(hidden[:first]), *map(stream.push, hidden[first:].split(size))]
    length_B = torch.tensor([num_frames])
    offline, _ = flow.decode(
        hidden[None], length_B, 2, generator=seeded(), solver=solver, chunks=Chunks(first, size)
    )
    torch.testing.assert_close(torch.cat(pieces, 1), offline[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("solver", "kind"), [("heun", "unet"), ("euler", "dit")])
def test_a_speaker_and_a_prompt_are_streamed_as_offline(solver: str, kind: str) -> None:
    flow, hidden = new_flow(kind=kind, slots=True), torch.randn(40, 6)
    speaker_S, prompt_MT = torch.randn(3), torch.randn(4, 9)
    stream = FlowStream(flow, seeded(), num_steps=2, solver=solver, speaker_S=speaker_S, prompt_MT=prompt_MT)
    pieces = [stream.push(hidden[:3]), *map(stream.push, hidden[3:].split(4))]
    assert [piece.shape[1] for piece in pieces] == [0, 0, 2, *[4] * 7, 1], "the prompt is not said again"
    given = {"num_steps": 2, "solver": solver, "chunks": Chunks(3, 4), "speaker_BS": speaker_S[None]}
    offline, _ = flow.decode(
        hidden[None], torch.tensor([40]), generator=seeded(), prompt_BMT=prompt_MT[None], **given
    )
    torch.testing.assert_close(torch.cat(pieces, 1), offline[0], atol=1e-4, rtol=1e-4)
    alone, _ = flow.decode(hidden[None], torch.tensor([40]), generator=seeded(), **given)
    assert (alone[0, :, 9:] - offline[0])[:, :6].abs().max() > 1e-2, "the prompt matters"


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[], [5], [3, 4], [3, 6], [12]])
def test_a_prompt_that_is_longer_than_all_that_came_is_refused_as_offline(sizes: list[int]) -> None:
    flow, prompt_MT = new_flow(slots=True), torch.randn(4, 9)
    stream, num_frames = FlowStream(flow, seeded(), num_steps=1, prompt_MT=prompt_MT), sum(sizes)
    pieces = [stream.push(torch.randn(size, 6)) for size in sizes]
    assert sum(piece.shape[1] for piece in pieces) == max(0, num_frames - 9)
    if num_frames >= 9:
        stream.finish()
        return
    message = f"flow: a prompt of 9 frames; the hidden states, which begin with its own, are {num_frames}"
    with pytest.raises(UserError, match=message):
        stream.finish()
    if num_frames == 0:
        return
    with pytest.raises(UserError, match=message):
        flow.decode(torch.randn(1, num_frames, 6), torch.tensor([num_frames]), 1, prompt_BMT=prompt_MT[None])


@torch.no_grad()
def test_other_chunks_give_another_mel_and_the_far_past_is_forgotten() -> None:
    """What the parity above would not show: that chunks matter, and that the look-back really ends."""
    flow, hidden = new_flow(look_back=2), torch.randn(1, 60, 6)
    length_B = torch.tensor([60])
    small, large = (
        flow.decode(hidden, length_B, 2, generator=seeded(), chunks=Chunks(size, size))[0] for size in (4, 20)
    )
    assert float((small - large).abs().max()) > 1e-2
    changed = hidden.clone()
    changed[:, :4] += 1.0
    other, _ = flow.decode(changed, length_B, 2, generator=seeded(), chunks=Chunks(4, 4))
    differs_T = (other - small)[0].abs().amax(0)
    assert differs_T[:4].min() > 1e-3 and differs_T[56:].max() == 0


def test_memory_and_noise_do_not_grow() -> None:
    stream, held = FlowStream(new_flow(), seeded(), num_steps=1), set()
    for _ in range(12):
        stream.push(torch.randn(40, 6))
        held.add(stream.num_values)
    assert len(held) == 1
    assert stream._noise._held_BMT.shape[2] <= 140


def test_noise_depends_on_seed_and_place_only() -> None:
    flow = new_flow()
    whole = flow.draw_noise(430, seeded(1), torch.device("cpu"))
    noise = Noise(flow, seeded(1))
    for begin, end in ((0, 5), (5, 120), (90, 330), (330, 430)):
        assert torch.equal(noise.frames(begin, end), whole[:, :, begin:end])


def test_a_flow_without_limits_is_given_one() -> None:
    stream, held = FlowStream(new_flow(look_back=None), seeded(), look_back=15, num_steps=1), set()
    for _ in range(8):
        stream.push(torch.randn(10, 6))
        held.add(stream.num_values)
    assert len(held) == 2, "10 frames, then 15"
    far, hidden = (
        FlowStream(new_flow(look_back=None), seeded(), look_back=500, num_steps=2),
        torch.randn(40, 6),
    )
    pieces = [far.push(piece) for piece in hidden.split(8)]
    offline, _ = new_flow(look_back=None).decode(hidden[None], torch.tensor([40]), 2, generator=seeded())
    torch.testing.assert_close(torch.cat(pieces, 1), offline[0], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(UserError, match="flow.hidden_rate_hz is 25, the mel has 50"):
        FlowStream(new_flow(hidden_rate_hz=25.0), seeded())
    with pytest.raises(UserError, match="flow solver 'x'"):
        FlowStream(new_flow(), seeded(), solver="x")
