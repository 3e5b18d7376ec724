"""The whole tokenizer: chunks, batches, short audio, leading books, checks, fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.quantizers.bridge import ConvBridge
from omniaudio.quantizers.continuous import Continuous
from omniaudio.quantizers.mel_decoder import MelDecoder
from omniaudio.quantizers.rvq import ResidualVQ
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.quantizers.streaming import StreamingEncoder
from omniaudio.quantizers.vector_quantize import VectorQuantizePytorch
from omniaudio.training.needs import PeakMemory
from omniaudio.types import Codes

MEL = MelSpec(16000, 400, 160, 400, 16, 0.0, 8000.0, "whisper", True)
DECODER_MEL = MelSpec(16000, 1024, 256, 1024, 20, 0.0, 8000.0, "ln", True)
SIZES = [16, 8, 4]


def make(
    max_frames: int = 100, quantizer_class: Callable[..., nn.Module] = ResidualVQ, **parts: Any
) -> SpeechTokenizer:
    """A tiny tokenizer whose chunks last ``max_frames / 50`` seconds."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "mel_spec": MEL,
        "decoder_mel_spec": DECODER_MEL,
        "encoder": WhisperEncoder(16, 8, 1, 2, 16, max_frames=max_frames),
        "bridge": ConvBridge(8),
        "quantizer": quantizer_class(32, SIZES),
        "decoder": MelDecoder(8, 20, 1, 2, 16, refine_width=8, max_frames=4 * max_frames),
    }
    return SpeechTokenizer(**{**arguments, **parts}).eval()


