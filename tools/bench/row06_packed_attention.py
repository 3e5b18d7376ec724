"""Attention over one packed row of 24 documents, forward and backward, against torch's with a dense document mask."""

from __future__ import annotations

import torch
from common import close, compare
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.lm.attention import Packing, packed_attention

HEADS, WIDTH, POSITIONS = 14, 64, 3828
torch.manual_seed(0)
share_G = torch.rand(24) + 0.2
doc_len = (share_G / share_G.sum() * POSITIONS).long()
doc_len[-1] += POSITIONS - doc_len.sum()
document_L = torch.arange(24).repeat_interleave(doc_len)
visible_LL = (document_L[:, None] == document_L) & torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).tril()
qkv = [torch.randn(1, HEADS, POSITIONS, WIDTH, requires_grad=True) for _ in range(3)]
packing, layer = Packing(doc_len.tolist()), nn.Identity()


def gradients(out_BHLD: Tensor) -> Tensor:
    return torch.stack(torch.autograd.grad(out_BHLD.square().sum(), qkv))


def ours() -> Tensor:
    return gradients(packed_attention(layer, *qkv, packing=packing)[0].transpose(1, 2))


def peer() -> Tensor:
    return gradients(functional.scaled_dot_product_attention(*qkv, attn_mask=visible_LL))


pairs = POSITIONS**2 / float((doc_len.double() ** 2).sum())
compare(
    "6 packed attention, 24 documents, forward + backward", ours, peer, lambda mine, other: close(mine, other, 1e-3),
    "SDPA, dense mask", 9, f"pairs of scores: {pairs:.0f}",
)  # fmt: skip
