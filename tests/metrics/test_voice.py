"""Voices and opinions: the packages' own numbers, silence, missing packages."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from omniaudio.corpus.build.synthesis import EspeakNg, Voice
from omniaudio.errors import UserError
from omniaudio.metrics.voice import (
    Voices,
    distilled_opinion,
    distillmos,
    load_distillmos,
    opinion,
    similarity,
)

SILENCE = np.zeros(16_000, np.float32)


def spoken(voice: str, text: str) -> np.ndarray:
    return EspeakNg().speak(text, Voice(voice, {"rate": 160, "pitch": 50}), "en", 16_000)


def test_similarity_is_resemblyzers_and_tells_voices_apart() -> None:
    resemblyzer = pytest.importorskip("resemblyzer")
    texts = (
        "Please hold the line while we connect your call.",
        "The number that you have dialed is not in service.",
    )
    one, again, other = (
        spoken(voice, text)
        for voice, text in (("en-us", texts[0]), ("en-us", texts[1]), ("en-us+f2", texts[1]))
    )
    voices = Voices()
    same, different = (similarity(voices(one), voices(wav_N)) for wav_N in (again, other))
    assert same > different + 0.05
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    theirs = [encoder.embed_utterance(resemblyzer.preprocess_wav(wav_N)) for wav_N in (one, again)]
    assert same == pytest.approx(float(np.inner(*theirs)), abs=1e-5)
    assert voices(SILENCE) is None and voices(SILENCE[:0]) is None


def test_opinion_is_speechmos_and_falls_with_noise() -> None:
    package = pytest.importorskip("speechmos.dnsmos")
    clean_N = spoken("en-us", "Please hold the line while we connect your call.")
    noisy_N = clean_N + 0.1 * np.random.default_rng(0).standard_normal(len(clean_N)).astype(np.float32)
    assert opinion(clean_N) == pytest.approx(package.run(clean_N, sr=16_000)["ovrl_mos"])
    assert opinion(clean_N) > opinion(noisy_N) + 0.5
    assert opinion(SILENCE) is None and opinion(SILENCE[:0]) is None


def test_distilled_opinion_is_the_packages_and_falls_with_noise(capsys) -> None:
    """Of a clip that is one window, and of one that is several and not a whole number of hops."""
    pytest.importorskip("xls_r_sqa")  # distillmos itself cannot be imported without torchaudio, but by us
    theirs = distillmos().ConvTransformerSQAModel().eval()
    capsys.readouterr()
    short_N = spoken("en-us", "Please hold the line while we connect your call.")
    long_N = np.tile(short_N, 5)[: 9 * 16_000 + 1234]
    shapes = []
    hook = load_distillmos().cnn.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    for wav_N in (short_N, long_N):
        with torch.inference_mode():
            score = theirs(torch.from_numpy(wav_N)[None]).item()
        assert distilled_opinion(wav_N) == pytest.approx(score, abs=1e-4)
    hook.remove()
    assert shapes == [(1, distillmos().SEQ_LEN)] * 4  # one window in memory, however long the clip
    assert distilled_opinion(short_N) == distilled_opinion(short_N)
    noise_N = 0.1 * np.random.default_rng(0).standard_normal(len(short_N)).astype(np.float32)
    for worse_N in (short_N + noise_N, noise_N):
        assert distilled_opinion(short_N) > distilled_opinion(worse_N) + 0.25
    assert distilled_opinion(SILENCE) is None and distilled_opinion(SILENCE[:0]) is None
    assert load_distillmos() is load_distillmos() and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "package, ask, command",
    [
        ("resemblyzer", Voices(), r"pip install 'omniaudio\[metrics\]'"),
        ("speechmos", opinion, r"pip install 'omniaudio\[metrics\]'"),
        ("distillmos", lambda _: distillmos(), "pip install --no-deps distillmos xls-r-sqa"),
    ],
)
def test_a_missing_package_is_one_line(package, ask, command, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    torchaudio = sys.modules.get("torchaudio")
    with pytest.raises(UserError, match=f"not installed: {command}"):
        ask(SILENCE)
    assert sys.modules.get("torchaudio") is torchaudio
