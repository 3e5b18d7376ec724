import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniaudio.data.mixture import Mixture, MixturePlan, PlannedDocument, deal, largest_part
from omniaudio.errors import UserError


class Fake:
    """Kind 'a': 10 items of 5 tokens; 'b': 4 items of 20; 'long': one of 1000 and one of 30; 'odd': two windows."""

    lengths = {"a": [5] * 10, "b": [20] * 4, "long": [1000, 30], "none": [], "odd": [7, 9, 11, 13, 17]}

    def num_windows(self, kind):
        return 2 if kind == "odd" else 1

    def groups(self, kind, window, seed):
        items = np.random.default_rng([seed, window]).permutation(len(self.lengths[kind])).tolist()
        if kind == "odd":
            items = [i for i in items if (i < 2) == (window % 2 == 0)]
        return [(i,) for i in items]

    def num_tokens(self, kind, item_ids, seed):
        return self.lengths[kind][item_ids[0]]

    def goes_on(self, kind, item_ids):
        return kind == "b" and item_ids[0] > 0


def plan(seed=0, temperature=1.0, tokens=50, **weights):
    return MixturePlan(Fake(), weights or {"a": 1, "b": 3}, tokens, seed, temperature)


def documents_of(mixture, num_steps, kind=None):
    return [d for step in range(num_steps) for d in mixture[step] if kind in (None, d.kind)]


@pytest.fixture(autouse=True)
def short_chapters(monkeypatch):
    monkeypatch.setattr("omniaudio.data.mixture.CHAPTER_TOKENS", 1000)


def test_a_step_depends_on_seed_and_number_only():
    forward, backward = plan(odd=1, a=1), plan(odd=1, a=1)
    steps = [forward[i] for i in range(70)]
    assert [backward[i] for i in reversed(range(70))] == steps[::-1]
    assert [plan(seed=1, odd=1, a=1)[i] for i in range(70)] != steps


@pytest.mark.parametrize("step", [0, 19, 20, 33, 69])
def test_a_memo_stands_for_all_that_was_planned_before(step):
    forward = plan(odd=2, a=1, b=1)
    steps = [forward[i] for i in range(80)]
    memo = json.loads(json.dumps(forward.memo(step)))
    assert memo["step"] <= step
    again = plan(odd=2, a=1, b=1)
    calls = []
    chapter = again.chapter
    again.chapter = lambda state: calls.append(state) or chapter(state)
    assert again.recall(memo) and [again[i] for i in range(step, 80)] == steps[step:]
    assert calls[0]["step"] == memo["step"]
    assert again[0] == steps[0], "and one may still go back"
    assert not plan(odd=2, a=1, b=2).recall(memo), "another mixture goes its own way"


def test_budget_holds_and_nothing_is_lost():
    mixture = plan(odd=1, a=1, b=2, tokens=100)
    documents = documents_of(mixture, 100)
    assert all(90 <= sum(d.num_tokens for d in mixture[step]) <= 100 for step in range(100))
    for kind in ("a", "b", "odd"):
        counts = Counter(d.item_ids[0] for d in documents if d.kind == kind)
        assert len(counts) == len(Fake.lengths[kind])
        assert max(counts.values()) - min(counts.values()) <= 2, "of all that was drawn, a few wait"
    assert len({d.seed for d in documents}) == len(documents)


def test_steps_are_full():
    rng = np.random.default_rng(0)
    fake = Fake()
    fake.lengths = {"a": np.clip(rng.lognormal(4.5, 0.8, 5000), 5, 800).astype(int).tolist()}
    mixture = MixturePlan(fake, {"a": 1}, 2048)
    mixture.steps_per_chapter = 128
    filled = [sum(d.num_tokens for d in mixture[step]) for step in range(256)]
    assert max(filled) <= 2048 and np.mean(filled) >= 0.997 * 2048


def test_documents_that_leave_room_wait_and_come():
    """Each takes more than half a step: half of what is drawn at first finds no room."""
    fake = Fake()
    fake.lengths = {"a": [30] * 40}
    mixture = MixturePlan(fake, {"a": 1}, 50)
    assert all(len(mixture[step]) == 1 for step in range(100))
    counts = Counter(d.item_ids[0] for d in documents_of(mixture, 120))
    assert set(counts) == set(range(40)) and max(counts.values()) - min(counts.values()) <= 1


def test_realised_shares_are_the_weights():
    mixture = plan()
    shares = mixture.shares(100)
    assert abs(shares["a"] - 0.25) < 0.01
    assert abs(shares["b"] - 0.75) < 0.01
    assert mixture.memo(0)["told"] == {}, "a share of nothing is not 0"
    told = mixture.memo(90)["told"]
    pieces = told.pop("pieces/b")
    assert told == pytest.approx({"share/a": 0.25, "share/b": 0.75}, abs=0.01)
    first = mixture.memo(90)["step"]
    later = sum(d.item_ids[0] > 0 for d in documents_of(mixture, first, "b"))
    assert later <= pieces <= later + 3, "those of the log, and what waits for room"


