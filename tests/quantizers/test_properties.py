"""What holds for every tokenizer and every length."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniaudio.quantizers.speech_tokenizer import MIN_SAMPLES
from omniaudio.types import Codes
from tests.quantizers.test_speech_tokenizer import SIZES, make, noise

CHUNK = 32000  # of the tiny tokenizer; 480000 of the full one


def test_lengths_of_every_clip_up_to_thirty_seconds() -> None:
    """25 ms to 30 s, sample by sample: frames of mel, encoder and codes, and of the mel that comes out."""
    tokenizer = make(max_frames=1500)
    num_samples = torch.arange(MIN_SAMPLES, 480001)
    mel_len = tokenizer.mel_spec.num_frames(num_samples).clamp(max=3000)
    assert torch.equal(mel_len, (num_samples // 160 + 1).clamp(max=3000))
    frames = tokenizer.num_frames(mel_len)
    assert torch.equal(frames, ((mel_len - 1) // 2 + 1) // 4)
    assert int(frames[-1]) == 375 and int(frames[0]) == 0
    seconds_lost = num_samples / 16000 - frames / 12.5
    assert seconds_lost.min() >= -0.021 and seconds_lost.max() < 0.08
    out_len = tokenizer.decoder.mel_length(frames)
    lost = tokenizer.decoder_mel_spec.num_frames(num_samples) - out_len
    assert lost.min() >= 0 and lost.max() <= 8, (
        "never longer than the true mel, at most 8 of 62.5 frames a second short"
    )


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(MIN_SAMPLES, 2 * CHUNK + 900), min_size=1, max_size=4), data=st.data())
def test_padding_batching_and_order_change_nothing(lengths: list[int], data: st.DataObject) -> None:
    tokenizer = make()
    wav_BN, num_samples_B = noise(*lengths)
    codes = tokenizer.encode(wav_BN, num_samples_B)
    for book, size in enumerate(SIZES):
        valid = codes.codes_BSK[..., book][codes.codes_BSK[..., book] >= 0]
        assert not len(valid) or (int(valid.min()) >= 0 and int(valid.max()) < size)
    order = data.draw(st.permutations(range(len(lengths))))
    extra = data.draw(st.integers(0, 5000))
    shuffled = tokenizer.encode(
        torch.nn.functional.pad(wav_BN, (0, extra))[list(order)], num_samples_B[list(order)]
    )
    mels = tokenizer.decode(codes)
    for place, item in enumerate(order):
        count = int(codes.num_frames_B[item])
        assert int(shuffled.num_frames_B[place]) == count
        assert torch.equal(shuffled.codes_BSK[place, :count], codes.codes_BSK[item, :count])
        assert (shuffled.codes_BSK[place, count:] == -1).all()
        alone = Codes(codes_BSK=codes.codes_BSK[item : item + 1, :count], num_frames_B=torch.tensor([count]))
        mel = tokenizer.decode(alone)
        length = int(mel.mel_len_B[0])
        assert length == int(mels.mel_len_B[item])
        torch.testing.assert_close(
            mels.refined_BMT[item, :, :length], mel.refined_BMT[0, :, :length], atol=1e-4, rtol=1e-4
        )
