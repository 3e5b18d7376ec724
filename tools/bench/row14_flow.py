"""Flow decoding of 4 s in 10 steps with guidance, both branches in one batch, against two calls a step."""

from __future__ import annotations

import itertools
import math

import torch
from common import close, compare
from torch import Tensor

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.frontend.mel import MelSpec
from omniaudio.types import valid_steps

STEPS, GUIDANCE = 10, 0.7
torch.manual_seed(0)
spec = MelSpec(24_000, 1920, 480, 1920, 80, 0.0, 8000.0, "ln", False)
flow = FlowMatchingDecoder(
    spec, Prenet(192, 384, 192, 3, 4, 768, num_mels=80), ConditionalUNet(80, 128, 2, 1, 4, 32, 256), 50.0
).eval()
hidden_BTD, length_B = torch.randn(1, 200, 192), torch.tensor([200])
noise = torch.randn(1, 80, 200)


def ours() -> Tensor:
    return flow.decode(hidden_BTD, length_B, STEPS, GUIDANCE, noise)[0]


@torch.no_grad()
def peer() -> Tensor:
    mu = flow.prenet(hidden_BTD, length_B, length_B)
    valid_BT, x = valid_steps(length_B, 200), noise
    times = [1 - math.cos(i * math.pi / 2 / STEPS) for i in range(STEPS + 1)]
    for now, then in itertools.pairwise(times):
        time_B = torch.tensor([now])
        shown = flow.estimator(x, mu, time_B, valid_BT)
        free = flow.estimator(x, torch.zeros_like(mu), time_B, valid_BT)
        x = x + (then - now) * ((1 + GUIDANCE) * shown - GUIDANCE * free)
    return x


compare(
    "14 flow decoding, 4 s, 10 steps, guidance", ours, peer, lambda mine, other: close(mine, other, 1e-3),
    "two calls a step", 1.05, "",
)  # fmt: skip
