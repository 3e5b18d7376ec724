"""HiFT of 20.8 M numbers on chunks of a stream and on 4 s: weight norm folded, and kept as in the published code."""

from __future__ import annotations

from functools import partial

import torch
from common import close, compare
from torch import Tensor

from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.hift import HiFT

FRAMES = (12, 25, 200)  # the norms cost the same however long the mel is: a chunk gains the most
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


@torch.inference_mode()
def run(vocoder: HiFT, mel_BMT: Tensor) -> Tensor:
    return vocoder(mel_BMT)


for frames in FRAMES:
    mel_BMT = torch.randn(1, spec.num_mels, frames)
    compare(
        f"15 HiFT, {frames / spec.mel_rate_hz:g} s", partial(run, folded, mel_BMT), partial(run, kept, mel_BMT),
        lambda mine, other: close(mine, other, 1e-4), "weight norm kept", 1.1, "the convolutions",
    )  # fmt: skip
