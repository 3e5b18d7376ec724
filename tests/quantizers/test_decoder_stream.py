"""Hidden states code by code."""

import pytest
import torch
from torch import Tensor

from omniaudio.quantizers.decoder_stream import DecoderStream
from omniaudio.quantizers.mel_decoder import CausalMelDecoder, MelDecoder
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.types import Codes
from tests.quantizers.test_speech_tokenizer import SIZES, make


def causal(max_frames: int = 100) -> SpeechTokenizer:
    """Decodes 25 codes at once; all weights random, so that nothing is hidden behind zeros."""
    decoder = CausalMelDecoder(8, 20, 2, 2, 16, refine_width=8, refine_layers=1, max_frames=max_frames)
    tokenizer = make(max_frames, decoder=decoder).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return tokenizer


def offline(tokenizer: SpeechTokenizer, codes_SK: Tensor, num_books: int | None = None) -> Tensor:
    codes = Codes(codes_BSK=codes_SK[None], num_frames_B=torch.tensor([len(codes_SK)]))
    return tokenizer.decode(codes, num_books).hidden_BTD[0]


def new_codes(num_codes: int) -> Tensor:
    draws = torch.Generator().manual_seed(num_codes)
    return torch.stack([torch.randint(size, (num_codes,), generator=draws) for size in SIZES], 1)


@pytest.mark.parametrize("num_codes", [1, 24, 25, 26, 80])  # the decoder begins anew after 25
@pytest.mark.parametrize("size", [1, 4, 25, 60])
@pytest.mark.parametrize("num_books", [None, 1])
def test_streamed_is_offline(num_codes: int, size: int, num_books: int | None) -> None:
    tokenizer, codes_SK = causal(), new_codes(num_codes)
    stream, pieces = DecoderStream(tokenizer, num_books), list[Tensor]()
    for count, chunk_SK in enumerate(codes_SK.split(size)):
        pieces.append(stream.push(chunk_SK))
        assert sum(map(len, pieces)) == 4 * min(num_codes, size * (count + 1)) - 1, "no state waits"
    torch.testing.assert_close(
        torch.cat(pieces), offline(tokenizer, codes_SK, num_books), atol=1e-5, rtol=1e-5
    )


def test_memory_does_not_grow() -> None:
    """Over many times the codes that the decoder takes at once; and all that the stream holds is counted."""
    stream, held = DecoderStream(causal()), list[int]()
    for codes_SK in new_codes(200).split(5):
        stream.push(codes_SK)
        held.append(stream.num_values)
        own = [value for value in vars(stream).values() if isinstance(value, Tensor)]
        assert held[-1] == sum(value.numel() for value in own) + stream._past.num_values
    assert held[5:] == 7 * held[:5] and max(held) == held[4] < 2 * 2 * 8 * 100 + 20, (
        "keys and values of 100 states"
    )


def test_the_past_matters_and_the_future_does_not() -> None:
    tokenizer, codes_SK = causal(), new_codes(20)
    first, last = codes_SK.clone(), codes_SK.clone()
    first[0] = (first[0] + 1) % torch.tensor(SIZES)
    last[-1] = (last[-1] + 1) % torch.tensor(SIZES)
    whole = offline(tokenizer, codes_SK)
    assert (offline(tokenizer, first) - whole)[-1].abs().max() > 1e-4
    assert torch.equal(offline(tokenizer, last)[:76], whole[:76])


def test_a_decoder_of_whole_stretches_comes_near_to_what_it_says_of_the_whole() -> None:
    """Its norm has seen a part of the stretch only; the last state's has seen all but for what it does to others."""
    tokenizer, whole = (
        causal(),
        make(decoder=MelDecoder(8, 20, 2, 2, 16, refine_width=8, refine_layers=1, max_frames=100)),
    )
    whole.load_state_dict(tokenizer.state_dict())
    codes_SK = new_codes(25)
    error_T = (DecoderStream(whole.eval()).push(codes_SK) - offline(whole, codes_SK)).abs().mean(1)
    assert error_T[-40:].mean() < 0.5 * error_T[:12].mean()
    assert error_T[-40:].mean() < 0.1 < offline(whole, codes_SK).std()
