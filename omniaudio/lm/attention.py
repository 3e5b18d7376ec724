"""Causal attention over packed documents without a dense mask: one interface, three ways.

Several documents lie in one row; a position sees earlier positions of its own document only. A dense mask would
compute every pair of the row. Instead:

    documents   one document after the other: the cost is the sum of squares of their lengths; everywhere
    flex        one kernel that skips blocks without a pair (arXiv:2412.05496), compiled on a GPU
    varlen      one flash kernel for documents of any lengths (arXiv:2307.08691); a GPU, half precision

Some models cap their scores before the softmax, ``cap * tanh(scores / cap)`` (Gemma 2, arXiv:2408.00118). Flex does
that, varlen by the package flash-attn alone; document by document scores are then made, some queries at a time.

The function is registered with transformers, whose layers call it by name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.errors import UserError
from omniaudio.lm.cross_entropy import capped
from omniaudio.sdpa import sdpa

PACKED = "packed_documents"
"""Name under which transformers' layers find ``packed_attention``."""

CHOICES = ("auto", "documents", "flex", "varlen")

CAPPED_QUERIES = 512
"""Queries of a document whose capped scores are held at once."""


def register() -> str:
    """Make the attention known to transformers; doing it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    return PACKED


class Packing:
    """The documents of a row, and what a way of attention makes of their lengths, once for all layers.

    Args:
        lengths: of the documents, one after the other; positions behind the last are padding.
        choice: one of CHOICES; ``auto`` takes what the device has: on a GPU varlen, else flex, else documents.
    """

    def __init__(self, lengths: Sequence[int], choice: str = "documents") -> None:
        self.lengths, self.choice = list(lengths), choice
        self.total, self.longest = sum(self.lengths), max(self.lengths)
        self._ways: dict[float | None, str] = {}
        self._starts: Tensor | None = None
        self._blocks: dict[int | None, Any] = {}

    def way(self, query: Tensor, dropout: float, cap: float | None = None) -> str:
        """The way to go for such queries, and scores that are capped or not.

        Raises:
            UserError: the one that was chosen cannot be gone here.
        """
        if cap not in self._ways:
            if self.choice == "auto":
                ways = ("varlen", "flex") if query.device.type == "cuda" else ()
                able = (way for way in ways if not hindrance(way, query, dropout, cap))
                self._ways[cap] = next(able, "documents")
            elif reason := hindrance(self.choice, query, dropout, cap):
                raise UserError(f"backbone.attention={self.choice} {reason}; take auto or documents")
            else:
                self._ways[cap] = self.choice
        return self._ways[cap]

    def starts(self, device: torch.device) -> Tensor:
        """Where each document begins, and the last one ends: (documents + 1,) int32."""
        if self._starts is None:
            ends = torch.tensor([0, *self.lengths], device=device).cumsum(0)
            self._starts = ends.to(torch.int32)
        return self._starts

    def blocks(self, device: torch.device, window: int | None) -> Any:
        """FlexAttention's block mask: documents, causal, and a sliding window if there is one."""
        if window not in self._blocks:
            from torch.nn.attention.flex_attention import create_block_mask

            lengths = torch.tensor(self.lengths, device=device)
            document_L = torch.arange(len(lengths), device=device).repeat_interleave(lengths)

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (document_L[query] == document_L[key]) & (query >= key)
                return seen if window is None else seen & (query - key < window)

            compiled = device.type == "cuda"  # else every pair is made on the way to the blocks
            self._blocks[window] = create_block_mask(
                sees, None, None, self.total, self.total, device=device, _compile=compiled
            )
        return self._blocks[window]


