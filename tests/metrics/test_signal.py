"""Signal measures: the libraries' own numbers, order of degradations, clips that cannot be judged."""

from __future__ import annotations

import sys

import numpy as np
import pystoi
import pytest

from omniaudio.corpus.build.synthesis import EspeakNg
from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.metrics.signal import estoi, mean_of, pesq, seam_step, stoi


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    engine = EspeakNg()
    return engine.speak(
        "Please hold the line while we connect your call.", engine.voices("en")[0], "en", 16_000
    )


def noisy(wav_N: np.ndarray, db: float) -> np.ndarray:
    noise_N = np.random.default_rng(0).standard_normal(len(wav_N)).astype(np.float32)
    return wav_N + noise_N * wav_N.std() * 10 ** (-db / 20)


def test_estoi_is_pystois_and_falls_with_noise(speech) -> None:
    values = [estoi(speech, noisy(speech, db), 16_000, 16_000) for db in (40, 10, 0, -10)]
    assert values == sorted(values, reverse=True) and values[0] > 0.9 > 0.3 > values[-1]
    for ours, extended in ((estoi, True), (stoi, False)):
        found = ours(speech, noisy(speech, 10), 16_000, 16_000)
        assert found == pytest.approx(pystoi.stoi(speech, noisy(speech, 10), 16_000, extended=extended))


def test_other_rates_and_lengths_are_made_alike(speech) -> None:
    made_N = resample(speech, 16_000, 24_000)
    found = estoi(speech, np.concatenate([made_N, np.zeros(2400, np.float32)]), 16_000, 24_000)
    assert found == pytest.approx(1.0, abs=0.01)
    late = estoi(speech, np.roll(speech, 1600), 16_000, 16_000)
    assert late < 0.5, "a tenth of a second late is another signal"


@pytest.mark.parametrize("num_samples", [0, 100, 3000])
def test_what_cannot_be_judged_has_no_number(num_samples) -> None:
    wav_N = np.random.default_rng(1).standard_normal(num_samples).astype(np.float32)
    assert estoi(wav_N, wav_N, 16_000, 16_000) is None
    silence_N = np.zeros(32_000, np.float32)
    assert estoi(silence_N, silence_N, 16_000, 16_000) is None


def test_pesq_is_the_packages_and_falls_with_noise(speech) -> None:
    package = pytest.importorskip("pesq")
    values = [pesq(speech, noisy(speech, db), 16_000, 16_000) for db in (30, 10, 0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(package.pesq(16_000, speech, noisy(speech, 30), "wb"))
    assert pesq(speech[:3000], speech[:3000], 16_000, 16_000) is None
    assert pesq(np.zeros(16_000, np.float32), np.zeros(16_000, np.float32), 16_000, 16_000) is None


def test_a_missing_package_is_one_line(speech, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(UserError, match=r"pip install 'omniaudio\[metrics\]'"):
        pesq(speech, speech, 16_000, 16_000)


def test_a_mean_leaves_out_what_is_not_there() -> None:
    assert mean_of([1.0, None, 2.0]) == (1.5, 2)
    assert mean_of([None]) == (None, 0)


def test_a_cut_is_heard_in_a_quiet_place_too() -> None:
    """A quiet tone after a loud one; without its fade, the step of a seam is far above those around it, and far below
    the loud tone's."""
    time_N = np.arange(24_000) / 24_000
    wav_N = np.where(time_N < 0.5, 0.5, 0.002) * np.sin(2 * np.pi * 200 * time_N)
    assert seam_step(wav_N, [3000, 18_000], 24_000) < 1.2
    cut_N = np.concatenate([wav_N[:18_000], wav_N[18_030:]])  # a quarter of a period is lost
    assert np.abs(np.diff(cut_N))[17_990:18_010].max() < 0.2 * np.abs(np.diff(cut_N)).max()
    assert seam_step(cut_N, [3000, 18_000], 24_000) > 10
    faded_N, fade_N = cut_N.copy(), np.linspace(0, 1, 960)
    faded_N[18_000:18_960] = (1 - fade_N) * wav_N[18_000:18_960] + fade_N * cut_N[18_000:18_960]
    assert seam_step(faded_N, [3000, 18_000], 24_000) < 1.2
    assert seam_step(wav_N[:1], [], 24_000) == seam_step(np.zeros(99), [50], 24_000) == 0
    assert seam_step(np.repeat([0.0, 2**-13], 500), [500], 24_000) == 4, "in silence, by the steps of 16 bits"
