"""The speech tokenizer against recordings of the reference at small width and random weights.

tests/golden/tokenizer.* and rvq.* hold the reference's tensors, inputs and outputs, all float32 on CPU.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.frontend.mel import MelSpec
from omniaudio.quantizers.bridge import ConvBridge
from omniaudio.quantizers.mel_decoder import MelDecoder
from omniaudio.quantizers.rvq import ResidualVQ
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.training.artifacts import load_state
from omniaudio.types import valid_steps
from tests.parity.reference_names import tokenizer_state

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ("b1", "b1_short", "b2")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "tokenizer.safetensors")


@pytest.fixture(scope="module")
def tokenizer(golden: dict[str, Tensor]) -> SpeechTokenizer:
    config = json.loads((GOLDEN / "tokenizer.json").read_text())

    def read(name: str) -> int:
        return config[f"config/audio_config/{name}"]

    width = read("d_model")
    model = SpeechTokenizer(
        mel_spec=MelSpec(16000, 400, 160, 400, 128, 0.0, 8000.0, "whisper", True),
        decoder_mel_spec=MelSpec(16000, 1024, 256, 1024, 80, 0.0, 8000.0, "ln", True),
        encoder=WhisperEncoder(
            128, width, read("encoder_layers"), read("encoder_attention_heads"), read("encoder_ffn_dim")
        ),
        bridge=ConvBridge(width, read("avg_pooler")),
        quantizer=ResidualVQ(4 * width, read("vq_config/codebook_sizes")),
        decoder=MelDecoder(
            width,
            80,
            read("decoder_layers"),
            read("decoder_attention_heads"),
            read("decoder_ffn_dim"),
            refine_width=config["config/vocoder_config/channels"][0],
        ),
    )
    reference = {
        key.removeprefix("state_dict/"): value
        for key, value in golden.items()
        if key.startswith("state_dict/")
    }
    load_state(model, tokenizer_state(reference, model.state_dict()), "golden")
    return model.eval()


def packed(padded: Tensor, length_B: Tensor) -> Tensor:
    """Valid rows of (B, T, ...), one item after the other."""
    return padded[valid_steps(length_B, padded.shape[1])]


@pytest.mark.parametrize("case", CASES)
def test_mel_to_codes(golden: dict[str, Tensor], tokenizer: SpeechTokenizer, case: str) -> None:
    mel_BMT = golden[f"cases/{case}/mel"]
    frames = json.loads((GOLDEN / "tokenizer.json").read_text())[f"cases/{case}/frames"]
    with torch.no_grad():
        hidden_BTD, hidden_len_B = tokenizer.encoder(mel_BMT, torch.tensor(frames))
        z_BSD, num_frames_B = tokenizer.bridge.down(hidden_BTD, hidden_len_B)
        codes_BSK = tokenizer.quantizer.encode(z_BSD, valid_steps(num_frames_B, z_BSD.shape[1]))
        quantized_BSD = tokenizer.quantizer.decode(codes_BSK)
    assert hidden_len_B.tolist() == golden[f"cases/{case}/encoder_length"].tolist()
    assert num_frames_B.tolist() == golden[f"cases/{case}/bridge_length"].tolist()
    torch.testing.assert_close(hidden_BTD, golden[f"cases/{case}/encoder_out"], atol=1e-4, rtol=1e-4)
    # beyond the valid frames the reference's bridge output is that of its zero padding, as ours
    torch.testing.assert_close(z_BSD, golden[f"cases/{case}/pre_vq"], atol=1e-4, rtol=1e-4)
    assert torch.equal(packed(codes_BSK, num_frames_B), golden[f"cases/{case}/codes"])
    total_FD = packed(quantized_BSD, num_frames_B)
    torch.testing.assert_close(total_FD, golden[f"cases/{case}/vq_sum"], atol=1e-5, rtol=1e-5)
    emb_FD = packed(tokenizer.bridge.up(quantized_BSD), num_frames_B)
    torch.testing.assert_close(emb_FD, golden[f"cases/{case}/decoder_emb"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["b1", "b1_short"])
def test_codes_to_mel(golden: dict[str, Tensor], tokenizer: SpeechTokenizer, case: str) -> None:
    num_frames_B = golden[f"cases/{case}/bridge_length"]
    with torch.no_grad():
        output = tokenizer.decoder(golden[f"cases/{case}/decoder_emb"][None], num_frames_B)
    hidden_FD = packed(output.hidden_BTD, output.hidden_len_B)
    expected = golden[f"cases/{case}/hidden_before_dconv2_packed"]
    torch.testing.assert_close(hidden_FD, expected, atol=1e-4, rtol=1e-4)
    assert output.hidden_len_B.tolist() == golden[f"cases/{case}/len_before_dconv2"].tolist()
    assert output.mel_len_B.tolist() == golden[f"cases/{case}/mel_length"].tolist()
    for name, mel_BMT in (("coarse_mel", output.coarse_BMT), ("refined_mel", output.refined_BMT)):
        torch.testing.assert_close(
            mel_BMT.transpose(1, 2), golden[f"cases/{case}/{name}"], atol=1e-4, rtol=1e-4
        )


def test_batched_items_decode_as_alone(golden: dict[str, Tensor], tokenizer: SpeechTokenizer) -> None:
    """Where the reference's shorter item of b2 depends on the padding beside it, ours is that of b1_short."""
    num_frames_B = golden["cases/b2/bridge_length"]
    emb_BSD = torch.full((2, int(num_frames_B.max()), tokenizer.bridge.width), 9.0)  # padding must not matter
    emb_BSD[valid_steps(num_frames_B, emb_BSD.shape[1])] = golden["cases/b2/decoder_emb"]
    with torch.no_grad():
        output = tokenizer.decoder(emb_BSD, num_frames_B)
    for row, case in enumerate(("b1", "b1_short")):
        length = int(output.mel_len_B[row])
        for name, mel_BMT in (("coarse_mel", output.coarse_BMT), ("refined_mel", output.refined_BMT)):
            expected = golden[f"cases/{case}/{name}"][0]
            torch.testing.assert_close(mel_BMT[row, :, :length].T, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "codes_fp32"), (torch.bfloat16, "codes_bf16")])
def test_rvq_codes(dtype: torch.dtype, name: str) -> None:
    golden = load_file(GOLDEN / "rvq.safetensors")
    entries = [golden[f"embeds/{i}"] for i in range(8)]
    quantizer = ResidualVQ(entries[0].shape[1], [len(entry) for entry in entries]).eval()
    for book, entry in zip(quantizer.books, entries, strict=True):
        book.embed.copy_(entry)
    x_BSD = golden["x"].to(dtype)
    valid_BS = valid_steps(golden["lens"], x_BSD.shape[1])
    codes_BSK = quantizer.encode(x_BSD, valid_BS)
    assert torch.equal(codes_BSK, golden[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # training runs under autocast; distances stay float32
        assert torch.equal(quantizer(x_BSD, valid_BS).codes_BSK, golden[name])
    quantizer.bfloat16()
    assert torch.equal(quantizer.encode(x_BSD, valid_BS), golden[name]), "books follow no change of type"

    expected = json.loads((GOLDEN / "rvq.json").read_text())["mse_by_depth"]
    if dtype == torch.float32:
        totals = [quantizer.decode(codes_BSK[..., : k + 1]) for k in range(8)]
        errors = [(x_BSD - total)[valid_BS].square().mean().item() for total in totals]
        torch.testing.assert_close(errors, expected, atol=1e-6, rtol=1e-5)
