"""Whisper encoder: against transformers, alone and in a batch, and its error messages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.errors import UserError

SIZES: dict[str, Any] = {
    "num_mels": 8,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 32,
    "max_frames": 20,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Whisper, saved as transformers does."""
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=32, num_mel_bins=8, d_model=16, max_source_positions=20,
        encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whisper")
    WhisperModel(config).save_pretrained(folder)
    return folder


def test_pretrained_gives_the_hidden_states_of_transformers(checkpoint: Path) -> None:
    from transformers import WhisperModel

    theirs = WhisperModel.from_pretrained(checkpoint).encoder.eval()
    ours = WhisperEncoder(**SIZES, pretrained=str(checkpoint)).eval()
    mel_BMT = torch.randn(2, 8, 40)  # the only length that theirs takes
    with torch.no_grad():
        hidden_BTD, hidden_len_B = ours(mel_BMT, torch.tensor([40, 40]))
        torch.testing.assert_close(hidden_BTD, theirs(mel_BMT).last_hidden_state, atol=1e-5, rtol=1e-4)
    assert hidden_len_B.tolist() == [20, 20]


def test_pretrained_of_another_shape_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"conv1\.weight has shape \(16, 8, 3\) there, \(32, 8, 3\) here"):
        WhisperEncoder(**{**SIZES, "width": 32}, pretrained=str(checkpoint))
    with pytest.raises(UserError, match=r"layers\.1\..* is not used"):
        WhisperEncoder(**{**SIZES, "num_layers": 1}, pretrained=str(checkpoint))
    with pytest.raises(UserError, match=r"layers\.2\..* is missing"):
        WhisperEncoder(**{**SIZES, "num_layers": 3}, pretrained=str(checkpoint))
    with pytest.raises(UserError, match="no Whisper checkpoint"):
        WhisperEncoder(**SIZES, pretrained=str(tmp_path / "nothing"))


@pytest.mark.parametrize("frames", [1, 6, 7])
def test_an_item_is_alike_alone_and_beside_a_longer_one(frames: int) -> None:
    torch.manual_seed(0)
    encoder = WhisperEncoder(**SIZES).eval()
    mel_BMT = torch.randn(2, 8, 31) * 5  # beyond the valid frames: rubbish that must not matter
    batch_BTD, length_B = encoder(mel_BMT, torch.tensor([31, frames]))
    alone_BTD, _ = encoder(mel_BMT[1:, :, :frames], torch.tensor([frames]))
    assert length_B.tolist() == [16, (frames - 1) // 2 + 1]
    torch.testing.assert_close(batch_BTD[1, : length_B[1]], alone_BTD[0], atol=1e-5, rtol=1e-5)
    assert batch_BTD[1, length_B[1] :].abs().sum() == 0


def test_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 40 at most"):
        WhisperEncoder(**SIZES)(torch.zeros(1, 8, 41), torch.tensor([41]))
