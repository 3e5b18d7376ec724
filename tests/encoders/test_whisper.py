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


def save_whisper(folder: Path) -> None:
    """A tiny random Whisper, saved as transformers does."""
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=32, num_mel_bins=8, d_model=16, max_source_positions=20,
        encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    WhisperModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    save_whisper(folder)
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


@pytest.mark.parametrize(
    ("width", "layers", "heads", "mels"), [(16, 2, 2, 8), (24, 1, 3, 80), (32, 3, 4, 128)]
)
@pytest.mark.parametrize("frames", [4, 38, 50])
def test_any_size_at_true_length_is_transformers_at_that_length(
    tmp_path: Path, width: int, layers: int, heads: int, mels: int, frames: int
) -> None:
    """Theirs takes one length only: its positions are cut to ours, nothing is padded to 30 s."""
    from transformers import WhisperConfig, WhisperModel

    sizes = {
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "num_mel_bins": mels,
    }
    small = {
        "encoder_ffn_dim": 2 * width,
        "decoder_layers": 1,
        "decoder_attention_heads": heads,
        "vocab_size": 32,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    theirs = WhisperModel(WhisperConfig(**sizes, **small, **ids, max_source_positions=50)).eval()
    theirs.save_pretrained(tmp_path)
    ours = WhisperEncoder(
        mels, width, layers, heads, 2 * width, max_frames=50, pretrained=str(tmp_path)
    ).eval()
    mel_BMT = torch.randn(1, mels, frames)
    length = (frames - 1) // 2 + 1
    encoder = theirs.encoder
    encoder.config.max_source_positions = length
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:length])
    with torch.no_grad():
        hidden_BTD, _ = ours(mel_BMT, torch.tensor([frames]))
        torch.testing.assert_close(hidden_BTD, encoder(mel_BMT).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_a_skip_connection_adds_the_log_mel_to_the_states(checkpoint: Path) -> None:
    plain = WhisperEncoder(**SIZES, pretrained=str(checkpoint)).eval()
    skipping = WhisperEncoder(**SIZES, pretrained=str(checkpoint), mel_skip=True).eval()
    assert skipping.skip is not None
    mel_BMT, lengths = torch.randn(2, 8, 30), torch.tensor([30, 17])
    with torch.no_grad():
        for row, length in enumerate(lengths.tolist()):
            alone_1MT = mel_BMT[row : row + 1, :, :length]
            expected_1TD = plain(mel_BMT, lengths)[0][row, None, : (length - 1) // 2 + 1]
            expected_1TD = expected_1TD + skipping.skip(alone_1MT).transpose(1, 2)
            found_BTD, found_len_B = skipping(mel_BMT, lengths)
            torch.testing.assert_close(found_BTD[row, None, : int(found_len_B[row])], expected_1TD)
    assert not found_BTD[1, 9:].any(), "padding stays silent"


def test_another_width_comes_out_by_a_projection(checkpoint: Path) -> None:
    plain = WhisperEncoder(**SIZES, pretrained=str(checkpoint)).eval()
    narrow = WhisperEncoder(**SIZES, pretrained=str(checkpoint), out_width=6).eval()
    assert narrow.width == 6 and WhisperEncoder(**SIZES, out_width=SIZES["width"]).out is None
    assert narrow.out is not None
    mel_BMT, lengths = torch.randn(2, 8, 30), torch.tensor([30, 17])
    with torch.no_grad():
        torch.testing.assert_close(narrow(mel_BMT, lengths)[0], narrow.out(plain(mel_BMT, lengths)[0]))


def test_beside_a_skip_connection_the_layers_begin_silent_and_learn(monkeypatch) -> None:
    monkeypatch.setattr("omniaudio.init.BRANCH_GAIN", 0.0)
    encoder = WhisperEncoder(**SIZES, out_width=6, mel_skip=True)
    assert encoder.out is not None and encoder.skip is not None
    mel_BMT, lengths = torch.randn(2, 8, 30), torch.tensor([30, 17])
    sound_BTD = encoder.skip(mel_BMT[:1]).transpose(1, 2)
    torch.testing.assert_close(encoder(mel_BMT, lengths)[0][:1], sound_BTD)
    encoder(mel_BMT, lengths)[0].square().sum().backward()
    assert encoder.out.weight.grad is not None and encoder.out.weight.grad.abs().min() > 0


def test_a_pretrained_model_is_not_fetched_for_its_shape(tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = WhisperEncoder(**SIZES, pretrained=str(tmp_path / "nothing"))
    assert encoder.conv1.weight.is_meta


def test_recomputing_gives_the_same_gradients_with_fewer_saved_tensors() -> None:
    torch.manual_seed(0)
    plain = WhisperEncoder(**SIZES)
    saving = WhisperEncoder(**SIZES, recompute=True)
    saving.load_state_dict(plain.state_dict())
    mel_BMT, lengths = torch.randn(2, 8, 30), torch.tensor([30, 17])
    sizes = []
    for encoder in (plain, saving):
        saved: list[int] = []

        def keep(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = encoder(mel_BMT, lengths)[0].square().sum()
        sizes.append(sum(saved))
        loss.backward()
    assert sizes[1] < 0.5 * sizes[0]
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


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
