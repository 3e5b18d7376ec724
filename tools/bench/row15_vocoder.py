"""HiFT of 20.8 M numbers on 0.24 s, a chunk of a stream: weight norm folded, against kept as in the published code."""

from __future__ import annotations

import torch
from common import close, compare
from torch import Tensor

from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.hift import HiFT

FRAMES = 12
torch.manual_seed(0)
spec = MelSpec(24_000, 1920, 480, 1920, 80, 0.0, 8000.0, "ln", False)
dilations = [[1, 3, 5]] * 3
source = {"num_harmonics": 8, "sine_amplitude": 0.1, "noise_std": 0.003, "voiced_threshold_hz": 10.0}


def new_hift() -> HiFT:
    return HiFT(
        spec, 512, [8, 5, 3], [16, 11, 7], [3, 7, 11], dilations, [7, 7, 11], 512, 16, 4, source
    ).eval()


kept, folded = new_hift(), new_hift()
folded.load_state_dict(kept.state_dict())
folded.fold_weight_norm()
mel_BMT = torch.randn(1, spec.num_mels, FRAMES)


@torch.inference_mode()
def ours() -> Tensor:
    return folded(mel_BMT)


@torch.inference_mode()
def peer() -> Tensor:
    return kept(mel_BMT)


compare(
    "15 HiFT, 0.24 s", ours, peer, lambda mine, other: close(mine, other, 1e-4), "weight norm kept", 1.1,
    "the convolutions",
)  # fmt: skip
