"""A training step of 8 books x 2048 x 256 with moving averages, against three libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rvq
import torch
from common import compare


def ours_step(quantizer: Any) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        z_BSD = rvq.X_BSD.clone().requires_grad_()
        out = quantizer(z_BSD, rvq.VALID_BS)
        (out.quantized_BSD.square().mean() + out.commit_loss).backward()
        return out.codes_BSK

    return step


def channels_last(library: Any) -> Callable[[], torch.Tensor]:
    """Of (B, S, D); quantized, codes and losses come out."""

    def step() -> torch.Tensor:
        z_BSD = rvq.X_BSD.clone().requires_grad_()
        quantized_BSD, codes_BSK, commit = library(z_BSD)
        (quantized_BSD.square().mean() + commit.sum()).backward()
        return codes_BSK

    return step


def channels_first(library: Any) -> Callable[[], torch.Tensor]:
    """Of (B, D, S)."""

    def step() -> torch.Tensor:
        z_BDS = rvq.X_BSD.transpose(1, 2).contiguous().requires_grad_()
        quantized_BDS, codes_KBS, commit = library(z_BDS)[:3]
        (quantized_BDS.square().mean() + commit.sum()).backward()
        return codes_KBS.permute(1, 2, 0)

    return step


for name, make, step, target in (
    ("vector-quantize-pytorch", rvq.vector_quantize_pytorch, channels_last, 3.0),
    ("encodec", rvq.encodec, channels_first, 2.0),
    ("moshi", rvq.moshi, channels_first, 1.1),
):
    peer = step(make().train())
    compare(
        "8 RVQ training step",
        ours_step(rvq.ours().train()),
        peer,
        rvq.same_codes,
        name,
        target,
        "matrix products",
    )
