"""The residual quantizer of the rows 7 and 8, and its peers, all begun with the same codes."""

from __future__ import annotations

import importlib.util
import sys
import types

import torch
from common import need

from omniaudio.quantizers.rvq import ResidualVQ

DIM, SIZE, NUM_BOOKS = 256, 2048, 8
torch.manual_seed(0)
X_BSD = torch.randn(8, 256, DIM)
VALID_BS = torch.ones(8, 256, dtype=torch.bool)
START = [torch.randn(SIZE, DIM) * 0.5 for _ in range(NUM_BOOKS)]


def ours() -> ResidualVQ:
    """Without what the peers do not do: shrink, restarts, dropped books."""
    quantizer = ResidualVQ(
        DIM, [SIZE] * NUM_BOOKS, shrink=0.0, restart_after=None, book_dropout=0.0, kmeans_steps=0
    )
    for book, codes_VD in zip(quantizer.books, START, strict=True):
        book.embed.copy_(codes_VD)
        book.embed_avg.copy_(codes_VD)
        book.cluster_size.fill_(1.0)
    return quantizer


def vector_quantize_pytorch() -> torch.nn.Module:
    need("vector_quantize_pytorch")
    from vector_quantize_pytorch import ResidualVQ as Library

    library = Library(
        dim=DIM, codebook_size=SIZE, num_quantizers=NUM_BOOKS, decay=0.99, kmeans_init=False,
        rotation_trick=False, threshold_ema_dead_code=0, commitment_weight=1.0,
    )  # fmt: skip
    for layer, codes_VD in zip(library.layers, START, strict=True):
        layer._codebook.embed.data.copy_(codes_VD[None])
        layer._codebook.embed_avg.data.copy_(codes_VD[None])
        layer._codebook.cluster_size.data.fill_(1.0)
    return library


def encodec() -> torch.nn.Module:
    library = _quantization("encodec").ResidualVectorQuantization(
        num_quantizers=NUM_BOOKS, dim=DIM, codebook_size=SIZE, kmeans_init=False, threshold_ema_dead_code=0
    )
    for layer, codes_VD in zip(library.layers, START, strict=True):
        layer._codebook.embed.data.copy_(codes_VD)
        layer._codebook.embed_avg.data.copy_(codes_VD)
        layer._codebook.cluster_size.data.fill_(1.0)
    return library


def moshi() -> torch.nn.Module:
    library = _quantization("moshi").ResidualVectorQuantization(
        num_quantizers=NUM_BOOKS, codebook_offset=0, dim=DIM, codebook_size=SIZE, check_unused_every=1 << 30
    )
    for layer, codes_VD in zip(library.layers, START, strict=True):
        layer._codebook.embedding_sum.copy_(codes_VD)
        layer._codebook.cluster_usage.fill_(1.0)
        layer._codebook._initialized.fill_(1.0)
    return library


def _quantization(package: str) -> types.ModuleType:
    """``<package>.quantization.core_vq`` without the package's __init__, which imports much that is not used here."""
    found = importlib.util.find_spec(package)
    if found is None:
        sys.exit(f"{package} is not installed: bash tools/bench/all.sh fetches it")
    bare = types.ModuleType(package)
    bare.__path__ = list(found.submodule_search_locations or [])
    sys.modules[package] = bare
    return importlib.import_module(f"{package}.quantization.core_vq")


def same_codes(ours_BSK: torch.Tensor, theirs_BSK: torch.Tensor) -> str:
    """'' if as good as all codes agree: sums in another order may turn a near tie, and what follows from it."""
    share = float((ours_BSK == theirs_BSK).float().mean())
    return "" if share > 0.999 else f"only {share:.2%} of the codes agree"
