"""Shares of float32 values on stand-ins for other processes; with DeepSpeed: tests/tasks/test_zero.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omniaudio.training.masters import keep_shares, size_of, start_masters, whole_value


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """This process is the second of two; what the first one gives is put into the list."""
    first: list[torch.Tensor] = []
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(
        distributed, "all_gather", lambda found, own: found.__setitem__(slice(None), [first.pop(0), own])
    )
    return first


def test_a_frozen_weight_is_written_as_it_was_before_it_was_rounded(second_of_two):
    linear = nn.Linear(5, 1, bias=False).requires_grad_(False)
    exact = linear.weight.detach().clone()
    keep_shares(linear, torch.bfloat16)
    assert linear.weight.exact_share.tolist() == [*exact[0, 3:].tolist(), 0.0], "its share alone, padded"
    linear.weight.data = linear.weight.data.bfloat16()  # the engine
    start_masters(linear)  # has none
    second_of_two.append(exact[0, :3])
    assert torch.equal(whole_value(linear.weight), exact) and size_of(linear.weight) == 5
    linear.weight[0, 0] += 1
    second_of_two.append(exact[0, :3])
    moved = whole_value(linear.weight)
    assert moved.dtype == torch.bfloat16 and torch.equal(moved, linear.weight), "one that moved is not hidden"


def test_pieces_of_zero3_are_kept_and_then_rounded(second_of_two):
    parameter = nn.Parameter(torch.empty(0), requires_grad=False)
    parameter.ds_tensor = torch.tensor([1 / 3, 1 / 7])
    parameter.ds_numel, parameter.ds_shape = 4, torch.Size([2, 2])
    module = nn.ParameterList([parameter])
    keep_shares(module, torch.bfloat16)
    assert parameter.dtype == parameter.ds_tensor.dtype == torch.bfloat16
    first = torch.tensor([0.1, 0.2])
    second_of_two.extend([first.bfloat16(), first])
    assert torch.equal(whole_value(parameter), torch.tensor([[0.1, 0.2], [1 / 3, 1 / 7]]))


def test_what_no_engine_holds_is_copied():
    weight = nn.Linear(2, 2).weight
    whole_value(weight).zero_()
    assert weight.abs().sum() > 0
