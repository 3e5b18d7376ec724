from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniaudio.data.planning import PooledPlan, share_of
from omniaudio.errors import UserError


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=60),
    budget=st.floats(10.0, 40.0),
    pool=st.integers(1, 70),
    seed=st.integers(0, 5),
)
def test_an_epoch_holds_every_item_once_within_the_budget(lengths, budget, pool, seed):
    steps = PooledPlan(lengths, budget, seed, pool).epoch(0)
    assert sorted(itertools.chain(*steps)) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in step) * len(step) <= budget for step in steps)


def test_steps_are_a_function_of_seed_and_number_alone():
    lengths = [1 + i % 7 for i in range(40)]
    forward, backward = PooledPlan(lengths, 20, seed=3), PooledPlan(lengths, 20, seed=3)
    ahead = [forward[step] for step in range(30)]
    assert [backward[step] for step in reversed(range(30))] == ahead[::-1]
    assert [PooledPlan(lengths, 20, seed=4)[step] for step in range(30)] != ahead


def test_epochs_are_shuffled_anew():
    plan = PooledPlan([1.0] * 50, 5, seed=0)
    assert plan.epoch(0) != plan.epoch(1)


def test_sorting_inside_pools_pads_less():
    lengths = [1.0 + (i * 37 % 50) / 5 for i in range(200)]

    def waste(pool: int) -> float:
        steps = PooledPlan(lengths, 40, seed=0, pool=pool).epoch(0)
        padded = sum(max(lengths[i] for i in s) * len(s) for s in steps)
        return 1 - sum(lengths) / padded

    assert waste(200) < 0.5 * waste(8)


def test_validation_keeps_one_order():
    plan = PooledPlan([3, 1, 2], 3, seed=0, shuffle=False)
    assert plan.epoch(0) == plan.epoch(1) == [[0], [2], [1]]


def test_too_long_and_empty_are_refused():
    with pytest.raises(UserError, match="longest sample .12.0. exceeds"):
        PooledPlan([1, 12], 10, seed=0)
    with pytest.raises(UserError, match="no samples"):
        PooledPlan([], 10, seed=0)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4])
def test_parts_share_a_step_and_are_never_empty(num_parts):
    items = list(range(7))
    parts = [share_of(items, part, num_parts) for part in range(num_parts)]
    assert sorted(itertools.chain(*parts)) == items
    assert all(share_of([5], part, num_parts) for part in range(num_parts))
