"""Harmonic source: frequencies, voicing, randomness."""

import torch

from omniaudio.vocoders.source import F0Predictor, HarmonicSource


def new_source(num_harmonics: int = 1, noise_std: float = 0.0) -> HarmonicSource:
    source = HarmonicSource(24000, 480, num_harmonics, 0.1, noise_std, 10.0).eval()
    torch.nn.init.constant_(source.mix.weight, 1.0)
    torch.nn.init.zeros_(source.mix.bias)
    return source


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
