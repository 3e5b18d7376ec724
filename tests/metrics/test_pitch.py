"""F0 measures: by hand on given contours, librosa's own F0 on a tone, missing package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from omniaudio.errors import UserError
from omniaudio.metrics.pitch import f0, f0_error, voicing_error


def test_errors_by_hand() -> None:
    true_T, made_T = np.array([100.0, 110.0, 0.0, 0.0, 200.0]), np.array([103.0, 106.0, 0.0, 90.0, 0.0, 80.0])
    assert f0_error(true_T, made_T) == pytest.approx(np.sqrt((3**2 + 4**2) / 2))
    assert voicing_error(true_T, made_T) == pytest.approx(2 / 5)
    assert f0_error(true_T, np.zeros(5)) is None and voicing_error(np.zeros(0), made_T) is None


def test_f0_is_librosas_and_hits_a_known_melody() -> None:
    librosa = pytest.importorskip("librosa")
    time = np.arange(8000) / 16_000
    hz = 150 + 20 * np.sin(2 * np.pi * 2 * time)
    turns = np.cumsum(hz) / 16_000
    wav_N = 0.1 * sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 8)).astype(np.float32)
    found_T = f0(wav_N)
    theirs_T, voiced_T, _ = librosa.pyin(
        wav_N, fmin=60, fmax=500, sr=16_000, frame_length=1024, hop_length=160, resolution=0.25
    )
    np.testing.assert_array_equal(found_T, np.where(voiced_T, theirs_T, 0))
    assert f0_error(hz[::160], found_T) < 3
    assert voicing_error(hz[::160], found_T) < 0.1
    noise_N = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    assert (f0(noise_N) == 0).mean() > 0.8
    assert not f0(np.zeros(1600, np.float32)).any() and not f0(np.zeros(0, np.float32)).any()


def test_a_missing_package_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(UserError, match=r"pip install 'omniaudio\[metrics\]'"):
        f0(np.zeros(1600, np.float32))