def test_temperature_lifts_what_is_rare():
    assert plan(temperature=2.0, a=1, b=9).shares_at(0) == pytest.approx({"a": 0.25, "b": 0.75})
    assert plan(temperature=2.0, a=1, b=9).shares(100)["a"] == pytest.approx(0.25, abs=0.01)
    with pytest.raises(UserError, match="temperature: 0"):
        plan(temperature=0, a=1)


def test_shares_may_change_with_the_step():
    mixture = plan(a=1, b=[[100, 0], [200, 3]])
    assert mixture.shares_at(0) == {"a": 1, "b": 0}
    assert mixture.shares_at(150) == pytest.approx({"a": 0.4, "b": 0.6})
    assert mixture.shares_at(900) == pytest.approx({"a": 0.25, "b": 0.75})
    assert not documents_of(mixture, 100, "b")
    late = [d for step in range(300, 400) for d in mixture[step]]
    tokens = Counter()
    for document in late:
        tokens[document.kind] += document.num_tokens
    assert tokens["b"] / sum(tokens.values()) == pytest.approx(0.75, abs=0.02), (
        "what it had no share in is not owed"
    )
    with pytest.raises(UserError, match="all are 0 at step 0"):
        plan(b=[[0, 0], [10, 1]])[0]


@pytest.mark.parametrize("weight", [-1, [], [[0, 1], [0, 2]], [[0, -1]], [[0]], [[0, "x"]], [3]])
def test_weights_that_are_none_are_named(weight):
    with pytest.raises(UserError, match=r"mixture\.weights\.b"):
        plan(a=1, b=weight)


def test_too_long_documents_are_counted():
    mixture = plan(long=1.0)
    assert [d.num_tokens for d in mixture[0]] == [30]
    assert {d.item_ids for d in documents_of(mixture, 25)} == {(1,)}
    assert mixture.memo(24)["told"]["too_long/long"] >= 20


def test_kinds_without_documents_are_refused():
    with pytest.raises(UserError, match="no document of kind 'none'"):
        plan(a=1, none=1)[0]
    with pytest.raises(UserError, match=r"mixture\.weights"):
        plan(a=0)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
def test_parts_are_the_step_and_cost_alike(num_parts):
    lengths = np.random.default_rng(0).integers(5, 300, 60).tolist()
    step = [PlannedDocument("a", (i,), i, length) for i, length in enumerate(lengths)]
    parts = [deal(step, part, num_parts) for part in range(num_parts)]
    assert sorted(d.seed for part in parts for d in part) == list(range(60))
    assert all([d.seed for d in part] == sorted(d.seed for d in part) for part in parts)
    tokens = [sum(d.num_tokens for d in part) for part in parts]
    assert max(tokens) - min(tokens) <= 10
    assert all(deal(step[:1], part, num_parts) == step[:1] for part in range(num_parts)), "none is empty"


def test_too_long_means_longer_than_the_longest_document_that_is_asked_for():
    """Whatever the step holds: ranks share a step out, a document goes to one of them."""
    mixture = MixturePlan(Fake(), {"long": 1}, 2000, max_document_tokens=500)
    assert {d.num_tokens for d in documents_of(mixture, 5)} == {30}
    assert mixture.memo(1)["told"]["too_long/long"] > 10
    whole = MixturePlan(Fake(), {"long": 1}, 2000)
    assert 1000 in {d.num_tokens for d in documents_of(whole, 5)}
    assert not mixture.recall(whole.memo(3)), "another plan"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 9))
def test_no_part_of_any_step_is_larger_than_is_said(lengths, num_parts):
    step = [PlannedDocument("a", (i,), i, length) for i, length in enumerate(lengths)]
    parts = [sum(d.num_tokens for d in deal(step, part, num_parts)) for part in range(num_parts)]
    assert max(parts) <= largest_part(sum(lengths), max(lengths), num_parts)


def test_the_largest_part_is_near_an_even_share():
    assert largest_part(1000, 1000, 1) == 1000 and largest_part(1000, 10, 1) == 1000
    assert largest_part(1000, 10, 10) == 109 and largest_part(1000, 600, 10) == 600


def test_the_first_step_is_the_largest_of_its_chapter():
    for seed in range(5):
        mixture = plan(seed, tokens=43, odd=1)
        sizes = [sum(d.num_tokens for d in mixture[step]) for step in range(mixture.steps_per_chapter)]
        assert len(sizes) > 20 and sizes[0] == max(sizes) > min(sizes)


@pytest.mark.parametrize("name", ["", " ", 7])
def test_a_voice_has_words_for_a_name(name):
    with pytest.raises(UserError, match=r"mixture.voices.maria: .* is not a name"):
        Mixture(weights={"sft_chat": 1}, voices={"maria": name})


def test_a_speaker_may_be_called_by_a_number():
    assert Mixture(weights={"sft_read": 1}, voices={1089: "a calm woman"}).voices == {"1089": "a calm woman"}
