"""Discriminators: shapes of the recorded reference, width, gradients, level."""

import torch
from safetensors.torch import load_file

from omniaudio.vocoders.discriminators import PeriodDiscriminator, ResolutionDiscriminator, WaveDiscriminator
from tests.vocoders.vocoder_fixtures import SPEC

NUM_SAMPLES = 20 * SPEC.hop


@torch.no_grad()
def test_score_maps_have_the_shape_of_the_reference() -> None:
    golden = load_file("tests/golden/disc.safetensors")
    scores, features = WaveDiscriminator(periods=[], width_factor=0.125)(torch.randn(2, NUM_SAMPLES))
    assert [s.shape for s in scores] == [golden[f"y_d_r/{i}"].shape for i in range(3)]
    assert [len(maps) for maps in features] == [21, 21, 21]
    # by stage 1..4 of the first band at n_fft 2048
    assert [m.shape[-1] for m in features[0][:4]] == [51, 26, 13, 13]


def test_width_factor_scales_channels() -> None:
    full, quarter = (PeriodDiscriminator(2, factor) for factor in (1.0, 0.25))
    assert [conv.weight.shape[0] for conv in full.convs] == [32, 128, 512, 1024, 1024]
    assert [conv.weight.shape[0] for conv in quarter.convs] == [8, 32, 128, 256, 256]


@torch.no_grad()
def test_period_folds_the_waveform() -> None:
    part = PeriodDiscriminator(3, 0.125)
    wav = torch.zeros(1, 300)
    other = wav.clone()
    other[0, 150] = 1.0  # column 0 of the fold
    moved = (part(wav)[0] - part(other)[0]).abs().amax(dim=(0, 1, 2)) > 1e-7
    assert moved.tolist() == [True, False, False]


@torch.no_grad()
def test_resolution_does_not_hear_level_or_offset() -> None:
    part, wav = ResolutionDiscriminator(512, 0.125), torch.randn(1, 4800)
    torch.testing.assert_close(part(wav)[0], part(0.1 * wav + 0.5)[0], atol=1e-4, rtol=1e-4)


def test_generated_waveform_gets_a_gradient() -> None:
    judges = WaveDiscriminator(periods=[2, 3], resolutions=[512], width_factor=0.125)
    wav = torch.randn(1, 4801, requires_grad=True)
    scores, _ = judges(wav)
    assert len(scores) == 3
    for score in scores:
        (gradient,) = torch.autograd.grad(score.sum(), wav, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_silence_is_not_amplified_without_limit() -> None:
    """The gradient at the quietest waveforms is that at -60 dB, not a multiple of it."""
    part, noise = ResolutionDiscriminator(512, 0.125), torch.randn(1, 4800).clamp(-1, 1)
    norms = []
    for level in (1e-3, 1e-7, 0.0):
        wav = (level * noise).requires_grad_()
        (gradient,) = torch.autograd.grad(part(wav)[0].square().sum(), wav)
        norms.append(float(gradient.norm()))
    assert all(0 < norm < 3 * norms[0] for norm in norms)
    with torch.no_grad():
        torch.testing.assert_close(
            part.spectrogram(1e-5 * noise), 0.01 * part.spectrogram(1e-3 * noise), atol=1e-6, rtol=0.05
        )
