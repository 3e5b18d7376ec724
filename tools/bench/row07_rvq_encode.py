"""Vectors to codes, 8 books x 2048 x 256, against encodec."""

from __future__ import annotations

import rvq
import torch
from common import compare

ours_vq, peer_vq = rvq.ours().eval(), rvq.encodec().eval()
x_BDS = rvq.X_BSD.transpose(1, 2).contiguous()


def ours() -> torch.Tensor:
    return ours_vq.encode(rvq.X_BSD, rvq.VALID_BS)


@torch.no_grad()
def peer() -> torch.Tensor:
    codes_KBS: torch.Tensor = peer_vq.encode(x_BDS)
    return codes_KBS.permute(1, 2, 0)


compare("7 RVQ encode", ours, peer, rvq.same_codes, "encodec", 1.2, "matrix products")
