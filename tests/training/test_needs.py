"""Bytes by hand, and the line drawn out to the full depth against the full depth itself."""

from functools import partial

import pytest
import torch
from torch import nn

from omniaudio.lm.audio_head import AudioHead
from omniaudio.training.needs import (
    ParameterCount,
    PeakMemory,
    Sharing,
    count_parameters,
    device_memory,
    draw_out,
    model_states,
    needs_of_step,
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
    states = model_states(COUNT, Sharing(strategy, num_devices=4, mixed=mixed))
    assert (states.weights, states.gradients, states.optimizer) == (weights, gradients, optimizer)
    assert states.total == weights + gradients + optimizer


@pytest.mark.parametrize(
    ("strategy", "on_device", "in_host"), [("zero1", 3240, 1800), ("zero2", 2040, 2100), ("zero3", 40, 2600)]
)
def test_what_is_offloaded_stands_in_host_memory(strategy, on_device, in_host):
    states = model_states(COUNT, Sharing(strategy, num_devices=4, mixed=True, offload=True))
    assert (states.total, states.host) == (on_device, in_host)


def test_gradients_of_several_batches_are_summed_in_float32_from_stage_2_on():
    for strategy, gradients, update in (("zero1", 1200, 1200), ("zero2", 600, 600), ("zero3", 600, 600)):
        memory = device_memory(COUNT, Sharing(strategy, num_devices=4, mixed=True, accumulate=2))
        assert (memory.states.gradients, memory.update) == (gradients, update)
    for strategy, host in (("zero2", 2100), ("zero3", 2900)):
        assert model_states(COUNT, Sharing(strategy, 4, mixed=True, offload=True, accumulate=2)).host == host


def test_a_device_is_full_in_the_step_or_in_the_update():
    alone = device_memory(COUNT, Sharing("single", num_devices=1, mixed=False))
    assert (alone.workspace, alone.update) == (0, 2400)  # a square root for each that learns
    assert alone.peak(100) == alone.states.total + 2400 and alone.peak(5000) == alone.states.total + 5000
    assert alone.room(alone.states.total + 3000) == 3000 and alone.room(alone.states.total + 2000) == -400
    large = ParameterCount(total=5 * 10**9, learning=10**9, buffers=0)
    shared = device_memory(large, Sharing("zero3", num_devices=4, mixed=True))
    assert shared.workspace == 2 * (0.2e9 + 1e9) and shared.update == 8 * 0.25e9
    assert device_memory(large, Sharing("zero2", 4, mixed=False)).workspace == 4 * 0.4e9
    assert device_memory(large, Sharing("zero2", 4, mixed=True, offload=True)).update == 0


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
        nothing = torch.empty(10**6, device="meta")
        del y
        a = z * 2  # 8000
        del z, a, nothing
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


def needs(model: dict, units: int) -> dict[str, float]:
    parts = nn.ModuleList(
        [Deep(model["a"]["width"], model["a"]["num_layers"]), Deep(8, model["b"]["num_layers"])]
    )
    x = torch.randn(100 * units, 32)
    return needs_of_step(parts, lambda: parts[1](parts[0](x)[:, :8]).square().sum(), mixed=False)


def test_the_line_reaches_the_full_depth_and_batch():
    model = {"a": {"width": 32, "num_layers": 7}, "b": {"num_layers": 4}}
    assert [(s.path, s.num_layers) for s in stacks_of(model)] == [
        (("a", "num_layers"), 7),
        (("b", "num_layers"), 4),
    ]
    assert with_layers(model, {("a", "num_layers"): 1})["a"] == {"width": 32, "num_layers": 1}
    assert model["a"]["num_layers"] == 7
    found = draw_out(model, needs)
    for units in (1, 5):
        whole = needs(model, units)
        assert found["bytes"].of(units) == pytest.approx(whole["bytes"], rel=0.02)
        assert found["operations"].of(units) == pytest.approx(whole["operations"], rel=1e-9)
    # a row of a keeps the input of each of its layers
    assert found["bytes"].per_unit >= 100 * 4 * 32 * 7
    # a product forward, and two backward but for the very first input, which needs no gradient
    assert found["operations"].per_unit == 2 * 100 * (32 * 32 * (3 * 7 - 1) + 8 * 8 * 3 * 4)


@pytest.mark.parametrize("mixed", [False, True])
def test_attention_is_counted(mixed):
    """Two products forward, five backward (the scores are made again)."""
    heads = nn.ModuleList([nn.Linear(16, 16, bias=False)])
    x_BHTD = torch.randn(1, 2, 64, 8)

    def loss():
        q_BHTD = heads[0](x_BHTD.transpose(1, 2).flatten(2)).unflatten(-1, (2, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q_BHTD, q_BHTD, q_BHTD).float().sum()

    product = 2 * 2 * 64 * 64 * 8
    assert needs_of_step(heads, loss, mixed)["operations"] == 7 * product + 2 * (2 * 64 * 16 * 16)


def test_what_is_recomputed_is_not_counted_as_kept():
    """Two layers more cost their inputs alone; torch's own counter of operations held on to the rest."""
    peaks = []
    for num_layers in (2, 4):
        head = AudioHead(32, [16] * 4, num_layers=num_layers, head_dim=16, recompute=True)
        hidden_FD, prefix_FKD = torch.randn(400, 32, requires_grad=True), torch.randn(400, 3, 32)
        peaks.append(needs_of_step(head, partial(_square, head, hidden_FD, prefix_FKD), False)["bytes"])
    assert peaks[1] - peaks[0] <= 2.5 * (400 * 4 * 32 * 4)


def _square(head, hidden_FD, prefix_FKD):
    return torch.cat(head(hidden_FD, prefix_FKD)).square().sum()