def noise(*num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    wav_BN = torch.randn(len(num_samples), max(num_samples), generator=generator) * 0.1
    for row, length in enumerate(num_samples):
        wav_BN[row, length:] = 0
    return wav_BN, torch.tensor(num_samples)


def test_rates_and_lengths() -> None:
    tokenizer = make()
    assert (tokenizer.sample_rate_hz, tokenizer.code_rate_hz) == (16000, 12.5)
    assert tokenizer.codebook_sizes == (16, 8, 4)
    assert tokenizer.chunk_samples == 32000
    codes = tokenizer.encode(*noise(16000, 400))
    assert codes.num_frames_B.tolist() == [12, 0]  # 101 mel frames, 51 encoder frames, 12 codes; 3, 2, 0
    assert codes.codes_BSK.shape == (2, 12, 3)
    assert (codes.codes_BSK[1] == -1).all()
    mel = tokenizer.decode(codes)
    assert mel.mel_len_B.tolist() == [58, 0]


def test_thirty_seconds_are_375_codes() -> None:
    codes = make(max_frames=1500).encode(*noise(480000, 480000 - 1280))
    assert codes.num_frames_B.tolist() == [375, 374]


def test_chunks_are_coded_one_by_one_and_joined() -> None:
    tokenizer = make()
    wav_BN, num_samples_B = noise(80000, 20000, 32000 + 399)
    codes = tokenizer.encode(wav_BN, num_samples_B)
    pieces = [tokenizer.encode(piece, torch.tensor([piece.shape[1]])) for piece in wav_BN[:1].split(32000, 1)]
    expected_SK = torch.cat([piece.codes_BSK[0] for piece in pieces])
    assert [int(piece.num_frames_B) for piece in pieces] == [25, 25, 12]
    assert torch.equal(codes.codes_BSK[0], expected_SK)
    assert codes.num_frames_B.tolist() == [62, 15, 25]
    alone = tokenizer.encode(wav_BN[1:2, :20000], num_samples_B[1:2])
    assert torch.equal(codes.codes_BSK[1, :15], alone.codes_BSK[0])
    assert (codes.codes_BSK[1, 15:] == -1).all()


def test_long_codes_decode_chunk_by_chunk_in_time() -> None:
    tokenizer = make()
    codes = tokenizer.encode(*noise(80000, 20000))
    output = tokenizer.decode(codes)
    first = tokenizer.decode(Codes(codes_BSK=codes.codes_BSK[:1, :25], num_frames_B=torch.tensor([25])))
    last = tokenizer.decode(Codes(codes_BSK=codes.codes_BSK[:1, 50:], num_frames_B=torch.tensor([12])))
    short = tokenizer.decode(Codes(codes_BSK=codes.codes_BSK[1:, :15], num_frames_B=torch.tensor([15])))
    # a chunk of 2 s has 123 mel frames of its own, held to 125; 99 hidden ones held to 100
    assert output.mel_len_B.tolist() == [250 + 58, 73]
    assert output.hidden_len_B.tolist() == [200 + 47, 59]
    assert torch.equal(output.hidden_len_B, tokenizer.hidden_length(codes.num_frames_B))
    torch.testing.assert_close(output.refined_BMT[0, :, :123], first.refined_BMT[0])
    torch.testing.assert_close(output.refined_BMT[0, :, 124], first.refined_BMT[0, :, -1])
    torch.testing.assert_close(output.refined_BMT[0, :, 250:], last.refined_BMT[0])
    torch.testing.assert_close(output.hidden_BTD[0, 200:], last.hidden_BTD[0])
    torch.testing.assert_close(output.refined_BMT[1, :, :73], short.refined_BMT[0])
    assert output.refined_BMT[1, :, 73:].abs().sum() == 0


def test_chunks_are_the_whole_in_pieces() -> None:
    tokenizer = make()
    codes = tokenizer.encode(*noise(80000, 20000, 32000))
    whole, pieces = tokenizer.decode(codes, 2), list(tokenizer.decode_chunks(codes, 2))
    assert len(pieces) == 3
    assert torch.equal(torch.cat([piece.refined_BMT for piece in pieces], -1), whole.refined_BMT)
    assert torch.equal(torch.cat([piece.hidden_BTD for piece in pieces], 1), whole.hidden_BTD)
    assert torch.equal(sum(piece.mel_len_B for piece in pieces), whole.mel_len_B)
    padded = Codes(
        codes_BSK=torch.nn.functional.pad(codes.codes_BSK, (0, 0, 0, 30), value=-1),
        num_frames_B=codes.num_frames_B,
    )
    torch.testing.assert_close(tokenizer.decode(padded, 2).refined_BMT, whole.refined_BMT)


def test_memory_does_not_grow_with_the_length() -> None:
    """Five minutes in and out, piece by piece, need what ten seconds do."""
    tokenizer = make()

    def peak(num_pieces: int) -> int:
        encoder = StreamingEncoder(tokenizer, segment_frames=25, context_frames=0)
        piece_N = noise(10 * 16000)[0][0]
        frames = 0
        with PeakMemory() as watch:
            for _ in range(num_pieces):
                codes = encoder.push(piece_N)
                frames += sum(int(made.mel_len_B) for made in tokenizer.decode_chunks(codes))
        assert frames == num_pieces * 623  # the last two of a piece have no code of their own
        return watch.peak

    assert peak(30) <= 1.01 * peak(2)


def test_too_short_audio_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"399 samples.*at least 400"):
        make().encode(*noise(16000, 399))


@pytest.mark.parametrize("quantizer", [ResidualVQ, VectorQuantizePytorch])
def test_decoding_reads_the_leading_books_only(quantizer: Callable[..., nn.Module]) -> None:
    tokenizer = make(quantizer_class=quantizer)
    tokenizer.train()(*noise(32000, 30000))  # the books take their first codes from the first batch
    tokenizer.eval()
    codes = tokenizer.encode(*noise(16000))
    changed_BSK = codes.codes_BSK.clone()
    changed_BSK[..., 2] = 0
    changed = Codes(codes_BSK=changed_BSK, num_frames_B=codes.num_frames_B)
    two = tokenizer.decode(codes, num_books=2).refined_BMT
    assert torch.equal(tokenizer.decode(changed, num_books=2).refined_BMT, two)
    assert not torch.equal(tokenizer.decode(codes).refined_BMT, two)
    with pytest.raises(UserError, match="num_books 4"):
        tokenizer.decode(codes, num_books=4)


