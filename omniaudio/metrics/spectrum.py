"""How far the spectrum of speech is from that of the recording, frame by frame: nothing is aligned.

What is made of codes or mels keeps the recording's time, so frame t is held against frame t; a shift or another
speed counts as an error, as in every measure here. (With time warping a wrong duration would cost nothing.)
"""

from __future__ import annotations

import math

import numpy as np
import torch

from omniaudio.frontend.mel import LogMel, MelSpec

SPEC = MelSpec(16_000, 1024, 160, 1024, 80, 0.0, 8000.0, "ln", True)
NUM_CEPSTRA = 13
"""Without the one of order 0, which is the level."""
FLOOR_DB = 60.0
"""What is further below the loudest value of the recording is silence: empty bands are not compared in detail."""


def log_mel(wav_N: np.ndarray) -> np.ndarray | None:
    """Log-mel (M, T) of a signal at 16 kHz; None if it is too short for one."""
    if len(wav_N) < SPEC.min_samples:
        return None
    wav_BN = torch.from_numpy(np.ascontiguousarray(wav_N, np.float32))[None]
    mel_MT: np.ndarray = LogMel(SPEC)(wav_BN, torch.tensor([len(wav_N)]))[0][0].numpy()
    return mel_MT


def cepstra(mel_MT: np.ndarray) -> np.ndarray:
    """(D, T) mel-cepstra 1 to ``NUM_CEPSTRA``: log-mel = c_0 + sum of c_d cos(pi d (m + 1/2) / M) + what is finer."""
    from scipy.fft import dct

    found: np.ndarray = dct(mel_MT, axis=0)[1 : NUM_CEPSTRA + 1] / len(mel_MT)
    return found


def cepstral_distortion(true_MT: np.ndarray, made_MT: np.ndarray) -> float:
    """Mel-cepstral distortion in dB (doi:10.1109/PACRIM.1993.407206): the mean over frames of
    10 / ln 10 * sqrt(2 * sum of squared differences of the cepstra). Zero for equal spectra, whatever their levels.
    """
    true_MT, made_MT = _floored(true_MT, made_MT)
    difference_DT = cepstra(true_MT) - cepstra(made_MT)
    return float(10 / math.log(10) * np.sqrt(2 * (difference_DT**2).sum(axis=0)).mean())


def mel_error(true_MT: np.ndarray, made_MT: np.ndarray) -> float:
    """Mean absolute error of the log-mel (natural logarithm of the magnitude)."""
    true_MT, made_MT = _floored(true_MT, made_MT)
    return float(np.abs(true_MT - made_MT).mean())


def _floored(true_MT: np.ndarray, made_MT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As long as the shorter one, and nothing below ``FLOOR_DB`` under the recording's loudest."""
    floor = true_MT.max() - FLOOR_DB / 20 * math.log(10)
    num_frames = min(true_MT.shape[1], made_MT.shape[1])
    return np.maximum(true_MT[:, :num_frames], floor), np.maximum(made_MT[:, :num_frames], floor)
