"""Codes of a recording that is still going on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniaudio.errors import UserError
from omniaudio.quantizers.streaming import StreamingEncoder
from tests.quantizers.test_speech_tokenizer import make, noise

FRAME = 1280


def streamed(encoder: StreamingEncoder, wav_N: torch.Tensor, *cuts: int) -> torch.Tensor:
    pieces = [encoder.push(piece) for piece in wav_N.tensor_split(list(cuts))]
    return torch.cat([codes.codes_BSK[0] for codes in (*pieces, encoder.flush())])


def test_whole_chunks_without_context_are_the_offline_codes() -> None:
    tokenizer = make()
    wav_BN, num_samples_B = noise(2 * 32000 + 9000)
    offline = tokenizer.encode(wav_BN, num_samples_B)
    codes_SK = streamed(
        StreamingEncoder(tokenizer, segment_frames=25, context_frames=0), wav_BN[0], 100, 40000
    )
    assert torch.equal(codes_SK, offline.codes_BSK[0])


@settings(max_examples=20, deadline=None)
@given(
    num_samples=st.integers(400, 90000),
    cuts=st.lists(st.integers(0, 90000), max_size=4),
    segment=st.integers(1, 12),
    context=st.integers(0, 12),
)
def test_as_many_codes_as_offline_whatever_the_pieces(
    num_samples: int, cuts: list[int], segment: int, context: int
) -> None:
    tokenizer = make()
    wav_BN, num_samples_B = noise(num_samples)
    encoder = StreamingEncoder(tokenizer, segment, context)
    codes_SK = streamed(encoder, wav_BN[0], *sorted(min(cut, num_samples) for cut in cuts))
    assert len(codes_SK) == int(tokenizer.encode(wav_BN, num_samples_B).num_frames_B[0])
    assert torch.equal(codes_SK, streamed(encoder, wav_BN[0])), "flush() starts anew; pieces do not matter"


def test_a_segment_is_heard_with_its_context_and_nothing_else() -> None:
    tokenizer = make()
    wav_N = noise(20 * FRAME)[0][0]
    encoder = StreamingEncoder(tokenizer, segment_frames=5, context_frames=10)
    codes_SK = encoder.push(wav_N).codes_BSK[0]
    heard = wav_N[5 * FRAME :][None]
    window_SK = tokenizer.encode(heard, torch.tensor([15 * FRAME])).codes_BSK[0]
    assert torch.equal(codes_SK[15:], window_SK[10:])
    assert encoder.num_waiting == 0


def test_more_than_the_encoder_hears_is_refused() -> None:
    with pytest.raises(UserError, match=r"segment_frames 20 \+ context_frames 6 must be 1 to 25"):
        StreamingEncoder(make(), 20, 6)
    with pytest.raises(UserError, match="one channel"):
        StreamingEncoder(make(), 5, 5).push(torch.zeros(2, 100))
