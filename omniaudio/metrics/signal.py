"""How much of a recording is left in speech that was made of it, measured on the signals: no recogniser, no text.

Both signals must begin at the same instant; the longer one is cut. A clip that a measure cannot judge gives None.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample

RATE_HZ = 16_000
"""Of all measures: wide-band PESQ knows no other, and STOI reads what is below 4.3 kHz."""

TOO_LITTLE_SPEECH = 1e-5
"""What pystoi returns, with a warning, for signals with fewer than 30 frames (0.4 s) of speech."""


def stoi(
    true_N: np.ndarray, made_N: np.ndarray, true_rate_hz: int, made_rate_hz: int, extended: bool = False
) -> float | None:
    """Short-time objective intelligibility, below 0 to 1, by pystoi.

    Args:
        true_N: the recording, mono.
        made_N: what was made of it.
        true_rate_hz, made_rate_hz: their sample rates.
        extended: doi:10.1109/TASLP.2016.2585878, which follows changes of level; else doi:10.1109/TASL.2011.2114881.
    """
    import pystoi

    true_N, made_N = _alike(true_N, made_N, true_rate_hz, made_rate_hz)
    if not true_N.any():  # pystoi adds a little noise and would compare that
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            found = float(pystoi.stoi(true_N, made_N, RATE_HZ, extended=extended))
        except (ValueError, IndexError):  # shorter than one of its frames
            return None
    return None if found == TOO_LITTLE_SPEECH or not np.isfinite(found) else found


def estoi(true_N: np.ndarray, made_N: np.ndarray, true_rate_hz: int, made_rate_hz: int) -> float | None:
    """The extended one of ``stoi``."""
    return stoi(true_N, made_N, true_rate_hz, made_rate_hz, extended=True)


def pesq(true_N: np.ndarray, made_N: np.ndarray, true_rate_hz: int, made_rate_hz: int) -> float | None:
    """Wide-band perceptual quality, 1.0 to 4.6 (ITU-T P.862.2), by the package pesq; arguments as of ``stoi``.

    Raises:
        UserError: the package, which is compiled when it is installed, is not there.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise UserError(
            "PESQ needs a package that is not installed: pip install 'omniaudio[metrics]'"
        ) from error
    true_N, made_N = _alike(true_N, made_N, true_rate_hz, made_rate_hz)
    if len(true_N) < RATE_HZ // 4:
        return None  # the shortest that P.862 takes
    try:
        return float(package.pesq(RATE_HZ, true_N, made_N, "wb"))
    except package.NoUtterancesError:
        return None


def mean_of(values: Iterable[float | None]) -> tuple[float | None, int]:
    """Mean of the values that are there, and how many."""
    found = [value for value in values if value is not None]
    return (float(np.mean(found)) if found else None), len(found)


def _alike(
    true_N: np.ndarray, made_N: np.ndarray, true_rate_hz: int, made_rate_hz: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both at ``RATE_HZ`` and as long as the shorter one."""
    true_N, made_N = resample(true_N, true_rate_hz, RATE_HZ), resample(made_N, made_rate_hz, RATE_HZ)
    num_samples = min(len(true_N), len(made_N))
    return true_N[:num_samples], made_N[:num_samples]


def seam_step(wav_N: np.ndarray, seams: Iterable[int], rate_hz: int, reach: int = 2) -> float:
    """Step from a sample to the next at a seam, over the largest within 10 ms around it: the most of all seams.

    A click is a step that the speech around it does not take: far above 1. In silence, a step of one in 16 bits is 1.

    Args:
        wav_N: pieces of speech laid one after the other.
        seams: first samples of all pieces but the first.
        rate_hz: of the samples.
        reach: samples before and after it that belong to a seam.
    """
    step_N, around, worst = np.abs(np.diff(wav_N)), rate_hz // 100, 0.0
    for seam in seams:
        near_N = step_N[max(0, seam - reach) : seam + reach]
        before_N = step_N[max(0, seam - around) : max(0, seam - reach)]
        after_N = step_N[seam + reach : seam + around]
        largest = max(before_N.max(initial=2**-15), after_N.max(initial=2**-15))
        worst = max(worst, float(near_N.max(initial=0.0) / largest))
    return worst
