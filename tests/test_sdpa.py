from __future__ import annotations

import pytest
import torch

from omniaudio.sdpa import sdpa


@pytest.mark.parametrize("is_causal", [True, False])
def test_equals_the_plain_formula(is_causal):
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    scores = q @ k.transpose(-1, -2) / 2
    if is_causal:
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), float("-inf"))
    torch.testing.assert_close(sdpa(q, k, v, is_causal=is_causal), scores.softmax(-1) @ v)


def test_keeps_the_dtype_and_masks_under_autocast():
    q, k, v = torch.randn(3, 1, 1, 3, 8).bfloat16().unbind(0)
    visible = torch.tensor([True, False, False])[None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        out = sdpa(q, k, v, visible)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, v[:, :, :1].expand_as(out))
