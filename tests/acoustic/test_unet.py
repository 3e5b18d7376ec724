"""U-Net: what a frame may see, padding, batching."""

import torch

from omniaudio.acoustic.unet import CausalConv1d, ConditionalUNet


def new_unet(chunk_frames: int = 4) -> ConditionalUNet:
    torch.manual_seed(0)
    return ConditionalUNet(3, 8, 1, 1, 2, 4, 16, chunk_frames).eval()


def test_convolution_is_causal() -> None:
    conv = CausalConv1d(1, 1, 3)
    torch.nn.init.constant_(conv.weight, 1.0)
    torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    assert conv(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).flatten().tolist() == [1, 3, 6, 9]


def test_future_reaches_to_the_end_of_the_chunk_only() -> None:
    x = torch.randn(1, 3, 12, requires_grad=True)
    y = new_unet()(x, torch.randn(1, 3, 12), torch.tensor([0.5]), torch.ones(1, 12, dtype=torch.bool))
    y[0, :, 5].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    assert seen.tolist() == [True] * 8 + [False] * 4


@torch.no_grad()
def test_alike_alone_and_in_a_batch() -> None:
    unet, x, mu = new_unet(), torch.randn(2, 3, 10), torch.randn(2, 3, 10)
    valid_BT = torch.arange(10)[None] < torch.tensor([10, 6])[:, None]
    both = unet(x, mu, torch.tensor([0.2, 0.7]), valid_BT)
    alone = unet(x[1:, :, :6], mu[1:, :, :6], torch.tensor([0.7]), valid_BT[1:, :6])
    torch.testing.assert_close(both[1:, :, :6], alone)
    assert both[1, :, 6:].abs().max() == 0
