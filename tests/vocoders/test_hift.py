"""HiFT: the excitation reaches the output at every stage. Parity: tests/convert/test_parity_acoustic.py."""

import torch

from omniaudio.vocoders.hift import AUDIO_LIMIT, _source_strides
from tests.vocoders.vocoder_fixtures import SPEC, excitation_by_definition, new_hift


def test_excitation_is_brought_to_the_rate_of_each_stage() -> None:
    assert _source_strides([8, 5, 3]) == [15, 3, 1]
    assert _source_strides([8, 15]) == [15, 1]


def test_output_depends_on_mel_and_excitation() -> None:
    torch.manual_seed(0)
    hift = new_hift()
    mel, source = torch.randn(1, 8, 5, requires_grad=True), torch.randn(1, 2400, requires_grad=True)
    wav = hift.filter(mel, source)
    assert wav.shape == (1, 2400)
    assert wav.abs().max() <= AUDIO_LIMIT
    wav.square().sum().backward()
    assert mel.grad is not None and mel.grad.abs().sum() > 0
    assert source.grad is not None and source.grad.abs().sum() > 0


@torch.no_grad()
def test_the_waveform_is_filtered_from_the_excitation_of_the_predicted_f0() -> None:
    """F0 of the mel, excitation by definition at the mel's rate and hop, filter."""
    torch.manual_seed(0)
    hift, mel = new_hift().eval(), torch.randn(1, 8, 5)
    hift.source.mix.weight.fill_(2.0)
    hift.f0_predictor.classifier.weight.mul_(2000)
    f0_BT = hift.f0_predictor(mel)
    assert f0_BT.max() > 100, "voiced"
    draws = hift.source.draw(torch.empty(1, 5 * SPEC.hop))
    wav_BN = excitation_by_definition(hift.source, f0_BT, *draws, SPEC.sample_rate_hz, SPEC.hop)
    found = hift(mel)
    torch.testing.assert_close(found, hift.filter(mel, torch.from_numpy(wav_BN).float()), atol=2e-5, rtol=0)
    assert (found - hift.filter(mel, torch.zeros(1, 2400))).abs().max() > 5e-3, "it is heard"


@torch.no_grad()
def test_same_sound_twice_in_evaluation_but_not_in_training() -> None:
    hift, mel = new_hift().eval(), torch.randn(1, 8, 5)
    assert torch.equal(hift(mel), hift(mel))
    hift.train()
    assert not torch.equal(hift(mel), hift(mel))
