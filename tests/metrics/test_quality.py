"""The table of all measures: equal sound is perfect, worse sound is worse, what is missing is told."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.metrics import quality, voice
from omniaudio.metrics.quality import MEASURES, SECTION, quality_rows

RATE = 16_000
PERFECT = {
    "STOI": 1.0,
    "ESTOI": 1.0,
    "PESQ": 4.64,
    "mel error": 0,
    "MCD": 0,
    "F0 RMSE": 0,
    "voicing error": 0,
}
PERFECT["speaker similarity"] = 1.0


def sung(seed: int) -> np.ndarray:
    time = np.arange(2 * RATE) / RATE
    turns = np.cumsum(120 + 20 * seed + 30 * np.sin(2 * np.pi * 1.5 * time)) / RATE
    sound = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 20))
    return (0.1 * (1 + np.sin(2 * np.pi * 3 * time)) * sound).astype(np.float32)


def plain(items, _):
    return items


@pytest.fixture
def sounds() -> list[np.ndarray]:
    return [sung(0), sung(1)]


def test_equal_sound_is_perfect_and_noise_is_worse(sounds, monkeypatch) -> None:
    for name in ("opinion", "distilled_opinion"):  # the real ones take seconds: test_voice.py
        monkeypatch.setattr(voice, name, lambda wav_N: 3.0)
    noise = np.random.default_rng(0)
    noisy = [wav + 0.01 * noise.standard_normal(len(wav)).astype(np.float32) for wav in sounds]
    made = {"same": sounds, "noisy": [resample(wav, RATE, 24_000) for wav in noisy]}
    made["same"] = [resample(wav, RATE, 24_000) for wav in sounds]
    rows, means = quality_rows([(wav, RATE) for wav in sounds], made, 24_000, track=plain)
    installed = [m.name for m in MEASURES if all(map(find_spec, m.packages))]
    assert [name for name, of in means.items() if of] == installed
    for name in installed:
        if name in ("DNSMOS", "DistillMOS"):
            assert list(means[name]) == ["original recording", "same", "noisy"]
        else:
            assert list(means[name]) == ["same", "noisy"]
            assert means[name]["same"] == pytest.approx(PERFECT[name], abs=0.15), name
            worse = means[name]["noisy"] - means[name]["same"]
            assert worse < 0 if PERFECT[name] >= 1 else worse > 0, name
    row = next(row for row in rows if row.name == "MCD, noisy")
    assert row.section == SECTION and row.note == "dB, 13 cepstra, not warped; mean of 2 clips"
    assert row.value == means["MCD"]["noisy"] and row.text == f"{row.value:.3f}"


def test_a_measure_without_its_package_is_left_out_and_told(sounds, monkeypatch) -> None:
    monkeypatch.setattr(quality, "find_spec", lambda name: None)
    rows, means = quality_rows([(sounds[0], RATE)], {"same": sounds[:1]}, RATE, track=plain)
    assert list(means) == ["STOI", "ESTOI", "mel error", "MCD"]
    absent = [(row.name, row.value, row.text) for row in rows if ", " not in row.name]
    assert absent[0] == ("PESQ", None, "not installed") and len(absent) == len(MEASURES) - len(means)
    assert {
        "pesq: pip install 'omniaudio[metrics]'",
        "distillmos and xls_r_sqa: pip install --no-deps distillmos xls-r-sqa",
    } < {row.note for row in rows}


def test_half_of_what_a_measure_needs_is_not_enough(sounds, monkeypatch) -> None:
    monkeypatch.setattr(quality, "find_spec", lambda name: None if name == "xls_r_sqa" else name)
    rows, means = quality_rows([(sounds[0], RATE)], {"same": sounds[:1]}, RATE, ["DistillMOS"], plain)
    assert not means and [row.text for row in rows] == ["not installed"]


def test_silence_has_no_number(sounds) -> None:
    silence = np.zeros(RATE, np.float32)
    rows, means = quality_rows([(silence, RATE)], {"same": [silence]}, RATE, ["ESTOI"], plain)
    assert means["ESTOI"] == {"same": None}
    assert next(row for row in rows if row.name == "ESTOI, same").text == "not measurable"
    short = silence[:50]
    assert quality_rows([(short, RATE)], {"same": [short]}, RATE, ["MCD"], plain)[1]["MCD"] == {"same": None}


def test_the_config_has_all_measures() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "conf" / "evaluate.yaml").read_text("utf-8"))
    assert tuple(config["measures"]) == quality.NAMES


def test_measures_are_chosen_by_name(sounds) -> None:
    recordings, made = [(sounds[0], RATE)], {"same": sounds[:1]}
    assert list(quality_rows(recordings, made, RATE, ["MCD", "ESTOI"], plain)[1]) == ["ESTOI", "MCD"]
    with pytest.raises(
        UserError, match=r"config measures: \['MOS'\]; must be a list of STOI, ESTOI, PESQ, .*DNSMOS"
    ):
        quality_rows(recordings, made, RATE, ["MOS"], plain)
