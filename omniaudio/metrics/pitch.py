"""Whether speech keeps the melody of the recording: F0 by librosa's pYIN, of every 10 ms."""

from __future__ import annotations

import numpy as np

from omniaudio.errors import UserError

RATE_HZ = 16_000
MIN_HZ, MAX_HZ = 60.0, 500.0
FRAME, HOP = 1024, 160
RESOLUTION = 0.25
"""Of F0, in semitones: four times as fast as librosa's own 0.1, and 7 Hz at the top of the range."""


def f0(wav_N: np.ndarray) -> np.ndarray:
    """F0 (T,) in Hz of a signal at 16 kHz, 0 where it is unvoiced (doi:10.1109/ICASSP.2014.6853678).

    Raises:
        UserError: librosa is not there.
    """
    try:
        import librosa
    except ImportError as error:
        raise UserError(
            "F0 needs librosa, which is not installed: pip install 'omniaudio[metrics]'"
        ) from error
    if not len(wav_N) or not np.any(wav_N):
        return np.zeros(len(wav_N) // HOP + 1)
    found_T, voiced_T, _ = librosa.pyin(
        np.asarray(wav_N, np.float32),
        fmin=MIN_HZ,
        fmax=MAX_HZ,
        sr=RATE_HZ,
        frame_length=FRAME,
        hop_length=HOP,
        resolution=RESOLUTION,
    )
    return np.where(voiced_T, found_T, 0.0)


def f0_error(true_T: np.ndarray, made_T: np.ndarray) -> float | None:
    """Root mean square error of F0 in Hz over the frames that are voiced in both; None if there is none."""
    true_T, made_T = _cut(true_T, made_T)
    both_T = (true_T > 0) & (made_T > 0)
    if not both_T.any():
        return None
    return float(np.sqrt(((true_T - made_T)[both_T] ** 2).mean()))


def voicing_error(true_T: np.ndarray, made_T: np.ndarray) -> float | None:
    """Share of the frames that are voiced in one and not in the other; None without frames."""
    true_T, made_T = _cut(true_T, made_T)
    return float(((true_T > 0) != (made_T > 0)).mean()) if len(true_T) else None


def _cut(true_T: np.ndarray, made_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    num_frames = min(len(true_T), len(made_T))
    return true_T[:num_frames], made_T[:num_frames]
