"""Small vocoders of every kind, and their excitation by definition."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.hifigan import HiFiGAN
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.istft import ISTFTVocoder
from omniaudio.vocoders.source import HarmonicSource

SPEC = MelSpec(24000, 1920, 480, 1920, 8, 0.0, 8000.0, "ln", False)
SOURCE = {"num_harmonics": 2, "sine_amplitude": 0.1, "noise_std": 0.003, "voiced_threshold_hz": 10.0}


def new_v1(weight_norm: bool = True) -> HiFiGAN:
    return HiFiGAN(SPEC, 16, [20, 24], [40, 48], [3, 5], [[1, 3], [1, 2]], True, weight_norm)


def new_v3(weight_norm: bool = True) -> HiFiGAN:
    return HiFiGAN(SPEC, 16, [20, 24], [40, 48], [3, 5], [[1, 3], [1, 2]], False, weight_norm)


def new_hift(weight_norm: bool = True) -> HiFT:
    return HiFT(SPEC, 16, [8, 15], [16, 31], [3], [[1, 3]], [7, 7], 8, 16, 4, SOURCE, weight_norm)


def new_istft() -> ISTFTVocoder:
    return ISTFTVocoder(SPEC, 16, 32, 2, 1920)


ALL: dict[str, Callable[[], nn.Module]] = {"v1": new_v1, "v3": new_v3, "hift": new_hift, "istft": new_istft}


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
