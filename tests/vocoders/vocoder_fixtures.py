"""Small vocoders of every kind, one in whose speech a cut stands out, and their excitation by definition."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omniaudio.frontend.mel import MelSpec
from omniaudio.metrics.signal import seam_step
from omniaudio.vocoders.hifigan import HiFiGAN
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.istft import ISTFTVocoder
from omniaudio.vocoders.source import HarmonicSource

SPEC = MelSpec(24000, 1920, 480, 1920, 8, 0.0, 8000.0, "ln", False)
SOURCE: dict[str, Any] = {
    "num_harmonics": 2,
    "sine_amplitude": 0.1,
    "noise_std": 0.003,
    "voiced_threshold_hz": 10.0,
}


def new_v1(weight_norm: bool = True) -> HiFiGAN:
    return HiFiGAN(SPEC, 16, [20, 24], [40, 48], [3, 5], [[1, 3], [1, 2]], True, weight_norm)


def new_v3(weight_norm: bool = True) -> HiFiGAN:
    return HiFiGAN(SPEC, 16, [20, 24], [40, 48], [3, 5], [[1, 3], [1, 2]], False, weight_norm)


def new_hift(weight_norm: bool = True) -> HiFT:
    return HiFT(SPEC, 16, [8, 15], [16, 31], [3], [[1, 3]], [7, 7], 8, 16, 4, SOURCE, weight_norm)


def new_istft() -> ISTFTVocoder:
    return ISTFTVocoder(SPEC, 16, 32, 2, 1920)


ALL: dict[str, Callable[[], nn.Module]] = {"v1": new_v1, "v3": new_v3, "hift": new_hift, "istft": new_istft}


@torch.no_grad()
def slow_wave(vocoder: nn.Module) -> nn.Module:
    """The vocoder, made to speak slow waves: random weights are as rough everywhere as a cut is at its place.

    Transposed convolutions go in a straight line from step to step, and heads have their lowest bins alone.
    """
    for module in vocoder.modules():
        if isinstance(module, nn.ConvTranspose1d):
            size = module.kernel_size[0]
            way_K = (torch.arange(size) - (size - 1) / 2).abs() / module.stride[0]
            line_K = math.sqrt(size) * (1 - way_K).clamp(min=0)
            module.weight.copy_(module.weight.mean(-1, keepdim=True) * line_K)
    heads = {HiFT: ("conv_post", 1, 1.0), ISTFTVocoder: ("head", 3, 4.0)}
    if type(vocoder) in heads:
        name, num_low, level = heads[type(vocoder)]
        head: Any = vocoder.get_submodule(name)
        num_bins = len(head.bias) // 2  # of magnitudes; phases follow
        head.weight[num_low:num_bins] = 0.0
        head.bias[:num_bins] = -20.0
        head.bias[:num_low] = level
    if isinstance(vocoder, HiFT):
        vocoder.source.noise_std = 0.0
    return vocoder


def step_at_seams(pieces: Sequence[np.ndarray], rate_hz: int, repeated: int = 0) -> float:
    """``seam_step`` of all seams between pieces; each but the first begins with the last ``repeated`` samples of the
    one before it, as where the samples of a join are said twice."""
    said = [piece for piece in pieces if len(piece)]
    if repeated:
        said = [said[0], *(np.concatenate([old[-repeated:], new]) for old, new in pairwise(said))]
    seams = np.cumsum([len(piece) for piece in said])[:-1].tolist()
    return seam_step(np.concatenate(said), seams, rate_hz)


def excitation_by_definition(
    source: HarmonicSource, f0_BT: Tensor, phase_BH: Tensor, noise_BNH: Tensor, rate_hz: int, hop: int
) -> np.ndarray:
    """Excitation (B, N) sample by sample, after arXiv:1904.12088, section II-B, and arXiv:2309.09493.

    An F0 holds for the ``hop`` samples of its frame. Where it is above 10 Hz, sine k of k = 1, 2, 3 has the amplitude
    0.1 and turns by k F0 / rate a sample, with noise of width 0.003; elsewhere there is noise of width 0.1 / 3.
    Then one linear layer and tanh. SOURCE has these numbers.
    """
    weight_H, bias = source.mix.weight[0].double().tolist(), float(source.mix.bias)
    f0, phase, noise = (x.double().tolist() for x in (f0_BT, phase_BH, noise_BNH))
    out_BN = np.zeros((len(f0), len(f0[0]) * hop))
    for b, frames in enumerate(f0):
        angle = [phase[b][k - 1] for k in (1, 2, 3)]
        for n in range(out_BN.shape[1]):
            f0_hz, total = frames[n // hop], bias
            for k in (1, 2, 3):
                angle[k - 1] += 2 * math.pi * k * f0_hz / rate_hz
                if f0_hz > 10:
                    total += weight_H[k - 1] * (0.1 * math.sin(angle[k - 1]) + 0.003 * noise[b][n][k - 1])
                else:
                    total += weight_H[k - 1] * 0.1 / 3 * noise[b][n][k - 1]
            out_BN[b, n] = math.tanh(total)
    return out_BN
