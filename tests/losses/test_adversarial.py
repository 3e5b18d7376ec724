"""Adversarial losses: by hand, and against the recorded reference's scores."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from omniaudio.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss, tpr_loss


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file("tests/golden/disc.safetensors")


def test_recorded_losses(golden: dict[str, Tensor]) -> None:
    real = [golden[f"y_d_r/{i}"] for i in range(3)]
    fake = [golden[f"y_d_g/{i}"] for i in range(3)]
    torch.testing.assert_close(generator_loss(fake), golden["losses/gen"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(discriminator_loss(real, fake), golden["losses/disc"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tpr_loss(fake, real), golden["losses/tpr"], atol=1e-7, rtol=1e-5)


def test_least_squares() -> None:
    one, half = [torch.ones(2)], [torch.full((2,), 0.5)]
    assert generator_loss(one + half) == pytest.approx(0.25)
    assert discriminator_loss(one, [torch.zeros(2)]) == 0
    assert discriminator_loss(half, half) == pytest.approx(0.5)


def test_feature_matching_sums_layers_twice_and_spares_real() -> None:
    real, fake = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss = feature_matching_loss([[real, real]], [[fake, fake]])
    assert loss.item() == pytest.approx(4.0)
    loss.backward()
    assert real.grad is None
    assert fake.grad is not None


def test_tpr_by_hand() -> None:
    better, worse = torch.tensor([0.1, 0.2, 0.0]), torch.zeros(3)
    # distances 0.1, 0.2, 0.0; median 0.1; only the last is below: 0.01
    assert tpr_loss([better], [worse], tau=0.04) == pytest.approx(0.01)
    assert tpr_loss([10 * better], [worse], tau=0.04) == pytest.approx(0.04)  # truncated
    assert tpr_loss([better * 0], [worse]) == 0
