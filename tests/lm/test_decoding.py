from __future__ import annotations

import copy
import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.decoding import lay_out_for_decoding


def test_only_the_place_of_the_weights_changes() -> None:
    torch.manual_seed(0)
    head = AudioHead(32, [9, 9, 9], num_layers=2, head_dim=16).eval()
    laid = copy.deepcopy(head)
    lay_out_for_decoding(laid)
    hidden_FD, prefix_FKD = torch.randn(2, 32), torch.randn(2, 2, 32)
    for mine, other in zip(
        laid.logits(hidden_FD, prefix_FKD), head.logits(hidden_FD, prefix_FKD), strict=True
    ):
        torch.testing.assert_close(mine, other)
    for name, weight in laid.named_parameters():
        assert torch.equal(weight, head.get_parameter(name))
        assert weight.stride(0) == 1 or weight.dim() == 1, f"{name} is still held row by row"


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are Linux's")
def test_large_weights_lie_in_large_pages() -> None:
    large, small = nn.Linear(512, 1536), nn.Linear(8, 8)
    wanted = large.weight.detach().clone()
    lay_out_for_decoding(nn.ModuleList([large, small]))
    assert torch.equal(large.weight, wanted)
    assert "hg" in flags_at(large.weight.data_ptr()) and "hg" not in flags_at(small.weight.data_ptr())


def flags_at(address: int) -> list[str]:
    """What the kernel knows of the memory there; ``hg``: large pages are asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no memory at {address:x}")
