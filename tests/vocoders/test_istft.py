"""Frame-rate vocoder: reach of a frame, errors. Shapes and batching: test_hifigan.py."""

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.vocoders.istft import ISTFTVocoder
from tests.vocoders.vocoder_fixtures import SPEC, new_istft


@torch.no_grad()
def test_a_frame_is_heard_nearby_only() -> None:
    torch.manual_seed(0)
    vocoder, mel = new_istft().eval(), torch.randn(1, 8, 40)
    changed = mel.clone()
    changed[..., 20] += 1.0
    moved = (vocoder(mel) - vocoder(changed))[0].abs().unflatten(0, (40, 480)).amax(-1) > 1e-6
    first, last = moved.nonzero().flatten()[[0, -1]].tolist()
    assert first >= 20 - 9 - 2 and last <= 20 + 9 + 2  # 3 + 2 x 3 frames of convolution, 2 of the window
    assert moved[20]


def test_window_must_fit_the_hop() -> None:
    for n_fft in (400, 1921):
        with pytest.raises(UserError, match=f"vocoder.n_fft {n_fft}"):
            ISTFTVocoder(SPEC, 8, 16, 1, n_fft)
