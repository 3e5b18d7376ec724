from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from omniaudio.config import build
from omniaudio.errors import UserError
from omniaudio.frontend.mel import LogMel, MelSpec, slaney_filters

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = ["whisper128", "decoder16k", "vocoder24k"]


def spec_of(name, **changes):
    return build({**yaml.safe_load((ROOT / "conf" / "mel" / f"{name}.yaml").read_text()), **changes})


def noise(num_samples, seed=0):
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def mel_of(spec, wav):
    mel_BMT, mel_len_B = LogMel(spec)(wav[None], torch.tensor([len(wav)]))
    assert mel_BMT.shape == (1, spec.num_mels, int(mel_len_B))
    return mel_BMT[0]


def test_filters_are_the_references():
    want = load_file(GOLDEN / "frontend.safetensors")["mel_filters"]
    assert (slaney_filters(spec_of("whisper128")) - want).abs().max() < 1e-7


@pytest.mark.parametrize("case", range(4))
def test_encoder_mel_is_the_references(case):
    golden = load_file(GOLDEN / "frontend.safetensors")
    mel_MT = mel_of(spec_of("whisper128"), golden[f"cases/{case}/wav"][0])
    torch.testing.assert_close(mel_MT, golden[f"cases/{case}/feat"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("case", range(4))
def test_vocoder_mel_is_the_references(case):
    golden = load_file(GOLDEN / "mel24k.safetensors")
    mel_MT = mel_of(spec_of("vocoder24k"), golden[f"cases/{case}/wav"][0])
    torch.testing.assert_close(mel_MT, golden[f"cases/{case}/mel"][0], atol=2e-4, rtol=0)


def test_encoder_mel_is_that_of_the_clip_padded_to_30_seconds():
    """An impulse at the very end: loudest in a frame past the last valid one, it still sets the floor."""
    spec = spec_of("whisper128")
    wav = noise(16_159) * 1e-3
    wav[-1] = 1.0
    padded = torch.cat([wav, torch.zeros(480_000 - len(wav))])
    want = LogMel(spec)(padded[None], torch.tensor([480_000]))[0][0]
    mel_MT = mel_of(spec, wav)
    assert want.shape[1] == 3000
    torch.testing.assert_close(mel_MT, want[:, : mel_MT.shape[1]], atol=1e-5, rtol=0)


def test_decoder_mel_of_a_sine_by_hand():
    """A sine of amplitude a on bin 64 has magnitude a * sum(window) / 2 there and half of that beside it."""
    spec = spec_of("decoder16k")
    wav = 0.5 * torch.cos(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)
    magnitude = torch.zeros(513)
    magnitude[64], magnitude[63], magnitude[65] = 128.0, 64.0, 64.0
    want_M = torch.log((magnitude @ slaney_filters(spec)).clamp(min=1e-5))
    mel_MT = mel_of(spec, wav)
    assert mel_MT.shape[1] == 63
    loud = want_M > -5
    torch.testing.assert_close(mel_MT[loud, 30], want_M[loud], atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_alike_alone_and_in_any_batch(name, data):
    spec = spec_of(name, num_mels=20)
    lengths = data.draw(st.lists(st.integers(spec.min_samples, 9_000), min_size=2, max_size=4))
    spare = data.draw(st.integers(0, 3_000))
    wavs = [noise(n, seed) for seed, n in enumerate(lengths)]
    batch = torch.full((len(wavs), max(lengths) + spare), 0.7)  # rubbish past the ends must not matter
    for row, wav in zip(batch, wavs, strict=True):
        row[: len(wav)] = wav
    mel_BMT, mel_len_B = LogMel(spec)(batch, torch.tensor(lengths))
    assert mel_BMT.shape[2] == int(mel_len_B.max())
    for row, wav in enumerate(wavs):
        num_frames = int(mel_len_B[row])
        torch.testing.assert_close(mel_BMT[row, :, :num_frames], mel_of(spec, wav), atol=2e-5, rtol=0)
        assert (mel_BMT[row, :, num_frames:] == 0).all()


@pytest.mark.parametrize(
    "name, num_samples, num_frames",
    [
        ("whisper128", 400, 3),
        ("whisper128", 479_999, 3000),
        ("whisper128", 480_000, 3000),
        ("decoder16k", 513, 3),
        ("decoder16k", 2560, 11),
        ("vocoder24k", 721, 1),
        ("vocoder24k", 960, 2),
    ],
)
def test_number_of_frames(name, num_samples, num_frames):
    spec = spec_of(name, num_mels=8)
    assert spec.num_frames(num_samples) == num_frames
    assert spec.num_frames(torch.tensor([num_samples])).tolist() == [num_frames]
    assert mel_of(spec, noise(num_samples)).shape == (8, num_frames)


def test_rates_are_derived():
    assert [spec_of(name).mel_rate_hz for name in NAMES] == [100.0, 62.5, 50.0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fmax_hz": 8001.0}, "fmax_hz 8001.0 is above half of sample_rate_hz 16000"),
        ({"fmin_hz": 8000.0}, "fmin_hz 8000.0"),
        ({"log": "log10"}, "'log10' is not one of whisper, ln"),
        ({"center": False}, "needs center true"),
        ({"hop": 500}, "0 < hop <= win <= n_fft"),
        ({"num_mels": 0}, "num_mels 0"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spec_of("whisper128", **changes)


@pytest.mark.parametrize(
    "name, num_samples, message",
    [
        ("whisper128", 399, "at least 400"),
        ("vocoder24k", 720, "at least 721"),
        ("whisper128", 480_001, "chunks"),
    ],
)
def test_lengths_without_a_mel_are_refused(name, num_samples, message):
    with pytest.raises(UserError, match=message):
        mel_of(spec_of(name), noise(num_samples))


def test_buffers_are_not_in_the_state_dict_and_gradients_flow():
    mel = LogMel(spec_of("vocoder24k"))
    assert not mel.state_dict()
    wav_BN = noise(4_800)[None].requires_grad_()
    mel(wav_BN, torch.tensor([4_800]))[0].sum().backward()
    assert np.isfinite(wav_BN.grad).all() and wav_BN.grad.abs().min() > 0


def test_weights_in_bf16_and_autocast_do_not_touch_it():
    spec = spec_of("vocoder24k")
    wav_BN, num_samples_B = noise(4_800)[None], torch.tensor([4_800])
    want = LogMel(spec)(wav_BN, num_samples_B)[0]
    assert torch.equal(LogMel(spec).bfloat16()(wav_BN, num_samples_B)[0], want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LogMel(spec)(wav_BN, num_samples_B)[0], want)
    with torch.device("meta"):
        late = LogMel(spec)
    assert late.window.is_meta
    assert torch.equal(late.to_empty(device="cpu")(wav_BN, num_samples_B)[0], want)


def test_digital_silence_is_finite():
    for name in NAMES:
        assert torch.isfinite(mel_of(spec_of(name), torch.zeros(4_000))).all()


def test_spec_is_a_value():
    assert spec_of("whisper128") == MelSpec(16000, 400, 160, 400, 128, 0.0, 8000.0, "whisper", True)
    assert spec_of("whisper128").facts()["num_mels"] == 128


def test_bins_within_a_band():
    """A bin counts when all of its triangle lies below: the filters' own support says so."""
    spec = spec_of("decoder16k")
    hz_F = torch.linspace(0, 8000, spec.n_fft // 2 + 1)
    filters_FM = slaney_filters(spec)
    bins_BM = spec.bins_within(torch.tensor([8000.0, 4700.0, 4000.0]))
    assert bins_BM[0].all()
    for band_hz, bins_M in zip((4700, 4000), bins_BM[1:], strict=True):
        assert (filters_FM[hz_F > band_hz][:, bins_M] == 0).all()
        assert (filters_FM[hz_F > band_hz - 150][:, ~bins_M].sum(0) > 0).all()
        assert 0 < int(bins_M.sum()) < spec.num_mels
