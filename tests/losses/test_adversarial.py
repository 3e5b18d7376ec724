"""Adversarial losses: by hand, and against the recorded reference's scores."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing

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


BETTER, WORSE = (torch.randn(2, 11, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
SHARES = (slice(0, 7), slice(7, 11))
"""Of two processes: unequal, so that the median of one is not that of both."""


def _tpr_of(share: slice) -> tuple[Tensor, Tensor]:
    """Value and gradient by what all scores are multiplied with; the second discriminator's term is truncated."""
    scale = torch.ones((), requires_grad=True)
    better = [factor * scale * row[share] for factor, row in zip((0.1, 9.0), BETTER, strict=True)]
    loss = tpr_loss(
        better, [scale * row[share] * factor for factor, row in zip((0.1, 9.0), WORSE, strict=True)]
    )
    (gradient,) = torch.autograd.grad(loss, scale)
    return loss.detach(), gradient


def _tpr_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(_tpr_of(SHARES[rank]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_tpr_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_tpr_on_a_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    loss, gradient = _tpr_of(slice(None))
    assert [float(value) for value, _ in ranks] == pytest.approx([float(loss)] * 2)
    assert float(gradient) != 0 and float(sum(g for _, g in ranks)) / 2 == pytest.approx(float(gradient))
