from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from omniaudio.data import clip_mixture
from omniaudio.data.clip_mixture import ClipMixture, CorporaOfClips, WeightedClips
from omniaudio.data.shards import ShardReader, ShardWriter
from omniaudio.errors import UserError

BUDGET = 40.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorporaOfClips, np.ndarray]:
    """600 clips of three corpora in no order, and their seconds; clip 7 is left out."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    lengths = rng.uniform(1.0, 8.0, 600)
    lengths[7] = np.nan
    with ShardWriter(folder, "train") as writer:
        for i, name in enumerate(rng.choice(["large", "small", ""], size=600, p=[0.8, 0.1, 0.1])):
            writer.write(f"clip-{i}", {}, {"language": "en"} | ({"corpus": str(name)} if name else {}))
    return CorporaOfClips(ShardReader(folder, "train")), lengths


def plan_of(corpus: tuple[CorporaOfClips, np.ndarray], **settings: object) -> WeightedClips:
    return WeightedClips(ClipMixture(**settings), *corpus, BUDGET, seed=3)  # type: ignore[arg-type]


def heard(corpus: tuple[CorporaOfClips, np.ndarray], plan: WeightedClips, steps: range) -> Counter[str]:
    seconds: Counter[str] = Counter()
    for item in (item for step in steps for item in plan[step]):
        seconds[corpus[0].names(np.array([item]))[0]] += corpus[1][item]
    return seconds


@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_spans_hold_all_clips_of_a_corpus(corpus, monkeypatch, chunk) -> None:
    monkeypatch.setattr("omniaudio.data.clip_mixture.CHUNK", chunk)
    names = np.array(corpus[0].names(np.arange(600)))
    for name, (begin, end) in corpus[0].spans().items():
        (places,) = np.nonzero(names == name)
        assert (begin, end) == (places[0], places[-1] + 1)


def test_each_corpus_has_its_share_of_the_seconds_and_the_log_says_so(corpus) -> None:
    plan = plan_of(corpus, corpora={"large": 1, "small": 3})
    seconds = heard(corpus, plan, range(128))
    assert set(seconds) == {"large", "small"}
    assert seconds["small"] / seconds.total() == pytest.approx(0.75, abs=0.01)
    assert plan.planned()["share/small"] == pytest.approx(0.75, abs=0.01)
    flat = plan_of(corpus, corpora={"large": 1, "small": 3}, temperature=1e6)
    assert flat.shares_at(0) == pytest.approx({"large": 0.5, "small": 0.5}, abs=1e-4)


def test_no_clip_of_a_corpus_comes_twice_before_all_came_once(corpus) -> None:
    plan, names = plan_of(corpus, corpora={"large": 1, "small": 1, "unnamed": 1}), corpus[0].names(np.arange(600))
    state, drawn = plan.first_state(), []
    for _ in range(4):
        steps, state = plan.chapter(state)
        drawn += [item for step in steps for item in step]
    for name in ("large", "small", "unnamed"):
        mine = {i for i in range(600) if names[i] == name and i != 7}
        counts = Counter(item for item in drawn if names[item] == name)
        assert set(counts) == mine, "clip 7 has no length and is never heard"
        assert max(counts.values()) - min(counts.values()) <= 1


def test_steps_keep_the_budget_and_pad_little(corpus) -> None:
    plan, lengths = plan_of(corpus, corpora={"large": 1, "small": 3}), corpus[1]
    costs = [len(plan[step]) * lengths[plan[step]].max() for step in range(300)]
    assert max(costs) <= BUDGET + 0.05  # lengths are planned in milliseconds
    assert costs[0] == max(costs[:128])
    assert sum(lengths[plan[step]].sum() for step in range(300)) / sum(costs) > 0.97


def test_a_corpus_that_nobody_may_hear_here_is_left_out(corpus) -> None:
    """Telephone speech has a share in the tokenizer's training, and none in the vocoder's."""
    names = np.array(corpus[0].names(np.arange(600)))
    lengths = np.where(names == "small", np.nan, corpus[1])
    mixture = ClipMixture(corpora={"large": 1, "small": 3, "unnamed": 0})
    plan = WeightedClips(mixture, corpus[0], lengths, BUDGET, seed=0)
    assert plan.unheard == ["small"] and plan.shares_at(0) == {"large": 1.0}


def test_a_temperature_alone_evens_out_what_the_corpora_hold(corpus) -> None:
    names, lengths = np.array(corpus[0].names(np.arange(600))), np.nan_to_num(corpus[1])
    held = {name: float(lengths[names == name].sum()) ** 0.5 for name in ("large", "small", "unnamed")}
    wanted = {name: seconds / sum(held.values()) for name, seconds in held.items()}
    assert plan_of(corpus, temperature=2.0).shares_at(0) == pytest.approx(wanted)
    assert ClipMixture().as_they_come and not ClipMixture(temperature=2.0).as_they_come


def test_spans_of_a_split_that_is_read_in_pieces(corpus, monkeypatch) -> None:
    whole = corpus[0].spans()
    monkeypatch.setattr(clip_mixture, "CHUNK", 7)
    assert corpus[0].spans() == whole


def test_shares_may_change_with_the_step(corpus) -> None:
    plan = plan_of(corpus, corpora={"large": 1, "small": [[0, 0], [1000, 1]]})
    assert "small" not in heard(corpus, plan, range(100))
    seconds = heard(corpus, plan, range(1200, 1328))
    assert seconds["small"] / seconds.total() == pytest.approx(0.5, abs=0.02)


def test_a_plan_goes_on_from_its_memo_alone(corpus) -> None:
    whole = plan_of(corpus, corpora={"large": 1, "small": 2})
    expected = [whole[step] for step in range(400)]
    memo = json.loads(json.dumps(whole.memo(300)))
    again = plan_of(corpus, corpora={"large": 1, "small": 2})
    assert again.recall(memo) and [again[step] for step in range(300, 400)] == expected[300:]
    assert not plan_of(corpus, corpora={"large": 1, "small": 3}).recall(memo)


def test_mistakes_are_one_line(corpus) -> None:
    with pytest.raises(UserError, match=r"mixture.clips.corpora: huge is not in .*, which has large, small, unnamed"):
        plan_of(corpus, corpora={"huge": 1})
    with pytest.raises(UserError, match=r"mixture.clips.corpora.large: -1 must be a share >= 0"):
        plan_of(corpus, corpora={"large": -1})
    of_none = np.full(600, np.nan)
    with pytest.raises(UserError, match=r"mixture.clips.corpora: no clip of small may be heard here: .*min_band"):
        WeightedClips(ClipMixture(corpora={"small": 1}), corpus[0], of_none, BUDGET, seed=0)
    with pytest.raises(UserError, match=r"mixture.clips.corpora: \['large'\] must be corpora with their shares"):
        ClipMixture(corpora=["large"])  # type: ignore[arg-type]
    for weights in ({"asr": 0}, {"asr": -1}, {"asr": "much"}):
        with pytest.raises(UserError, match="mixture.clips.weights: .* must be numbers >= 0 and not all 0"):
            ClipMixture(weights=weights)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"mixture.clips.corpora: .* not all 0"):
        plan_of(corpus, corpora={"large": 0})
    with pytest.raises(UserError, match="mixture.clips.weights: tts is unknown; one of asr, aqa, s2tt, intlv"):
        ClipMixture(weights={"tts": 1.0})
