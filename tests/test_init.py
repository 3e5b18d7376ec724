"""First weights: a stack that starts as the identity, and convolutions as loud as their input."""

import pytest
import torch
from torch import nn

from omniaudio import init
from omniaudio.encoders.transformer import TransformerLayer


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "BRANCH_GAIN", 0.0)


@pytest.mark.usefixtures("silent")
def test_a_new_layer_changes_nothing_and_learns_all_the_same() -> None:
    layer, x_BTD = TransformerLayer(8, 2, 16), torch.randn(1, 5, 8)
    assert torch.equal(layer(x_BTD), x_BTD)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x_BTD).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (layer.fc1.weight, layer.fc2.weight))


def test_loud_convolutions_keep_the_variance() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv1d(64, 64, 3), nn.Conv1d(64, 64, 3)
    init.start_loud(first, second)
    y = second(torch.relu(first(torch.randn(4, 64, 200))))
    assert 1.0 < float(y.std()) < 2.0
