"""Distances of spectra: by hand, against librosa's cepstra, on speech."""

from __future__ import annotations

import math

import numpy as np
import pytest

from omniaudio.metrics.spectrum import NUM_CEPSTRA, cepstra, cepstral_distortion, log_mel, mel_error


def wave(order: int, height: float, num_mels: int = 80) -> np.ndarray:
    """A log-mel of one cepstrum, three frames."""
    return np.repeat(height * np.cos(math.pi * order * (np.arange(num_mels) + 0.5) / num_mels)[:, None], 3, 1)


@pytest.mark.parametrize("order, counts", [(0, 0.0), (1, 1.0), (NUM_CEPSTRA, 1.0), (NUM_CEPSTRA + 1, 0.0)])
def test_distortion_of_one_cepstrum_is_the_formula(order, counts) -> None:
    found = cepstral_distortion(np.zeros((80, 3)), wave(order, 0.3))
    assert found == pytest.approx(counts * 10 / math.log(10) * math.sqrt(2) * 0.3, abs=1e-9)


def test_distortion_is_what_the_ear_of_a_smooth_spectrum_gets_in_db() -> None:
    """By Parseval: the root mean square over the bins of the difference in dB."""
    both = wave(2, 0.3) + wave(5, -0.2)
    rms_db = 20 / math.log(10) * math.sqrt((both[:, 0] ** 2).mean())
    assert cepstral_distortion(np.zeros((80, 3)), both) == pytest.approx(rms_db)


def test_cepstra_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    mel_MT = np.random.default_rng(0).standard_normal((80, 7))
    theirs = librosa.feature.mfcc(S=mel_MT, n_mfcc=NUM_CEPSTRA + 1, dct_type=2, norm=None)[1:] / 80
    np.testing.assert_allclose(cepstra(mel_MT), theirs, atol=1e-12)


def test_errors_see_the_shorter_length_and_no_detail_of_silence() -> None:
    true_MT, made_MT = wave(1, 1.0), wave(1, 1.0) + 0.5
    assert mel_error(true_MT, np.hstack([made_MT, made_MT])) == pytest.approx(0.5)
    quiet = np.full((80, 3), -20.0)
    quiet[0] = 0.0  # all else is 60 dB below it
    noisier = quiet.copy()
    noisier[1:] = -12.0
    assert mel_error(quiet, noisier) == cepstral_distortion(quiet, noisier) == 0


def test_distances_of_sound() -> None:
    rng = np.random.default_rng(0)
    sound_N = rng.standard_normal(16_000).astype(np.float32) * 0.1
    mel_MT = log_mel(sound_N)
    assert mel_MT is not None and mel_MT.shape == (80, 101)
    assert cepstral_distortion(mel_MT, mel_MT) == 0
    half_MT = log_mel(0.5 * sound_N)
    assert half_MT is not None
    assert mel_error(mel_MT, half_MT) == pytest.approx(math.log(2), abs=1e-3)
    assert cepstral_distortion(mel_MT, half_MT) < 0.02, "a level is no distortion"
    assert log_mel(sound_N[:100]) is None
