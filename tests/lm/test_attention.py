"""Every way of attention over packed documents against a plain loop over documents and positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.testing import assert_close

from omniaudio.errors import UserError
from omniaudio.lm import attention
from omniaudio.lm.attention import PACKED, Packing, packed_attention, register

LENGTHS, PADDING = [3, 1, 40, 5], 4
HEADS, KEY_HEADS, WIDTH = 4, 2, 16


def inputs(
    num_new: int, num_all: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, num_new, WIDTH), *[(1, KEY_HEADS, num_all, WIDTH)] * 2]
    drawn = [torch.randn(shape, generator=rng).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def plain_loop(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None) -> Tensor:
    """(1, L, H, Dh); what lies behind the documents is zero."""
    out = query.new_zeros(1, query.shape[2], HEADS, WIDTH)
    begin = 0
    for length in lengths:
        for at in range(begin, begin + length):
            first = begin if window is None else max(begin, at - window + 1)
            for head in range(HEADS):
                group = head * KEY_HEADS // HEADS
                scores = key[0, group, first : at + 1] @ query[0, head, at] * 0.3
                out = out.index_put(
                    tuple(torch.tensor([i]) for i in (0, at, head)),
                    (scores.softmax(0) @ value[0, group, first : at + 1])[None],
                )
        begin += length
    return out


def stand_in(query, key, value, starts, longest, scale, span):
    """A kernel of varlen's form: one document after the other, between the starts that it is given."""
    assert starts.dtype == torch.int32 and starts.tolist() == [0, 3, 4, 44, 49] and longest == 40
    assert query.shape == (49, HEADS, WIDTH) and key.shape == value.shape == (49, KEY_HEADS, WIDTH)
    assert all(tensor.is_contiguous() for tensor in (query, key, value)) and span[1] == 0
    window = None if span[0] == -1 else span[0] + 1
    rows = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    out, _ = packed_attention(
        torch.nn.Identity(),
        *rows,
        scaling=scale,
        packing=Packing(starts.diff().tolist()),
        sliding_window=window,
    )
    return out[0]


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("way", ["documents", "flex", "varlen"])
def test_every_way_equals_the_plain_loop(monkeypatch, way: str, window: int | None) -> None:
    """Forward and backward, grouped heads, padding, windows; flex and varlen as far as a CPU can show it."""
    monkeypatch.setattr(attention, "hindrance", lambda *_: "")
    monkeypatch.setattr(attention, "varlen_kernel", lambda: stand_in)
    monkeypatch.setattr(
        flex, "_validate_device", lambda *_: None
    )  # torch has a way back, and does not offer it
    results = []
    for attend in (way, "loop"):
        qkv = inputs(sum(LENGTHS) + PADDING, sum(LENGTHS) + PADDING)
        if attend == "loop":
            out = plain_loop(*qkv, LENGTHS, window)
        else:
            packing = Packing(LENGTHS, attend)
            out, _ = packed_attention(
                torch.nn.Identity(), *qkv, scaling=0.3, packing=packing, sliding_window=window
            )
            assert packing.way(qkv[0], 0.0) == way
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad((out * weights).sum(), qkv)])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert not results[0][0][0, -PADDING:].any() and not results[0][1][0, :, -PADDING:].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("way", ["flex", "varlen"])
def test_the_kernels_of_a_gpu_equal_documents(way: str, window: int | None) -> None:
    dtype = torch.bfloat16 if way == "varlen" else torch.float32
    results = []
    for attend in ("documents", way):
        qkv = inputs(sum(LENGTHS) + PADDING, sum(LENGTHS) + PADDING, "cuda", dtype)
        out, _ = packed_attention(
            torch.nn.Identity(), *qkv, packing=Packing(LENGTHS, attend), sliding_window=window
        )
        results.append([out, *torch.autograd.grad(out.float().square().sum(), qkv)])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("num_new", [1, 3, 6])
def test_cached_keys_are_all_seen(num_new: int, window: int | None) -> None:
    whole, last = inputs(6, 6), inputs(6, 6)
    last[0] = last[0][:, :, -num_new:]
    out, _ = packed_attention(torch.nn.Identity(), *last, scaling=0.3, sliding_window=window)
    assert_close(out, plain_loop(*whole, [6], window)[:, -num_new:])


def test_auto_takes_what_the_device_has(monkeypatch) -> None:
    class Query:
        device, dtype, requires_grad = torch.device("cuda"), torch.bfloat16, True

    able = {"varlen", "flex"}
    monkeypatch.setattr(attention, "hindrance", lambda way, *_: "" if way in able else "cannot")
    for expected in ("varlen", "flex", "documents"):
        assert Packing([2], "auto").way(Query(), 0.0) == expected  # type: ignore[arg-type]
        able.discard(expected)
    monkeypatch.undo()
    assert Packing([2], "auto").way(inputs(2, 2)[0], 0.0) == "documents"


@pytest.mark.parametrize(
    ("way", "dropout", "message"),
    [
        ("varlen", 0.0, "backbone.attention=varlen needs a GPU, the model is on cpu; take auto or documents"),
        ("flex", 0.0, "backbone.attention=flex learns on a GPU only; take auto or documents"),
        (
            "flex",
            0.1,
            "backbone.attention=flex knows no dropout, attention_dropout is 0.1; take auto or documents",
        ),
    ],
)
def test_a_choice_that_this_machine_cannot_do_is_one_line(way: str, dropout: float, message: str) -> None:
    with pytest.raises(UserError) as error:
        packed_attention(torch.nn.Identity(), *inputs(2, 2), dropout=dropout, packing=Packing([2], way))
    assert str(error.value) == message


def test_torchs_kernel_gets_what_it_asks_for(monkeypatch) -> None:
    """The call of the library is by its own names: what it does not know would fail."""
    import inspect
    from types import SimpleNamespace

    seen = {}
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    signature = inspect.signature(real)
    if "window_size" not in signature.parameters:
        pytest.skip("an older torch, whose kernel knows no windows")

    def watched(*args, **kwargs):
        seen.update(signature.bind(*args, **kwargs).arguments)
        return args[0]

    watched.__signature__ = signature  # type: ignore[attr-defined]
    module = SimpleNamespace(varlen_attn=watched)
    monkeypatch.setattr(attention.importlib, "import_module", lambda name: module)
    query, key, value, starts = (torch.zeros(n) for n in (4, 2, 2, 3))
    kernel = attention.varlen_kernel()
    assert kernel is not None
    kernel(query, key, value, starts, 3, 0.5, (7, 0))
    assert seen["cu_seq_q"] is seen["cu_seq_k"] is starts and (seen["max_q"], seen["max_k"]) == (3, 3)
    assert (seen["scale"], seen["window_size"], seen["enable_gqa"]) == (0.5, (7, 0), True)


def test_transformers_finds_it() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert register() == PACKED
    assert ALL_ATTENTION_FUNCTIONS[PACKED] is packed_attention
