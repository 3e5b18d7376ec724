"""A training step of 8 books x 2048 x 256 with moving averages, against vector-quantize-pytorch."""

from __future__ import annotations

import torch
from common import compare, need

need("vector_quantize_pytorch")

from vector_quantize_pytorch import ResidualVQ as Peer  # noqa: E402

from omniaudio.quantizers.rvq import ResidualVQ  # noqa: E402

DIM, SIZES = 256, [2048] * 8
torch.manual_seed(0)
x_BSD = torch.randn(8, 256, DIM)
valid_BS = torch.ones(8, 256, dtype=torch.bool)
ours_vq = ResidualVQ(DIM, SIZES, shrink=0.0, restart_after=None, book_dropout=0.0, kmeans_steps=0).train()
peer_vq = Peer(
    dim=DIM, codebook_size=2048, num_quantizers=8, decay=0.99, kmeans_init=False, rotation_trick=False,
    threshold_ema_dead_code=0, commitment_weight=1.0,
).train()  # fmt: skip
start = [torch.randn(2048, DIM) * 0.5 for _ in SIZES]
for book, layer, codes_VD in zip(ours_vq.books, peer_vq.layers, start, strict=True):
    book.embed.copy_(codes_VD)
    book.embed_avg.copy_(codes_VD)
    book.cluster_size.fill_(1.0)
    layer._codebook.embed.data.copy_(codes_VD[None])
    layer._codebook.embed_avg.data.copy_(codes_VD[None])
    layer._codebook.cluster_size.data.fill_(1.0)


def ours() -> torch.Tensor:
    z_BSD = x_BSD.clone().requires_grad_()
    out = ours_vq(z_BSD, valid_BS)
    (out.quantized_BSD.square().mean() + out.commit_loss).backward()
    return out.codes_BSK


def peer() -> torch.Tensor:
    z_BSD = x_BSD.clone().requires_grad_()
    quantized_BSD, codes_BSK, commit = peer_vq(z_BSD)
    (quantized_BSD.square().mean() + commit.sum()).backward()
    return codes_BSK


def same(mine: torch.Tensor, theirs: torch.Tensor) -> str:
    share = float((mine == theirs).float().mean())
    return "" if share > 0.999 else f"only {share:.2%} of the codes of the first step agree"


compare("8 RVQ training step", ours, peer, same, "vector-quantize-pytorch", 3.0, "matrix products")