def test_forward_in_eval_mode_is_encode_and_decode() -> None:
    tokenizer = make()
    wav_BN, num_samples_B = noise(16000, 9000)
    quantized, decoded = tokenizer(wav_BN, num_samples_B)
    codes = tokenizer.encode(wav_BN, num_samples_B)
    num_codes = int(codes.num_frames_B.max())
    assert torch.equal(quantized.codes_BSK[:, :num_codes], codes.codes_BSK)
    torch.testing.assert_close(decoded.refined_BMT, tokenizer.decode(codes).refined_BMT, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_trained_parameter() -> None:
    tokenizer = make().train()
    quantized, decoded = tokenizer(*noise(16000, 9000))
    (decoded.refined_BMT.square().mean() + quantized.commit_loss).backward()
    without = [
        name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"bridge": ConvBridge(16)}, "bridge.width is 16, but encoder.width is 8"),
        ({"quantizer": ResidualVQ(8, SIZES)}, "quantizer.dim is 8, .* is 32"),
        ({"decoder": MelDecoder(8, 80, 1, 2, 16)}, "mel_decoder.num_mels is 80, .* is 20"),
        (
            {"decoder": MelDecoder(8, 20, 1, 2, 16, mel_frames_per_code=4.0)},
            "mel_frames_per_code is 4.0, .* is 5.0",
        ),
        (
            {"mel_spec": MelSpec(16000, 400, 160, 400, 80, 0.0, 8000.0, "whisper", True)},
            "encoder.num_mels is 16",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**parts)


def test_fingerprint_sees_the_encode_path_only() -> None:
    tokenizer = make()
    before = tokenizer.fingerprint()
    assert before["codebook_sizes"] == SIZES
    assert before["code_rate_hz"] == 12.5
    with torch.no_grad():
        tokenizer.decoder.layer_norm.weight.add_(1)
    assert tokenizer.fingerprint() == before
    with torch.no_grad():
        tokenizer.encoder.conv1.bias.add_(1)
    changed = tokenizer.fingerprint()
    assert {fact for fact in before if before[fact] != changed[fact]} == {"tokenizer_weights"}
    tokenizer.quantizer.books[2].embed[0].add_(1)
    assert tokenizer.fingerprint() != changed


def test_a_continuous_tokenizer_keeps_everything_and_has_no_codes() -> None:
    tokenizer = make(quantizer=Continuous(32))
    wav_BN, num_samples_B = noise(80000, 20000, 32000 + 399)
    codes = tokenizer.encode(wav_BN, num_samples_B)
    assert codes.codes_BSK.shape == (3, 62, 0) and codes.num_frames_B.tolist() == [62, 15, 25]
    vectors_BSD, num_frames_B = tokenizer.vectors(wav_BN, num_samples_B)
    assert num_frames_B.tolist() == [62, 15, 25]
    alone_BSD, _ = tokenizer.vectors(wav_BN[1:2, :20000], num_samples_B[1:2])
    torch.testing.assert_close(vectors_BSD[1, :15], alone_BSD[0])
    mel = tokenizer.autoencode(wav_BN, num_samples_B)
    assert mel.mel_len_B.tolist() == [250 + 58, 73, 123]
    _, first = tokenizer(wav_BN[:1, :32000], torch.tensor([32000]))
    torch.testing.assert_close(mel.refined_BMT[0, :, :123], first.refined_BMT[0])


def test_vectors_are_what_the_first_books_say() -> None:
    tokenizer = make()
    tokenizer.train()(*noise(32000, 30000))
    tokenizer.eval()
    wav_BN, num_samples_B = noise(80000, 20000)
    codes = tokenizer.encode(wav_BN, num_samples_B)
    for depth in (1, 3):
        wanted = tokenizer.decode(codes, depth)
        made = tokenizer.autoencode(wav_BN, num_samples_B, depth)
        torch.testing.assert_close(made.refined_BMT, wanted.refined_BMT)
