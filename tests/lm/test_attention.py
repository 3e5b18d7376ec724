"""Every way of attention over packed documents against a plain loop over documents and positions."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.testing import assert_close

from omniaudio.errors import UserError
from omniaudio.lm import attention
from omniaudio.lm.attention import PACKED, Packing, packed_attention, register, varlen_kernel

LENGTHS, PADDING = [3, 1, 40, 5], 4
HEADS, KEY_HEADS, WIDTH = 4, 2, 16


def inputs(
    num_new: int, num_all: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, num_new, WIDTH), *[(1, KEY_HEADS, num_all, WIDTH)] * 2]
    drawn = [torch.randn(shape, generator=rng).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def plain_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    window: int | None,
    cap: float | None = None,
) -> Tensor:
    """(1, L, H, Dh); what lies behind the documents is zero."""
    out = query.new_zeros(1, query.shape[2], HEADS, WIDTH)
    begin = 0
    for length in lengths:
        for at in range(begin, begin + length):
            first = begin if window is None else max(begin, at - window + 1)
            for head in range(HEADS):
                group = head * KEY_HEADS // HEADS
                scores = key[0, group, first : at + 1] @ query[0, head, at] * 0.3
                if cap is not None:
                    scores = cap * (scores / cap).tanh()
                out = out.index_put(
                    tuple(torch.tensor([i]) for i in (0, at, head)),
                    (scores.softmax(0) @ value[0, group, first : at + 1])[None],
                )
        begin += length
    return out


def stand_in(query, key, value, starts, longest, scale, span, cap):
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
        softcap=cap,
    )
    return out[0]


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("way", ["documents", "flex", "varlen"])
def test_every_way_equals_the_plain_loop(
    monkeypatch, way: str, window: int | None, cap: float | None
) -> None:
    """Forward and backward, grouped heads, padding, windows, caps; flex and varlen as far as a CPU can show it."""
    monkeypatch.setattr(attention, "hindrance", lambda *_: "")
    monkeypatch.setattr(attention, "varlen_kernel", lambda cap: functools.partial(stand_in, cap=cap))
    monkeypatch.setattr(attention, "CAPPED_QUERIES", 7)  # a document of 40 in six parts
    monkeypatch.setattr(
        flex, "_validate_device", lambda *_: None
    )  # torch has a way back, and does not offer it
    results = []
    for attend in (way, "loop"):
        qkv = inputs(sum(LENGTHS) + PADDING, sum(LENGTHS) + PADDING)
        if attend == "loop":
            out = plain_loop(*qkv, LENGTHS, window, cap)
        else:
            packing = Packing(LENGTHS, attend)
            out, _ = packed_attention(
                torch.nn.Identity(), *qkv, scaling=0.3, packing=packing, sliding_window=window, softcap=cap
            )
            assert packing.way(qkv[0], 0.0, cap) == way
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad((out * weights).sum(), qkv)])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert not results[0][0][0, -PADDING:].any() and not results[0][1][0, :, -PADDING:].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("way", "cap"), [("flex", None), ("flex", 0.5), ("varlen", None), ("varlen", 0.5)])
def test_the_kernels_of_a_gpu_equal_documents(way: str, window: int | None, cap: float | None) -> None:
    if way == "varlen" and varlen_kernel(cap) is None:
        pytest.skip("no kernel here that can")
    dtype = torch.bfloat16 if way == "varlen" else torch.float32
    results = []
    for attend in ("documents", way):
        qkv = inputs(sum(LENGTHS) + PADDING, sum(LENGTHS) + PADDING, "cuda", dtype)
        out, _ = packed_attention(
            torch.nn.Identity(), *qkv, packing=Packing(LENGTHS, attend), sliding_window=window, softcap=cap
        )
        results.append([out, *torch.autograd.grad(out.float().square().sum(), qkv)])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("num_new", [1, 3, 6])
def test_cached_keys_are_all_seen(monkeypatch, num_new: int, window: int | None, cap: float | None) -> None:
    monkeypatch.setattr(attention, "CAPPED_QUERIES", 2)
    whole, last = inputs(6, 6), inputs(6, 6)
    last[0] = last[0][:, :, -num_new:]
    out, _ = packed_attention(torch.nn.Identity(), *last, scaling=0.3, sliding_window=window, softcap=cap)
    assert_close(out, plain_loop(*whole, [6], window, cap)[:, -num_new:])


def test_capped_attention_drops_weights_as_the_other_does(monkeypatch) -> None:
    """Also where the scores of a part are made again: the gradient is that of what was dropped."""
    monkeypatch.setattr(attention, "CAPPED_QUERIES", 2)
    query, key, value = inputs(6, 6)
    torch.manual_seed(0)
    words = {"scaling": 0.3, "dropout": 0.5, "packing": Packing([6]), "softcap": 0.5}
    out, _ = packed_attention(torch.nn.Identity(), query, key, value, **words)
    assert not torch.allclose(out, plain_loop(query, key, value, [6], None, 0.5))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((out * weights).sum(), value)
    assert_close((grad * value).sum(), (out * weights).sum())  # it is linear in the values


def test_auto_takes_what_the_device_has(monkeypatch) -> None:
    class Query:
        device, dtype, requires_grad = torch.device("cuda"), torch.bfloat16, True

    able = {"varlen", "flex"}
    monkeypatch.setattr(attention, "hindrance", lambda way, *_: "" if way in able else "cannot")
    for expected in ("varlen", "flex", "documents"):
        assert Packing([2], "auto").way(Query(), 0.0) == expected  # type: ignore[arg-type]
        able.discard(expected)
    monkeypatch.setattr(attention, "hindrance", lambda way, *words: "cannot" if words[-1] else "")
    mixed = Packing([2], "auto")  # layers with and without a cap
    assert [mixed.way(Query(), 0.0, cap) for cap in (None, 0.5)] == ["varlen", "documents"]  # type: ignore[arg-type]
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


@pytest.mark.parametrize("version", ["none", "older", "newer"])
def test_scores_are_capped_by_a_kernel_that_knows_caps_alone(monkeypatch, version: str) -> None:
    """Torch's does not; flash-attn's does since 2.6."""
    from types import SimpleNamespace

    seen = {}

    def older(q, k, v, s, t, m, n, softmax_scale=None, causal=False, window_size=(-1, -1)):
        return q

    def newer(q, k, v, s, t, m, n, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0):
        seen.update(softcap=softcap, causal=causal, window_size=window_size, scale=softmax_scale)
        return q

    def imported(name: str) -> SimpleNamespace:
        if name == "flash_attn" and version != "none":
            return SimpleNamespace(flash_attn_varlen_func=older if version == "older" else newer)
        return real(name)

    real = importlib.import_module
    monkeypatch.setattr(attention.importlib, "import_module", imported)
    kernel = attention.varlen_kernel(0.5)
    assert (kernel is not None) == (version == "newer")
    if kernel is not None:
        kernel(*(torch.zeros(n) for n in (4, 2, 2, 3)), 3, 0.3, (7, 0))
        assert seen == {"softcap": 0.5, "causal": True, "window_size": (7, 0), "scale": 0.3}


def test_a_machine_whose_kernel_caps_nothing_is_told_what_does(monkeypatch) -> None:
    class Query:
        device, dtype, requires_grad = torch.device("cuda"), torch.bfloat16, True

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "varlen_kernel", lambda cap: cap is None)
    assert Packing([2], "varlen").way(Query(), 0.0) == "varlen"  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"needs flash-attn 2.6 or newer where scores are capped \(at 50.0\); take"
    ):
        Packing([2], "varlen").way(Query(), 0.0, 50.0)  # type: ignore[arg-type]


def test_transformers_finds_it() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert register() == PACKED
    assert ALL_ATTENTION_FUNCTIONS[PACKED] is packed_attention
