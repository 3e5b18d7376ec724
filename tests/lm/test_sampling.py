from collections import Counter

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.lm.sampling import SamplingSettings, draw


def drawn(logits, num=300, said=(), **settings):
    rng, said_BV = torch.Generator().manual_seed(0), torch.zeros(1, len(logits), dtype=torch.bool)
    said_BV[0, list(said)] = True
    logits_BV = torch.tensor([logits])
    return Counter(int(draw(logits_BV, SamplingSettings(**settings), said_BV, [rng])) for _ in range(num))


def test_zero_temperature_is_greedy():
    assert drawn([1.0, 3.0, 2.0], temperature=0.0).keys() == {1}


def test_top_k_and_top_p():
    logits = [0.5, 0.25, 0.15, 0.1]
    logits = torch.tensor(logits).log().tolist()
    assert drawn(logits, temperature=1.0).keys() == {0, 1, 2, 3}
    assert drawn(logits, temperature=1.0, top_k=2).keys() == {0, 1}
    assert drawn(logits, temperature=1.0, top_p=0.6).keys() == {0, 1}
    assert drawn(logits, temperature=1.0, top_p=0.5).keys() == {0}


def test_probabilities_are_kept():
    counts = drawn(torch.tensor([0.75, 0.25]).log().tolist(), num=2000, temperature=1.0)
    assert abs(counts[0] / 2000 - 0.75) < 0.03


def test_repetition_penalty_by_hand():
    greedy = {"temperature": 0.0, "repetition": 2.0}
    assert drawn([3.0, 2.0, -1.0], said=[0], **greedy).keys() == {1}  # 3 / 2 < 2
    assert drawn([-1.0, -1.5, -9.0], said=[0], **greedy).keys() == {1}  # -1 * 2 < -1.5


def test_forbidden_symbols_never_come():
    assert drawn([0.0, -torch.inf, 0.0], said=[1], temperature=5.0, repetition=1.3).keys() == {0, 2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "temperature -0.1: must be a number, at least 0"),
        ({"temperature": float("nan")}, "temperature nan: must be a number, at least 0"),
        ({"temperature": "hot"}, "temperature 'hot': must be a number, at least 0"),
        ({"top_k": 2.5}, "top_k 2.5: must be a whole number, at least 0"),
        ({"top_k": True}, "top_k True: must be a whole number"),
        ({"top_p": 0.0}, "top_p 0.0: must be a number above 0, at most 1"),
        ({"repetition": 0}, "repetition 0: must be a number above 0"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(UserError, match=f"^{words}"):
        SamplingSettings(**{"temperature": 1.0, **settings})
