import numpy as np
import pytest
import torch

from omniaudio.dialogue.remel import remel
from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.frontend.mel import LogMel, MelSpec

SOURCE = MelSpec(16000, 1024, 256, 1024, 80, 0.0, 8000.0, "ln", True)
TARGET = MelSpec(24000, 1920, 480, 1920, 80, 0.0, 8000.0, "ln", False)
OTHER_BANDS = MelSpec(24000, 1920, 480, 1920, 60, 0.0, 7000.0, "ln", False)


def speechlike(seconds: float, seed: int = 0) -> np.ndarray:
    """Harmonics with a moving pitch and level, in noise, at 16 kHz."""
    time = np.arange(int(seconds * 16000)) / 16000
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * 1.5 * time)) / 16000
    voice = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 30))
    noise = np.random.default_rng(seed).normal(0, 0.3, len(time))
    return (0.1 * (1 + np.sin(2 * np.pi * 3 * time)) * (voice + noise)).astype(np.float32)


def mel_of(spec: MelSpec, wav: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return LogMel(spec)(torch.from_numpy(wav)[None], torch.tensor([len(wav)]))


@pytest.mark.parametrize("target", [TARGET, OTHER_BANDS])
def test_close_to_the_mel_of_the_resampled_waveform(target):
    wav = speechlike(2.0)
    want, want_len = mel_of(target, resample(wav, 16000, 24000))
    got, got_len = remel(*mel_of(SOURCE, wav), SOURCE, target)
    assert abs(int(got_len - want_len)) <= 1
    num_frames = min(int(got_len), int(want_len))
    error = (got - want[..., :num_frames] if num_frames == got.shape[-1] else got[..., :num_frames] - want)[
        ..., 3:-3
    ]
    assert error.abs().mean() < (0.15 if target is TARGET else 0.3)
    assert abs(error.mean()) < 0.1


def test_same_spec_changes_nothing():
    mel_BMT, mel_len_B = mel_of(SOURCE, speechlike(0.5))
    got, got_len = remel(mel_BMT, mel_len_B, SOURCE, SOURCE)
    assert torch.equal(got_len, mel_len_B)
    torch.testing.assert_close(got, mel_BMT, atol=1e-5, rtol=0)


def test_padding_does_not_change_an_item():
    (short, short_len), (long, long_len) = (
        mel_of(SOURCE, speechlike(0.5)),
        mel_of(SOURCE, speechlike(1.0, seed=1)),
    )
    padded = torch.nn.functional.pad(short, (0, long.shape[-1] - short.shape[-1]), value=9.0)
    got, got_len = remel(torch.cat([padded, long]), torch.cat([short_len, long_len]), SOURCE, TARGET)
    alone, alone_len = remel(short, short_len, SOURCE, TARGET)
    assert got_len[0] == alone_len[0]
    torch.testing.assert_close(got[:1, :, : int(alone_len)], alone)
    assert not got[0, :, int(alone_len) :].any()


def test_whisper_mels_are_refused():
    whisper = MelSpec(16000, 400, 160, 400, 80, 0.0, 8000.0, "whisper", True)
    with pytest.raises(UserError, match="natural logarithms"):
        remel(torch.zeros(1, 80, 4), torch.tensor([4]), whisper, TARGET)
