"""HiFi-GAN, and what every vocoder must hold: samples a frame, folding, batching."""

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.vocoders.hifigan import HiFiGAN
from tests.vocoders.vocoder_fixtures import ALL, SPEC, new_v1


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_frame_gives_a_hop_of_samples(name: str) -> None:
    vocoder = ALL[name]()
    for num_frames in (3, 10):
        assert vocoder(torch.randn(2, 8, num_frames)).shape == (2, num_frames * SPEC.hop)
    assert vocoder.mel_spec == SPEC


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_alike_alone_and_in_a_batch(name: str) -> None:
    torch.manual_seed(0)
    vocoder, mel = ALL[name]().eval(), torch.randn(3, 8, 6)
    torch.testing.assert_close(vocoder(mel)[1:2], vocoder(mel[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_folding_changes_form_not_sound(name: str) -> None:
    torch.manual_seed(0)
    vocoder, mel = ALL[name]().eval(), torch.randn(1, 8, 6)
    for parameter in vocoder.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    before = vocoder(mel)
    changed = vocoder.fold_weight_norm()
    torch.testing.assert_close(vocoder(mel), before, atol=1e-5, rtol=1e-4)
    assert not [key for key in vocoder.state_dict() if "parametrizations" in key]
    if changed:
        fresh = ALL[name](**changed)  # type: ignore[call-arg]
        fresh.load_state_dict(vocoder.state_dict())
        torch.testing.assert_close(fresh.eval()(mel), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    vocoder = ALL[name]()
    vocoder(torch.randn(2, 8, 8)).square().mean().backward()
    still = [n for n, p in vocoder.named_parameters() if p.grad is None]
    assert all(n.startswith("f0_predictor") for n in still), still  # it learns from f0/l1


def test_rates_must_give_the_hop() -> None:
    with pytest.raises(UserError, match=r"\[8, 8\] give 64 samples a frame; the mel's hop is 480"):
        HiFiGAN(SPEC, 16, [8, 8], [16, 16], [3], [[1]], False)


def test_kernels_must_keep_the_length() -> None:
    with pytest.raises(UserError, match="47 for rate 24"):
        HiFiGAN(SPEC, 16, [20, 24], [40, 47], [3], [[1]], False)


def test_output_is_bounded() -> None:
    assert new_v1()(100 * torch.randn(1, 8, 4)).abs().max() <= 1
