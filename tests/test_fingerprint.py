from __future__ import annotations

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.fingerprint import check_fingerprints, digest, merge_fingerprints, weights_digest


def test_shared_facts_must_agree_and_both_values_are_named():
    check_fingerprints({"a": 1, "b": 2}, {"b": 2, "c": 3}, "x")
    with pytest.raises(UserError, match=r"codes.*code_rate_hz: 25 there, 12.5 here"):
        check_fingerprints({"code_rate_hz": 12.5}, {"code_rate_hz": 25}, "codes")


def test_merge_is_the_union_and_refuses_contradictions():
    assert merge_fingerprints([{"a": 1}, {"b": 2}, {"a": 1}], "x") == {"a": 1, "b": 2}
    with pytest.raises(UserError, match="a: 2 there, 1 here"):
        merge_fingerprints([{"a": 1}, {"a": 2}], "x")


def test_digests_depend_on_values_and_not_on_key_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    state = {"w": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.bfloat16)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    assert weights_digest(state) != weights_digest({**state, "w": torch.arange(4.0).reshape(2, 2)})
    assert weights_digest(state) != weights_digest({**state, "w": torch.arange(4.0) + 1})
