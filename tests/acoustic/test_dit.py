"""Transformer estimator: what a frame may see, positions, padding, batching, its start as nothing, learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from omniaudio.acoustic.dit import ConditionalDiT, DiTBlock, rotated
from omniaudio.acoustic.timbre import Timbre
from omniaudio.errors import UserError
from tests.acoustic.test_flow_matching import new_flow


def new_dit(chunk_frames: int = 4, num_mels: int = 3, timbre: Timbre | None = None) -> ConditionalDiT:
    torch.manual_seed(0)
    return ConditionalDiT(num_mels, 16, 2, 2, 24, 12, chunk_frames, timbre=timbre).eval()


def test_future_reaches_to_the_end_of_the_chunk_only() -> None:
    x = torch.randn(1, 3, 12, requires_grad=True)
    y = new_dit()(x, torch.randn(1, 3, 12), torch.tensor([0.5]), torch.ones(1, 12, dtype=torch.bool))
    y[0, :, 5].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(0) > 0).tolist() == [True] * 8 + [False] * 4


@torch.no_grad()
def test_alike_alone_and_in_a_batch() -> None:
    dit, x, mu = new_dit(), torch.randn(2, 3, 10), torch.randn(2, 3, 10)
    valid_BT = torch.arange(10)[None] < torch.tensor([10, 6])[:, None]
    both = dit(x, mu, torch.tensor([0.2, 0.7]), valid_BT)
    alone = dit(x[1:, :, :6], mu[1:, :, :6], torch.tensor([0.7]), valid_BT[1:, :6])
    torch.testing.assert_close(both[1:, :, :6], alone)
    assert both[1, :, 6:].abs().max() == 0
    other = x.clone()
    other[1, :, 6:] = 100.0
    assert torch.equal(dit(other, mu, torch.tensor([0.2, 0.7]), valid_BT), both), "padding is not seen"


@torch.no_grad()
def test_order_and_time_matter() -> None:
    dit, x, mu = new_dit(), torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    valid_BT, early = torch.ones(1, 4, dtype=torch.bool), torch.tensor([0.1])
    found = dit(x, mu, early, valid_BT)
    swapped = [1, 0, 2, 3]
    assert not torch.allclose(
        dit(x[..., swapped], mu[..., swapped], early, valid_BT)[..., swapped], found, atol=1e-4
    )
    assert not torch.allclose(dit(x, mu, torch.tensor([0.9]), valid_BT), found, atol=1e-4)


def test_products_of_rotated_vectors_know_only_the_distance() -> None:
    query, key = torch.randn(2, 8).double()
    turns_TD = torch.arange(9)[:, None] * torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    queries, keys = (rotated(x.expand(9, 8), turns_TD) for x in (query, key))
    torch.testing.assert_close(queries[2] @ keys[5], queries[5] @ keys[8])
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(9))
    assert not torch.allclose(queries[2] @ keys[5], queries[2] @ keys[6])


def test_it_starts_as_the_identity(monkeypatch) -> None:
    monkeypatch.setattr("omniaudio.init.BRANCH_GAIN", 0.0)
    block, x = DiTBlock(8, 2, 16, 4), torch.randn(1, 5, 8)
    visible = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert torch.equal(block(x, torch.randn(1, 4), torch.zeros(5, 2), visible), x)
    valid_BT = torch.ones(1, 12, dtype=torch.bool)
    assert not new_dit()(*torch.randn(2, 1, 3, 12), torch.tensor([0.5]), valid_BT).any()


def test_a_flow_learns_with_it(monkeypatch) -> None:
    monkeypatch.setattr("omniaudio.init.BRANCH_GAIN", 0.0)
    flow = new_flow(new_dit(100, num_mels=4))
    hidden, mel = torch.randn(2, 8, 6), torch.randn(2, 4, 8)
    lengths = torch.tensor([8, 6])
    optimizer: Any = torch.optim.AdamW(flow.parameters(), lr=0.01)
    values = []
    for _ in range(60):
        terms = flow.losses(hidden, lengths, mel, lengths, torch.Generator().manual_seed(0))
        total, count = terms["flow/mse"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        values.append(float(total / count))
    assert values[-1] < 0.5 * values[0]
    made, _ = flow.decode(hidden, lengths, num_steps=2)
    assert made.shape == (2, 4, 8) and made.isfinite().all()


def test_heads_part_the_width_evenly() -> None:
    with pytest.raises(UserError, match=r"dit.width 18 is not a multiple of twice dit.num_heads 2"):
        ConditionalDiT(3, 18, 1, 2, 8, 8)
