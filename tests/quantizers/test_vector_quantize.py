"""The library's quantizer behaves as ours at the interface."""

import pytest
import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.quantizers.vector_quantize import VectorQuantizePytorch

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
