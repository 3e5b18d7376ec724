from __future__ import annotations

import copy
import mmap
import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from omniaudio.lm.audio_head import AudioHead, KeyValue
from omniaudio.lm.cross_entropy import LogitHead
from omniaudio.lm.decoding import PanelDepthLinear, PanelLinear, lay_out_for_decoding


@pytest.fixture(autouse=True)
def even_tiny_weights_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniaudio.lm.decoding.SMALL", 0)


@pytest.mark.parametrize("num_frames", [1, 5])
def test_all_books_have_the_same_logits(num_frames: int) -> None:
    torch.manual_seed(0)
    head = AudioHead(48, [9, 70, 31], num_layers=2, head_dim=16).eval()  # no size is a multiple of a panel's
    laid = copy.deepcopy(head)
    lay_out_for_decoding(laid)
    kinds = {type(module) for module in laid.modules()}
    assert {PanelLinear, PanelDepthLinear} <= kinds and nn.Linear not in kinds
    hidden_FD, prefix_FKD = torch.randn(num_frames, 48), torch.randn(num_frames, 2, 48)
    wanted = head.logits(hidden_FD, prefix_FKD)
    past: list[KeyValue] = []
    for book, x_FD in enumerate([hidden_FD, *prefix_FKD.unbind(1)]):
        torch.testing.assert_close(laid.step(x_FD, past), wanted[book])
    for mine, other in zip(laid.logits(hidden_FD, prefix_FKD), wanted, strict=True):  # all depths at once
        torch.testing.assert_close(mine, other)


def test_the_weights_can_be_had_as_they_were() -> None:
    head = AudioHead(32, [9, 40], num_layers=1, head_dim=16)
    laid = copy.deepcopy(head)
    lay_out_for_decoding(laid)
    for name, weight in head.named_parameters():
        part, _, kind = name.rpartition(".")
        assert torch.equal(getattr(laid.get_submodule(part), kind), weight), name


def test_shared_and_small_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniaudio.lm.decoding.SMALL", 4 * 64 * 64)
    tied = nn.Linear(64, 200, bias=False)
    model = nn.ModuleDict(
        {"table": nn.Embedding(200, 64), "tied": tied, "large": nn.Linear(64, 64), "small": nn.Linear(63, 64)}
    )
    model["table"].weight = tied.weight
    lay_out_for_decoding(model)
    assert [type(part) for part in model.values()] == [nn.Embedding, nn.Linear, PanelLinear, nn.Linear]
    assert model["table"].weight is model["tied"].weight


def test_a_head_caps_its_logits_as_before() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"head": LogitHead.around(nn.Linear(16, 40, bias=False), cap=0.5)})
    x = torch.randn(3, 16)
    wanted = model["head"](x)
    lay_out_for_decoding(model)
    torch.testing.assert_close(model["head"](x), wanted)
    assert (
        isinstance(model["head"], PanelLinear)
        and wanted.abs().max() < 0.5 < (x @ model["head"].weight.T).max()
    )


def test_old_weights_are_let_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList(nn.Sequential(nn.Linear(64, 64)) for _ in range(4))
    old, alive = [weakref.ref(part[0]) for part in model], []

    class Counting(PanelLinear):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__(linear)
            alive.append(sum(ref() is not None for ref in old))

    monkeypatch.setattr("omniaudio.lm.decoding.PanelLinear", Counting)
    lay_out_for_decoding(model)
    assert alive[0] == 4 and alive[-1] <= 2


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are Linux's")
def test_large_weights_lie_in_large_pages() -> None:
    model = nn.ModuleList([nn.Linear(512, 1536), nn.Linear(8, 8)])
    lay_out_for_decoding(model)
    large, small = (part.panels.data_ptr() for part in model)
    assert "hg" in flags_at(large) and "hg" not in flags_at(small)


def flags_at(address: int) -> list[str]:
    """What the kernel knows of the memory there; ``hg``: large pages are asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no memory at {address:x}")
