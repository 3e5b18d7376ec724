"""Mel L1 of waveforms: zero for equals, a gain is heard as its logarithm, every scale counts."""

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.losses.vocoder import MultiScaleMelL1


def spec(n_fft: int, rate_hz: int = 24000) -> MelSpec:
    return MelSpec(rate_hz, n_fft, n_fft // 4, n_fft, 20, 0.0, rate_hz / 2, "ln", False)


def test_zero_for_equal_waveforms() -> None:
    wav = torch.randn(2, 4800)
    assert MultiScaleMelL1([spec(512), spec(1024)])(wav, wav) == 0


def test_gain() -> None:
    wav = 0.1 * torch.randn(1, 24000)
    loss = MultiScaleMelL1([spec(512), spec(2048)])(2 * wav, wav)
    assert float(loss) == pytest.approx(0.6931, abs=1e-3)


def test_scales_are_averaged() -> None:
    one, two = torch.randn(1, 4800), torch.randn(1, 4800)
    alone = [MultiScaleMelL1([spec(n)])(one, two) for n in (512, 1024)]
    both = MultiScaleMelL1([spec(512), spec(1024)])(one, two)
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_silence_has_a_finite_gradient() -> None:
    wav_hat = torch.zeros(1, 4800, requires_grad=True)
    MultiScaleMelL1([spec(512)])(wav_hat, 0.1 * torch.randn(1, 4800)).backward()
    assert wav_hat.grad is not None and torch.isfinite(wav_hat.grad).all()


def test_one_sample_rate() -> None:
    for specs in ([], [spec(512), spec(512, 16000)]):
        with pytest.raises(UserError, match="sample_rate_hz"):
            MultiScaleMelL1(specs)