def hindrance(way: str, query: Tensor, dropout: float, cap: float | None = None) -> str:
    """Why this machine cannot go a way for such queries; empty if it can."""
    if way == "documents":
        return ""
    if dropout:
        return f"knows no dropout, attention_dropout is {dropout}"
    on_gpu = query.device.type == "cuda"
    if way == "flex" and on_gpu:
        return "" if find_spec("triton") else "needs the package triton"
    if way == "flex":  # torch has no way back there
        return "learns on a GPU only" if query.requires_grad else ""
    if not on_gpu:
        return f"needs a GPU, the model is on {query.device.type}"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"needs half precision (trainer.precision), not {query.dtype}"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return f"needs a GPU of compute capability 8.0, not {torch.cuda.get_device_name(query.device)}"
    if varlen_kernel(cap):
        return ""
    if cap is not None:
        return f"needs flash-attn 2.6 or newer where scores are capped (at {cap})"
    return "needs a newer torch, or the package flash-attn"


@dataclass(frozen=True)
class Scores:
    """How scores are made of queries and keys; see ``packed_attention``."""

    scaling: float | None
    window: int | None
    dropout: float
    cap: float | None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    visible: Tensor | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' layers call.

    Args:
        module: the calling layer (unused; part of the form).
        query: (1 or B, H, L, Dh); 1 for flex and varlen.
        key, value: (1 or B, Hkv, L or past + L, Dh); Hkv divides H.
        attention_mask: must be None, documents say it all.
        scaling: factor of the scores; default Dh ** -0.5.
        dropout: share of attention weights dropped.
        packing: the documents; None is a single document in each row, whose earlier keys may come from a cache.
        sliding_window: how many positions, its own the last, a position sees; None sees all before it.
        visible: True at the keys that a row has, broadcastable to (B, H, 1, past + 1), when rows go on by one
            position from pasts of different lengths; None: all.
        softcap: scores go to ``softcap * tanh(scores / softcap)``; None: they stay.

    Returns:
        (1 or B, L, H, Dh), zero in padding, and None for the weights.
    """
    assert attention_mask is None, "packed attention takes documents, not a mask"
    query = query.to(value.dtype)  # rotary embeddings may have widened them
    key = key.to(value.dtype)
    scores = Scores(scaling, sliding_window, dropout, softcap)
    if packing is None:
        out = _one_document(query, key, value, scores, visible)
        return out.transpose(1, 2).contiguous(), None
    rest = query.shape[2] - packing.total
    assert rest >= 0 and query.shape[2] == key.shape[2], (
        f"documents {packing.lengths} in {query.shape[2]} positions"
    )
    query, key, value = (tensor[:, :, : packing.total] for tensor in (query, key, value))
    way = packing.way(query, dropout, softcap)
    attend = {"documents": _by_documents, "flex": _by_flex, "varlen": _by_varlen}[way]
    out = attend(query, key, value, packing, scores)
    if rest:
        out = functional.pad(out, (0, 0, 0, rest))
    return out.transpose(1, 2).contiguous(), None


def _by_documents(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scores: Scores) -> Tensor:
    splits = (tensor.split(packing.lengths, 2) for tensor in (query, key, value))
    return torch.cat([_one_document(q, k, v, scores) for q, k, v in zip(*splits, strict=True)], dim=2)


def _one_document(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores, has: Tensor | None = None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if scores.cap is not None:
        return _capped(query, key, value, scores, has)
    new, total = query.shape[2], key.shape[2]
    visible = None
    if 1 < new < total or (scores.window is not None and scores.window < total):
        visible = _visible(new, total, scores.window, query.device)
    is_causal = visible is None and new > 1
    if has is not None:  # one new position a row: all that it has is before it
        visible = has if visible is None else has & visible
    return sdpa(query, key, value, visible, is_causal=is_causal, scale=scores.scaling, dropout=scores.dropout)


def _visible(new: int, total: int, window: int | None, device: torch.device) -> Tensor:
    """(new, total), True at the keys that each of the last ``new`` positions sees."""
    past = total - new  # of the keys that come from a cache: the causal diagonal starts there
    visible = torch.ones(new, total, dtype=torch.bool, device=device).tril(past)
    return visible if window is None else visible.triu(past - window + 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, scores: Scores, has: Tensor | None) -> Tensor:
    """One document whose scores are made, since torch's kernel cannot cap them.

    Those of some queries with the keys that they see; where there are more, again in the backward pass.
    """
    new, past, window = query.shape[2], key.shape[2] - query.shape[2], scores.window
    outs = []
    for begin in range(0, new, CAPPED_QUERIES):
        end = min(begin + CAPPED_QUERIES, new)
        seen = slice(0 if window is None else max(0, past + begin - window + 1), past + end)
        visible = _visible(end - begin, seen.stop - seen.start, window, query.device)
        if has is not None:  # one new position a row
            visible = visible & has[..., seen]
        rows = (query[:, :, begin:end], key[:, :, seen], value[:, :, seen], visible, scores)
        if new > CAPPED_QUERIES:
            outs.append(checkpoint(_capped_rows, *rows, use_reentrant=False))
        else:
            outs.append(_capped_rows(*rows))
    return torch.cat(outs, dim=2)


def _capped_rows(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scores: Scores) -> Tensor:
    """Every score of these queries; on CPUs in float32, as ``sdpa``."""
    device, dtype = query.device.type, value.dtype
    scale = query.shape[3] ** -0.5 if scores.scaling is None else scores.scaling
    with torch.autocast(device, enabled=False):
        if device == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        score = (query @ key.transpose(2, 3)).float() * scale
        weight = capped(score, scores.cap).masked_fill(~visible, -torch.inf).softmax(dim=-1)
        return (functional.dropout(weight, scores.dropout).to(value.dtype) @ value).to(dtype)


def _by_flex(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scores: Scores) -> Tensor:
    assert len(query) == 1, f"{len(query)} rows; flex takes one"
    blocks, cap = packing.blocks(query.device, scores.window), _cap_of(scores.cap)
    attend = _flex_attention(compiled=query.device.type == "cuda")
    out: Tensor = attend(query, key, value, cap, blocks, scale=scores.scaling, enable_gqa=True)
    return out


@functools.cache
def _cap_of(cap: float | None) -> Callable[..., Tensor] | None:
    """FlexAttention's function of a score, the same one for all layers: another one would be compiled again."""
    if cap is None:
        return None

    def changed(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return capped(score, cap)

    return changed


@functools.cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    """Compiled once in a process; on a CPU as it stands, which makes every score (for comparison)."""
    from torch.nn.attention.flex_attention import flex_attention

    if compiled:
        return torch.compile(flex_attention)
    return flex_attention


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scores: Scores) -> Tensor:
    assert len(query) == 1, f"{len(query)} rows; varlen takes one"
    attend = varlen_kernel(scores.cap)
    assert attend is not None
    rows = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]  # (L, heads, Dh)
    span = (-1 if scores.window is None else scores.window - 1, 0)  # keys before a query, and behind it
    starts = packing.starts(query.device)
    return attend(*rows, starts, packing.longest, scores.scaling, span).transpose(0, 1)[None]


def varlen_kernel(cap: float | None = None) -> Callable[..., Tensor] | None:
    """(query, key, value, starts, longest, scale, span) -> (L, H, Dh): torch's kernel, or flash-attn's, or None.

    Both take ``starts`` (documents + 1,) int32, the length of the longest document, and the keys that a query sees
    before and behind it, -1 for all. Scores are capped by flash-attn's alone.
    """
    try:
        torchs = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        torchs = None
    known = {} if torchs is None else inspect.signature(torchs).parameters
    if cap is None and {"window_size", "enable_gqa"} <= known.keys():
        return lambda q, k, v, starts, longest, scale, span: torchs(
            q, k, v, starts, starts, longest, longest, scale=scale, window_size=span, enable_gqa=True
        )
    try:
        flash = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None
    more = {} if cap is None else {"softcap": cap}
    if not more.keys() <= inspect.signature(flash).parameters.keys():  # an older one
        return None
    return lambda q, k, v, starts, longest, scale, span: flash(
        q, k, v, starts, starts, longest, longest, softmax_scale=scale, causal=True, window_size=span, **more
    )
