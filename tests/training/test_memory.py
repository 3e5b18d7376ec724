"""Bytes by hand, and the line drawn out to the full depth against the full depth itself."""

import pytest
import torch
from torch import nn

from omniaudio.training.memory import (
    ParameterCount,
    PeakMemory,
    activations,
    count_parameters,
    model_states,
    peak_of_step,
    stacks_of,
    with_layers,
)

COUNT = ParameterCount(total=1000, learning=600, buffers=10)


@pytest.mark.parametrize(
    ("strategy", "mixed", "weights", "gradients", "optimizer"),
    [
        ("single", True, 4040, 2400, 4800),
        ("ddp", False, 4040, 4800, 4800),
        ("zero1", True, 2040, 1200, 1800),
        ("zero2", True, 2040, 300, 1800),
        ("zero3", True, 540, 300, 1800),
        ("zero2", False, 4040, 600, 1800),
    ],
)
def test_model_states_by_hand(strategy, mixed, weights, gradients, optimizer):
    states = model_states(COUNT, strategy, num_devices=4, mixed=mixed)
    assert (states.weights, states.gradients, states.optimizer) == (weights, gradients, optimizer)
    assert states.total == weights + gradients + optimizer


def test_shared_and_frozen_parameters():
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.BatchNorm1d(3))
    tied[0].weight = tied[1].weight
    tied[2].requires_grad_(False)
    assert count_parameters(tied) == ParameterCount(total=18, learning=12, buffers=7)


def test_the_peak_is_what_lives_at_once():
    x = torch.zeros(1000)
    with PeakMemory() as watch:
        watch.ignore(iter([x]))
        y = x + 1  # 4000 bytes
        z = y.view(10, 100)  # no more
        del y
        a = z * 2  # 8000
        del z, a
        x.add_(1)
        b = x + 2  # 4000 again
    assert watch.peak == 8000
    del b


class Deep(nn.Module):
    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def peak_of(model: dict, units: int) -> int:
    parts = nn.ModuleList(
        [Deep(model["a"]["width"], model["a"]["num_layers"]), Deep(8, model["b"]["num_layers"])]
    )
    x = torch.randn(100 * units, 32)
    return peak_of_step(parts, lambda: parts[1](parts[0](x)[:, :8]).square().sum(), mixed=False)


def test_the_line_reaches_the_full_depth_and_batch():
    model = {"a": {"width": 32, "num_layers": 7}, "b": {"num_layers": 4}}
    assert [(s.path, s.num_layers) for s in stacks_of(model)] == [
        (("a", "num_layers"), 7),
        (("b", "num_layers"), 4),
    ]
    assert with_layers(model, {("a", "num_layers"): 1})["a"] == {"width": 32, "num_layers": 1}
    assert model["a"]["num_layers"] == 7
    found = activations(model, peak_of)
    for units in (1, 5):
        assert found.of(units) == pytest.approx(peak_of(model, units), rel=0.02)
    # a row of a keeps the input of each of its layers, and each relu what it gave
    assert found.per_unit >= 100 * 4 * 32 * 7
