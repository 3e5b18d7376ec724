"""Pitch tracker on tones, noise and silence."""

import pytest
import torch

from omniaudio.vocoders.pitch import PitchTracker


@pytest.mark.parametrize("f0_hz", [80.0, 140.0, 233.0, 400.0])
def test_tone_with_harmonics(f0_hz: float) -> None:
    time = torch.arange(24000) / 24000
    wav = sum(0.1 / k * torch.sin(2 * torch.pi * k * f0_hz * time + k) for k in range(1, 6))
    f0_BT = PitchTracker(24000, 480)(torch.as_tensor(wav)[None])
    assert f0_BT.shape == (1, 50)
    torch.testing.assert_close(f0_BT[0, 3:-3], torch.full((44,), f0_hz), rtol=0.02, atol=0)


def test_noise_and_silence_are_unvoiced() -> None:
    noise = 0.1 * torch.randn(1, 24000, generator=torch.Generator().manual_seed(0))
    f0_BT = PitchTracker(24000, 480)(torch.cat([noise, torch.zeros(1, 24000)]))
    assert (f0_BT[0] > 0).float().mean() < 0.1
    assert f0_BT[1].max() == 0
