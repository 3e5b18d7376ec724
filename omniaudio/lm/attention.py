"""Causal attention over packed documents without a dense mask: one interface, three ways.

Several documents lie in one row; a position sees earlier positions of its own document only. A dense mask would
compute every pair of the row. Instead:

    documents   one document after the other: the cost is the sum of squares of their lengths; everywhere
    flex        one kernel that skips blocks without a pair (arXiv:2412.05496), compiled on a GPU
    varlen      one flash kernel for documents of any lengths (arXiv:2307.08691); a GPU, half precision

The function is registered with transformers, whose layers call it by name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.errors import UserError
from omniaudio.sdpa import sdpa

PACKED = "packed_documents"
"""Name under which transformers' layers find ``packed_attention``."""

CHOICES = ("auto", "documents", "flex", "varlen")


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
        self._way: str | None = None
        self._starts: Tensor | None = None
        self._blocks: dict[int | None, Any] = {}

    def way(self, query: Tensor, dropout: float) -> str:
        """The way to go for such queries.

        Raises:
            UserError: the one that was chosen cannot be gone here.
        """
        if self._way is None:
            if self.choice == "auto":
                ways = ("varlen", "flex") if query.device.type == "cuda" else ()
                able = (way for way in ways if not hindrance(way, query, dropout))
                self._way = next(able, "documents")
            elif reason := hindrance(self.choice, query, dropout):
                raise UserError(f"backbone.attention={self.choice} {reason}; take auto or documents")
            else:
                self._way = self.choice
        return self._way

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


def hindrance(way: str, query: Tensor, dropout: float) -> str:
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
    return "" if varlen_kernel() else "needs a newer torch, or the package flash-attn"


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

    Returns:
        (1 or B, L, H, Dh), zero in padding, and None for the weights.
    """
    assert attention_mask is None, "packed attention takes documents, not a mask"
    query = query.to(value.dtype)  # rotary embeddings may have widened them
    key = key.to(value.dtype)
    if packing is None:
        out = _one_document(query, key, value, scaling, sliding_window, dropout, visible)
        return out.transpose(1, 2).contiguous(), None
    rest = query.shape[2] - packing.total
    assert rest >= 0 and query.shape[2] == key.shape[2], (
        f"documents {packing.lengths} in {query.shape[2]} positions"
    )
    query, key, value = (tensor[:, :, : packing.total] for tensor in (query, key, value))
    way = packing.way(query, dropout)
    if way == "documents":
        out = _by_documents(query, key, value, packing, scaling, sliding_window, dropout)
    else:
        attend = {"flex": _by_flex, "varlen": _by_varlen}[way]
        out = attend(query, key, value, packing, scaling, sliding_window)
    if rest:
        out = functional.pad(out, (0, 0, 0, rest))
    return out.transpose(1, 2).contiguous(), None


def _by_documents(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    splits = (tensor.split(packing.lengths, 2) for tensor in (query, key, value))
    return torch.cat(
        [_one_document(q, k, v, scaling, window, dropout) for q, k, v in zip(*splits, strict=True)], dim=2
    )


def _one_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    dropout: float,
    has: Tensor | None = None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    new, total = query.shape[2], key.shape[2]
    past = total - new  # of the keys that come from a cache: the causal diagonal starts there
    visible = None
    if window is not None and window < total:
        visible = (
            torch.ones(new, total, dtype=torch.bool, device=query.device).tril(past).triu(past - window + 1)
        )
    elif 1 < new < total:
        visible = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(past)
    is_causal = visible is None and new > 1
    if has is not None:  # one new position a row: all that it has is before it
        visible = has if visible is None else has & visible
    return sdpa(query, key, value, visible, is_causal=is_causal, scale=scaling, dropout=dropout)


def _by_flex(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, window: int | None
) -> Tensor:
    assert len(query) == 1, f"{len(query)} rows; flex takes one"
    blocks = packing.blocks(query.device, window)
    attend = _flex_attention(compiled=query.device.type == "cuda")
    out: Tensor = attend(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=True)
    return out


@functools.cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    """Compiled once in a process; on a CPU as it stands, which makes every score (for comparison)."""
    from torch.nn.attention.flex_attention import flex_attention

    if compiled:
        return torch.compile(flex_attention)
    return flex_attention


def _by_varlen(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, window: int | None
) -> Tensor:
    assert len(query) == 1, f"{len(query)} rows; varlen takes one"
    attend = varlen_kernel()
    assert attend is not None
    rows = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]  # (L, heads, Dh)
    span = (-1 if window is None else window - 1, 0)  # keys before a query, and behind it
    starts = packing.starts(query.device)
    return attend(*rows, starts, packing.longest, scaling, span).transpose(0, 1)[None]


def varlen_kernel() -> Callable[..., Tensor] | None:
    """(query, key, value, starts, longest, scale, span) -> (L, H, Dh): torch's kernel, or flash-attn's, or None.

    Both take ``starts`` (documents + 1,) int32, the length of the longest document, and the keys that a query sees
    before and behind it, -1 for all.
    """
    try:
        torchs = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        torchs = None
    if torchs is not None and {"window_size", "enable_gqa"} <= inspect.signature(torchs).parameters.keys():
        return lambda q, k, v, starts, longest, scale, span: torchs(
            q, k, v, starts, starts, longest, longest, scale=scale, window_size=span, enable_gqa=True
        )
    try:
        flash = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None
    return lambda q, k, v, starts, longest, scale, span: flash(
        q, k, v, starts, starts, longest, longest, softmax_scale=scale, causal=True, window_size=span
    )
