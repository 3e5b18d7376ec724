"""The library's quantizer behaves as ours at the interface."""

import pytest
import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.quantizers.vector_quantize import FiniteScalar, VectorQuantizePytorch

VALID = torch.arange(10)[None] < torch.tensor([10, 7, 1])[:, None]


@pytest.fixture
def quantizer() -> VectorQuantizePytorch:
    torch.manual_seed(0)
    return VectorQuantizePytorch(6, [16, 8, 4])


@pytest.fixture(name="z_BSD")
def make_z() -> Tensor:
    return torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bypass_share", [0.0, 1.0])
def test_gradient_passes_straight_through(
    quantizer: VectorQuantizePytorch, z_BSD: Tensor, bypass_share: float
) -> None:
    z_BSD.requires_grad_()
    output = quantizer(z_BSD, VALID, bypass_share=bypass_share)
    weight = torch.randn_like(z_BSD)
    (output.quantized_BSD * weight).sum().backward()
    assert z_BSD.grad is not None
    torch.testing.assert_close(z_BSD.grad, weight * VALID[..., None])
    assert torch.equal(output.quantized_BSD, z_BSD * VALID[..., None]) == (bypass_share == 1)


def test_codes_padding_and_leading_books(quantizer: VectorQuantizePytorch, z_BSD: Tensor) -> None:
    quantizer(z_BSD, VALID)
    quantizer.eval()
    output = quantizer(z_BSD, VALID)
    codes_BSK = quantizer.encode(z_BSD, VALID)
    assert codes_BSK.shape == (3, 10, 3)
    assert torch.equal(output.codes_BSK, codes_BSK)
    assert (codes_BSK[~VALID] == -1).all()
    assert (codes_BSK[VALID] >= 0).all()
    total_BSD = quantizer.decode(codes_BSK)
    torch.testing.assert_close(output.quantized_BSD, total_BSD * VALID[..., None])
    torch.testing.assert_close(output.commit_loss, (z_BSD - total_BSD)[VALID].square().mean())
    torch.testing.assert_close(output.stats["error/book2"], output.commit_loss)
    first = torch.stack([quantizer.library.codebooks[0][c] for c in codes_BSK[0, :, 0]])
    torch.testing.assert_close(quantizer.decode(codes_BSK[..., :1])[0], first)
    with pytest.raises(UserError, match="1 to 3"):
        quantizer.encode(z_BSD, VALID, num_books=4)


def test_it_follows_its_inputs(quantizer: VectorQuantizePytorch) -> None:
    torch.manual_seed(0)
    x_BSD, valid_BS = torch.randn(20, 10, 6), torch.ones(20, 10, dtype=torch.bool)
    quantizer(x_BSD, valid_BS)
    losses = [float(quantizer(x_BSD * 3, valid_BS).commit_loss) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert quantizer.state_dict().keys() == VectorQuantizePytorch(6, [16, 8, 4]).state_dict().keys()


@pytest.fixture
def scalar() -> FiniteScalar:
    torch.manual_seed(0)
    return FiniteScalar(6, [24, 24, 24], levels=[4, 3, 2])


def test_finite_scalar_agrees_with_itself(scalar: FiniteScalar, z_BSD: Tensor) -> None:
    output = scalar(z_BSD, VALID)
    codes_BSK = scalar.encode(z_BSD, VALID)
    assert torch.equal(output.codes_BSK, codes_BSK) and codes_BSK.dtype == torch.int64
    assert (codes_BSK[~VALID] == -1).all() and codes_BSK[VALID].min() >= 0 and codes_BSK.max() < 24
    torch.testing.assert_close(scalar.decode(codes_BSK), output.quantized_BSD, atol=1e-5, rtol=1e-5)
    error = (z_BSD - output.quantized_BSD)[VALID].square().mean()
    torch.testing.assert_close(output.stats["error/book2"], error)
    assert scalar.decode(scalar.encode(z_BSD, VALID, 1)).shape == z_BSD.shape
    assert not torch.equal(scalar.decode(codes_BSK[..., :1]), scalar.decode(codes_BSK))


def test_finite_scalar_passes_gradients_and_spares_bypassing_items(
    scalar: FiniteScalar, z_BSD: Tensor
) -> None:
    z_BSD.requires_grad_()
    scalar(z_BSD, VALID).quantized_BSD.square().sum().backward()
    assert z_BSD.grad is not None and z_BSD.grad[VALID].abs().sum() > 0 and (z_BSD.grad[~VALID] == 0).all()
    untouched = scalar(z_BSD, VALID, bypass_share=1.0).quantized_BSD
    assert torch.equal(untouched, z_BSD * VALID[..., None])


def test_finite_scalar_books_are_the_product_of_the_levels() -> None:
    with pytest.raises(UserError, match=r"books.codebook_sizes \[24, 8\].*\[4, 3, 2\], 24 codes"):
        FiniteScalar(6, [24, 8], levels=[4, 3, 2])


def test_finite_scalar_without_a_projection() -> None:
    scalar = FiniteScalar(3, [24, 24], levels=[4, 3, 2])
    z_BSD, valid_BS = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    output = scalar(z_BSD, valid_BS)
    torch.testing.assert_close(scalar.decode(output.codes_BSK), output.quantized_BSD, atol=1e-5, rtol=1e-5)
    error = (z_BSD - output.quantized_BSD).square().mean()
    torch.testing.assert_close(output.stats["error/book1"], error)
