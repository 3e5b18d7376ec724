"""Vocoders piece by piece: the samples of the whole, and no seams."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.vocoders.istft import ISTFTVocoder
from omniaudio.vocoders.stream import VocoderStream
from tests.vocoders.vocoder_fixtures import ALL, SPEC, slow_wave, step_at_seams

KINDS = {**ALL, "causal": lambda: ISTFTVocoder(SPEC, 16, 32, 2, 1920, causal=True)}
SMOOTH = 1.2
"""Most that a step at a seam may be of those around it."""


@torch.enable_grad()  # without it, folding makes buffers of the weights
def new_vocoder(name: str) -> nn.Module:
    """Weights large enough for everything in reach to be heard."""
    torch.manual_seed(0)
    vocoder = KINDS[name]().eval()
    vocoder.fold_weight_norm()  # type: ignore[operator]
    gain = 0.5 if name == "hift" else 1.2  # not so large that it only clips
    for parameter in vocoder.parameters():
        if parameter.dim() == 3:
            torch.nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))
    if name == "hift":
        vocoder.f0_predictor.classifier.bias.data.fill_(150.0)  # type: ignore[union-attr,operator]
    return vocoder


def streamed(
    vocoder: nn.Module, mel_MT: Tensor, sizes: Sequence[int], look_ahead: int | None = None
) -> Tensor:
    stream = VocoderStream(vocoder, look_ahead)  # type: ignore[arg-type]
    pieces = [stream.push(piece) for piece in mel_MT.split(list(sizes), dim=1)]
    return torch.cat([*pieces, stream.finish()])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1], [5, 0, 1, 30, 14], [20] * 4, [80]])
@pytest.mark.parametrize("name", KINDS)
def test_with_all_the_look_ahead_the_samples_are_those_of_the_whole(name: str, sizes: list[int]) -> None:
    vocoder, mel_MT = new_vocoder(name), torch.randn(8, sum(sizes))
    whole_N = vocoder(mel_MT[None])[0]
    assert whole_N.std() > 100 * 1e-5
    torch.testing.assert_close(streamed(vocoder, mel_MT, sizes), whole_N, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_the_reach_is_where_a_frame_is_heard(name: str) -> None:
    """No frame beyond it changes a sample, and it is not twice as far as need be."""
    vocoder, mel_BMT = new_vocoder(name), torch.randn(1, 8, 81)
    changed_BMT = mel_BMT.clone()
    changed_BMT[..., 40] += 3.0
    if name == "hift":
        excitation_BN = vocoder.source(vocoder.f0_predictor(mel_BMT))  # type: ignore[operator]
        wavs = [vocoder.filter(mel, excitation_BN) for mel in (mel_BMT, changed_BMT)]  # type: ignore[operator]
    else:
        wavs = [vocoder(mel) for mel in (mel_BMT, changed_BMT)]
    moved_T = (wavs[0] - wavs[1])[0].abs().unflatten(0, (81, -1)).amax(-1) > 1e-9
    first, last = moved_T.nonzero().flatten()[[0, -1]].tolist()
    before, after = vocoder.reach_frames  # type: ignore[misc]
    assert last - 40 <= before <= 2 * (last - 40) + 1  # type: ignore[operator]
    assert 40 - first <= after <= 2 * (40 - first) + 1  # type: ignore[operator]


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("look_ahead", [0, 3])
def test_with_less_all_samples_come_and_seams_are_as_smooth_as_the_rest(name: str, look_ahead: int) -> None:
    """They would not be without the fade, nor if samples were said twice."""
    vocoder = slow_wave(new_vocoder(name))
    mel_MT = torch.randn(8, 90, generator=torch.Generator().manual_seed(1)).cumsum(1) / 4

    def pieces_of(stream: VocoderStream) -> list[Any]:
        return [*(stream.push(piece).numpy() for piece in mel_MT.split(15, dim=1)), stream.finish().numpy()]

    stream = VocoderStream(vocoder, look_ahead)  # type: ignore[arg-type]
    guessed = stream.look_ahead < VocoderStream(vocoder).look_ahead  # type: ignore[arg-type]
    assert stream.look_ahead == max(look_ahead, 1) or not guessed, "0 would leave nothing"
    pieces = pieces_of(stream)
    assert len(pieces[0]) == (15 - stream.look_ahead) * SPEC.hop, "as early as was asked"
    assert sum(map(len, pieces)) == 90 * SPEC.hop
    assert step_at_seams(pieces, SPEC.sample_rate_hz) <= SMOOTH
    assert step_at_seams(pieces, SPEC.sample_rate_hz, repeated=100) > 5 * SMOOTH
    stream._num_fade = 0
    cut = step_at_seams(pieces_of(stream), SPEC.sample_rate_hz)
    assert cut > 5 * SMOOTH if guessed else cut <= SMOOTH


@torch.no_grad()
def test_memory_does_not_grow_and_a_finished_stream_begins_anew() -> None:
    vocoder, mel_MT = new_vocoder("hift"), torch.randn(8, 400)
    stream = VocoderStream(vocoder)  # type: ignore[arg-type]
    for piece in mel_MT.split(20, dim=1):
        stream.push(piece)
        assert stream._mel_MT.shape[1] <= stream._before + stream.look_ahead + 20
        assert len(stream._excitation_N) <= stream._mel_MT.shape[1] * SPEC.hop
    stream.finish()
    again = torch.cat([stream.push(mel_MT[:, :30]), stream.finish()])
    torch.testing.assert_close(again, vocoder(mel_MT[None, :, :30])[0], atol=1e-5, rtol=1e-4)


def test_a_negative_look_ahead_is_refused() -> None:
    with pytest.raises(UserError, match="look_ahead -1 mel frames"):
        VocoderStream(new_vocoder("v3"), -1)  # type: ignore[arg-type]
