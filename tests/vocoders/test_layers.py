"""Shared layers: Snake by hand, residual blocks keep length, folding."""

import pytest
import torch
from torch import nn

from omniaudio.vocoders.layers import ResBlock1, ResBlock2, Snake, fold_weight_norm, maybe_weight_norm


def test_snake() -> None:
    snake = Snake(2)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[[0.5], [0.5]]])
    expected = [0.5 + torch.sin(torch.tensor(0.5)).square(), 0.5 + torch.sin(torch.tensor(1.0)).square() / 2]
    torch.testing.assert_close(snake(x).flatten(), torch.stack(expected))


@pytest.mark.parametrize(
    "block", [ResBlock1(4, 5, [1, 3]), ResBlock1(4, 3, [1], Snake), ResBlock2(4, 3, [2])]
)
def test_residual_blocks_start_near_the_identity(block: nn.Module) -> None:
    x = torch.randn(1, 4, 30)
    y = block(x)
    assert y.shape == x.shape
    assert 0 < (y - x).abs().max() < 0.5


def test_fold() -> None:
    conv = maybe_weight_norm(nn.Conv1d(2, 3, 3), True)
    assert set(conv.state_dict()) == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }
    x = torch.randn(1, 2, 8)
    before = conv(x)
    fold_weight_norm(nn.Sequential(conv))
    assert set(conv.state_dict()) == {"bias", "weight"}
    torch.testing.assert_close(conv(x), before)
