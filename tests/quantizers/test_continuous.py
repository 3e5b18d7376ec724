import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.quantizers.continuous import Continuous


def test_everything_passes_and_nothing_is_coded() -> None:
    z_BSD = torch.randn(2, 3, 4, requires_grad=True)
    valid_BS = torch.tensor([[True, True, True], [True, False, False]])
    out = Continuous(4)(z_BSD, valid_BS)
    assert torch.equal(out.quantized_BSD, z_BSD * valid_BS[..., None])
    assert out.codes_BSK.shape == (2, 3, 0) and out.commit_loss == 0 and not out.stats
    (out.quantized_BSD.sum() + out.commit_loss).backward()
    assert torch.equal(z_BSD.grad, valid_BS[..., None].expand(2, 3, 4).float())


def test_codes_cannot_be_decoded() -> None:
    with pytest.raises(UserError, match="autoencode"):
        Continuous(4).decode(torch.zeros(1, 2, 0, dtype=torch.int64))
