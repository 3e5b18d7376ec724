"""Small vocoders of every kind."""

from collections.abc import Callable

from torch import nn

from omniaudio.frontend.mel import MelSpec
from omniaudio.vocoders.hifigan import HiFiGAN
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.istft import ISTFTVocoder

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
