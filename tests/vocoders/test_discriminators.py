"""Discriminators: shapes of the recorded reference, width, gradients, level."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

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


def judged_by_hand(part: PeriodDiscriminator, wav_N: Tensor) -> list[Tensor]:
    """Feature maps (D, rows, period) after HiFi-GAN (arXiv:2010.05646): sample n stands in row n // period, column
    n % period, what lacks of the last row mirrored at the last sample; no kernel is wider than a column."""
    num_samples, period = len(wav_N), part.period
    rows = -(-num_samples // period)
    x = torch.zeros(1, rows, period)
    for n in range(rows * period):
        x[0, n // period, n % period] = wav_N[n if n < num_samples else 2 * (num_samples - 1) - n]
    maps = []
    for conv, stride in zip(part.convs, (3, 3, 3, 3, 1), strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, stride=(stride, 1), padding=(2, 0))
        x = torch.where(x > 0, x, 0.1 * x)
        maps.append(x)
    return [*maps, F.conv2d(x, part.conv_post.weight, part.conv_post.bias, padding=(1, 0))]


@torch.no_grad()
@pytest.mark.parametrize(
    ("period", "rows"), [(2, [251, 84, 28, 10]), (3, [167, 56, 19, 7]), (11, [46, 16, 6, 2])]
)
def test_period_discriminator_is_that_of_the_readable_loop(period: int, rows: list[int]) -> None:
    part, wav_BN = PeriodDiscriminator(period, 0.125), torch.randn(2, 501)  # no period divides 501 but 3
    for conv in (*part.convs, part.conv_post):
        conv.bias.normal_()
    score, features = part(wav_BN)
    assert [tuple(x.shape[1:]) for x in features] == [
        (width, n, period)
        for width, n in zip((4, 16, 64, 128, 128, 1), [*rows[1:], *[-(-rows[3] // 3)] * 3], strict=True)
    ]
    assert torch.equal(score, features[-1])
    for item in range(2):
        for found, wanted in zip(features, judged_by_hand(part, wav_BN[item]), strict=True):
            torch.testing.assert_close(found[item], wanted, atol=1e-5, rtol=1e-4)


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
