"""Harmonic source: by its definition, frequencies, voicing, randomness."""

import pytest
import torch

from omniaudio.vocoders.source import F0Predictor, HarmonicSource, SourceStream
from tests.vocoders.vocoder_fixtures import SOURCE, excitation_by_definition


def new_source(num_harmonics: int = 1, noise_std: float = 0.0) -> HarmonicSource:
    source = HarmonicSource(24000, 480, num_harmonics, 0.1, noise_std, 10.0).eval()
    torch.nn.init.constant_(source.mix.weight, 1.0)
    torch.nn.init.zeros_(source.mix.bias)
    return source


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_excitation_is_that_of_the_definition(training: bool) -> None:
    """Voices that move and fall silent, a frame at the threshold, odd rates, weights of both signs."""
    source = HarmonicSource(22_050, 150, **SOURCE).train(training)
    source.mix.weight.copy_(torch.tensor([[2.0, -1.5, 1.0]]))
    f0_BT = torch.tensor(
        [[90.0, 130.5, 0.0, 10.0, 10.5, 410.0, 395.0], [0.0, 0.0, 220.0, 221.0, 180.0, 0.0, 333.0]]
    )
    torch.manual_seed(5)
    found_BN = source(f0_BT)
    torch.manual_seed(5)
    phase_BH, noise_BNH = (draw.expand(2, *draw.shape[1:]) for draw in source.draw(torch.empty(2, 7 * 150)))
    assert not phase_BH[:, 0].any() and phase_BH[:, 1:].abs().min() > 1e-2, (
        "the harmonics' own, not the fundamental's"
    )
    wanted_BN = excitation_by_definition(source, f0_BT, phase_BH, noise_BNH, 22_050, 150)
    torch.testing.assert_close(found_BN.double(), torch.from_numpy(wanted_BN), atol=2e-5, rtol=0)


@torch.no_grad()
def test_peaks_at_f0_and_its_multiples() -> None:
    wav = new_source()(torch.full((1, 50), 300.0))[0]
    assert wav.shape == (24000,)
    loudest = torch.fft.rfft(wav).abs().topk(2).indices  # one second: bins are Hz
    assert sorted(loudest.tolist()) == [300, 600]


@torch.no_grad()
def test_noise_where_unvoiced() -> None:
    wav = new_source()(torch.tensor([[200.0] * 10 + [0.0] * 10]))[0]
    spectrum = torch.fft.rfft(wav[4800:]).abs()
    assert spectrum.max() < 10 * spectrum.median()
    assert 0.01 < wav[4800:].std() < 0.1


@torch.no_grad()
def test_phase_runs_on_where_f0_changes() -> None:
    wav = new_source(0)(torch.tensor([[100.0] * 10 + [150.0] * 10]))[0]
    assert wav.diff().abs().max() < 0.1 * 2 * torch.pi * 151 / 24000


@pytest.mark.parametrize("hop", [1, 15, 480])
def test_piece_by_piece_it_is_the_whole_at_any_hop(hop: int) -> None:
    """Also where hop x sines is no multiple of the 16 that torch draws at a time; with noise alone to be heard."""
    source = HarmonicSource(24_000, hop, **{**SOURCE, "num_harmonics": 0}).eval()
    f0_BT, stream = torch.tensor([[0.0, 120.0, 0.0, 95.5, 0.0, 0.0, 310.0] * 5]), SourceStream(source)
    pieces = [stream.push(piece_BT) for piece_BT in f0_BT.split([1, 0, 2, 9, 23], dim=1)]
    with torch.no_grad():
        whole_BN = source(f0_BT)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole_BN, atol=1e-6, rtol=0)
    unvoiced_BN = whole_BN.unflatten(1, (-1, hop))[:, f0_BT[0] == 0]
    assert unvoiced_BN.std() > 1e-3, "noise is heard"


def test_training_draws_from_the_global_generator() -> None:
    source = new_source(1, 0.003).train()
    f0_BT = torch.full((2, 4), 100.0)
    torch.manual_seed(1)
    first = source(f0_BT)
    torch.manual_seed(1)
    assert torch.equal(source(f0_BT), first)
    assert not torch.equal(first[0], first[1])


def test_f0_is_not_negative() -> None:
    f0_BT = F0Predictor(8, 4)(torch.randn(2, 8, 9))
    assert f0_BT.shape == (2, 9)
    assert f0_BT.min() >= 0
