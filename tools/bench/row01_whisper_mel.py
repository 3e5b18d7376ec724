"""Whisper log-mel of 60 utterances at their true length, against transformers' extractor, which pads to 30 s."""

from __future__ import annotations

import torch
from common import close, compare, speech_like
from transformers import WhisperFeatureExtractor

from omniaudio.frontend.mel import LogMel, MelSpec

SPEC = MelSpec(16000, 400, 160, 400, 80, 0.0, 8000.0, "whisper", True)

waves = speech_like(60, 7.5)
arrays = [wave.numpy() for wave in waves]
length_B = torch.tensor([len(wave) for wave in waves])
log_mel, extractor = LogMel(SPEC), WhisperFeatureExtractor(feature_size=80)


def ours() -> list[torch.Tensor]:
    mels = []
    order = length_B.argsort()
    for part in order.split(10):  # similar lengths side by side
        wav_BN = torch.nn.utils.rnn.pad_sequence([waves[i] for i in part], batch_first=True)
        mel_BMT, mel_len_B = log_mel(wav_BN, length_B[part])
        mels += [mel_MT[:, :frames] for mel_MT, frames in zip(mel_BMT, mel_len_B.tolist(), strict=True)]
    return [mels[i] for i in order.argsort()]


def peer() -> torch.Tensor:
    return extractor(arrays, sampling_rate=16000, return_tensors="pt")["input_features"]


def same(mine: list[torch.Tensor], theirs: torch.Tensor) -> str:
    return next(
        (bad for m, t in zip(mine, theirs, strict=True) if (bad := close(m, t[:, : m.shape[1]], 2e-4))), ""
    )


compare("1 Whisper log-mel, 60 utterances", ours, peer, same, "transformers", 4.0, "rfft")
