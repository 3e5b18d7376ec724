from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniaudio.data.planning import PooledPlan, ShuffledWindows, largest_padded, most_written, share_of
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


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShuffledWindows.__init__, "__defaults__", (True, 64, 8))


@pytest.mark.parametrize("num_items", [1, 8, 63, 64, 65, 200, 1000])
def test_windows_of_an_epoch_hold_every_item_once(num_items: int) -> None:
    windows = ShuffledWindows(num_items, seed=1, window=64, block=8)
    for epoch in range(2):
        found = [windows[epoch * windows.num_windows + i] for i in range(windows.num_windows)]
        assert sorted(np.concatenate(found).tolist()) == list(range(num_items))
        assert max(map(len, found)) <= 64 + 8
    if num_items == 1000:
        assert not np.array_equal(windows[0], windows[windows.num_windows])
        assert np.ptp(windows[3]) > 800, "from all over the corpus"
        blocks = {item // 8 for item in windows[3].tolist()}
        assert len(blocks) <= 9, "and of few files"
    assert np.array_equal(windows[0], ShuffledWindows(num_items, seed=1, window=64, block=8)[0])
    plain = ShuffledWindows(num_items, seed=1, shuffle=False, window=64, block=8)
    assert np.concatenate([plain[i] for i in range(plain.num_windows)]).tolist() == list(range(num_items))


@pytest.mark.parametrize("step", [0, 5, 40, 199])
def test_a_memo_stands_for_all_that_was_planned_before(step: int, small_windows: None) -> None:
    lengths = [1 + i % 7 for i in range(300)]
    forward = PooledPlan(lengths, 20, seed=3)
    steps = [forward[i] for i in range(220)]
    memo = forward.memo(step)
    again = PooledPlan(lengths, 20, seed=3)
    assert again.recall(memo) and memo["step"] <= step
    assert [again[i] for i in range(step, 220)] == steps[step:]
    assert again[0] == steps[0], "and one may still go back"
    assert not PooledPlan(lengths, 20, seed=4).recall(memo), "another plan goes its own way"


def test_every_epoch_of_many_windows_holds_every_item_once(small_windows: None) -> None:
    lengths = [1 + i % 7 for i in range(300)]
    plan = PooledPlan(lengths, 20, seed=0)
    for epoch in range(2):
        assert sorted(itertools.chain(*plan.epoch(epoch))) == list(range(300))
    assert [plan[i] for i in range(len(plan.epoch(0)))] == plan.epoch(0)


def test_items_without_a_length_are_left_out() -> None:
    lengths = np.array([1.0, np.nan, 2.0, np.nan])
    assert sorted(itertools.chain(*PooledPlan(lengths, 2, seed=0).epoch(0))) == [0, 2]
    with pytest.raises(UserError, match="an epoch has none with a length"):
        PooledPlan(np.full(4, np.nan), 2, seed=0)[0]


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
        PooledPlan([1, 12], 10, seed=0)[0]
    with pytest.raises(UserError, match="no samples"):
        PooledPlan([], 10, seed=0)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4])
def test_parts_share_a_step_and_are_never_empty(num_parts):
    items = list(range(7))
    parts = [share_of(items, part, num_parts) for part in range(num_parts)]
    assert sorted(itertools.chain(*parts)) == items
    assert all(share_of([5], part, num_parts) for part in range(num_parts))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40),
    budget=st.floats(10.0, 40.0),
    num_parts=st.integers(1, 9),
)
def test_no_part_of_any_step_exceeds_the_largest_batches(lengths, budget, num_parts):
    """Of whatever clips, in whatever window they lie."""
    largest = largest_padded(budget, max(lengths), num_parts)
    assert largest[0][1] == max(lengths) and all(length <= max(lengths) for _, length in largest)
    most = max(number * length for number, length in largest)
    for step in PooledPlan(lengths, budget, seed=0).epoch(0):
        for part in (share_of(step, part, num_parts) for part in range(num_parts)):
            assert len(part) * max(lengths[i] for i in part) <= most * (1 + 1e-9)
    assert most <= budget / num_parts + max(lengths), "and they are not larger than they must be"


def test_the_largest_batches_may_be_reached():
    assert largest_padded(10.0, 6.0, 1) == [(1, 6.0), (2, 5.0)]
    assert largest_padded(10.0, 6.0, 8) == [(1, 6.0)]


@pytest.mark.parametrize("seed", range(5))
def test_the_first_step_is_the_largest_of_its_window(seed):
    lengths = np.random.default_rng(seed).uniform(1, 9, 3000)
    plan = PooledPlan(lengths, 40, seed)
    costs = [len(step) * lengths[step].max() for step in plan.epoch(0)]
    assert costs[0] == max(costs) and costs[1:] != sorted(costs[1:], reverse=True)
    assert sorted(i for step in plan.epoch(0) for i in step) == list(range(3000))


@pytest.mark.parametrize("num_parts", [1, 3])
def test_no_part_of_any_step_has_more_text_than_the_most_written(monkeypatch, num_parts):
    """Many short clips with long texts, some left out; a part has as much text as all its items together."""
    monkeypatch.setattr("omniaudio.data.planning.CHUNK", 100)
    rng = np.random.default_rng(1)
    lengths = np.where(rng.random(700) < 0.1, np.nan, rng.uniform(0.3, 8, 700))
    texts = np.where(lengths < 2, rng.integers(50, 100, 700), rng.integers(0, 30, 700))
    length, items = most_written(lengths, lambda items: texts[items], 60.0, num_parts)
    plan = PooledPlan(lengths, 60.0, seed=0)
    parts = [
        share_of(step, part, num_parts)
        for epoch in range(3) for step in plan.epoch(epoch) for part in range(num_parts)
    ]  # fmt: skip
    assert max(texts[part].sum() for part in parts) <= texts[items].sum() < 100 * 60 / 0.3 / num_parts
    assert len(set(items.tolist())) == len(items) >= max(map(len, parts))
    assert length * len(items) <= 60.0 / num_parts + length and not np.isnan(lengths[items]).any()
    assert len(most_written(lengths, np.zeros_like, 60.0, num_parts)[1]) == 0


def test_clips_of_one_length_have_as_much_text_as_those_with_most(monkeypatch):
    monkeypatch.setattr("omniaudio.data.planning.CHUNK", 7)
    texts = np.random.default_rng(0).permutation(100)
    _, items = most_written(np.full(100, 2.0), lambda items: texts[items], 20.0, 2)
    assert sorted(texts[items]) == [95, 96, 97, 98, 99]
