from collections import Counter

import pytest

from omniaudio.data.mixture import MixturePlan
from omniaudio.errors import UserError


class Fake:
    """Kind 'a': 10 items of 5 tokens; 'b': 4 items of 20; 'long': one of 1000 and one of 30."""

    lengths = {"a": [5] * 10, "b": [20] * 4, "long": [1000, 30], "none": []}

    def items(self, kind, rng):
        return [(int(i),) for i in rng.permutation(len(self.lengths[kind]))]

    def num_tokens(self, kind, item_ids, seed):
        return self.lengths[kind][item_ids[0]]


def plan(seed=0, **weights):
    return MixturePlan(Fake(), weights or {"a": 1, "b": 3}, tokens_per_step=50, seed=seed)


def test_a_step_depends_on_seed_and_number_only():
    forward, backward = plan(), plan()
    steps = [forward[i] for i in range(8)]
    assert [backward[i] for i in reversed(range(8))] == steps[::-1]
    assert [plan(seed=1)[i] for i in range(8)] != steps


def test_budget_holds_and_nothing_is_lost():
    mixture = plan()
    documents = []
    for step in range(30):
        assert 25 <= sum(d.num_tokens for d in mixture[step]) <= 50
        documents += mixture[step]
    for kind, num_items in (("a", 10), ("b", 4)):
        order = [d.item_ids[0] for d in documents if d.kind == kind]
        for start in range(0, len(order) - num_items, num_items):
            assert sorted(order[start : start + num_items]) == list(range(num_items)), "before any repeats"
    assert len({d.seed for d in documents}) == len(documents)


def test_realised_shares_are_the_weights():
    shares = plan().shares(100)
    assert abs(shares["a"] - 0.25) < 0.01
    assert abs(shares["b"] - 0.75) < 0.01


def test_too_long_documents_are_counted():
    mixture = plan(long=1.0)
    assert [d.num_tokens for d in mixture[0]] == [30]
    assert Counter(d.item_ids for step in range(5) for d in mixture[step]) == {(1,): 5}
    assert mixture.too_long["long"] >= 5


def test_kinds_without_documents_are_refused():
    with pytest.raises(UserError, match="no document of kind 'none'"):
        plan(a=1, none=1)[0]
    with pytest.raises(UserError, match=r"mixture\.weights"):
        plan(a=-1)
