"""Attention against a readable loop, in float32 and under autocast."""

import math

import pytest
import torch

from omniaudio.acoustic.attention import attend


@pytest.mark.parametrize("what", ["causal", "mask", "all"])
def test_against_a_loop(what: str) -> None:
    query, key, value = torch.randn(3, 1, 5, 6).unbind(0)
    every = torch.ones(5, 5, dtype=torch.bool)
    seen = {"causal": every.tril(), "mask": torch.rand(5, 5) > 0.3, "all": every}[what]
    seen.fill_diagonal_(True)
    expected = torch.zeros(5, 6)
    for head in (slice(0, 3), slice(3, 6)):
        for t in range(5):
            score = (key[0, :, head] @ query[0, t, head] / math.sqrt(3)).masked_fill(~seen[t], -torch.inf)
            expected[t, head] = score.softmax(0) @ value[0, :, head]
    mixed = attend(query, key, value, 2, seen if what == "mask" else None, is_causal=what == "causal")
    torch.testing.assert_close(mixed[0], expected, atol=1e-5, rtol=1e-5)


def test_keeps_the_type_and_rounds_once_under_autocast() -> None:
    x = torch.randn(1, 4, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(x, x, x, 2, None)
    assert torch.equal(mixed, attend(x.float(), x.float(), x.float(), 2, None).bfloat16())
