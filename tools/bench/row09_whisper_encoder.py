"""Whisper-base's encoder over utterances of mixed lengths, against transformers, padded to 30 s."""

from __future__ import annotations

import tempfile

import torch
from common import close, compare
from transformers import WhisperConfig, WhisperModel

from omniaudio.data.planning import PooledPlan
from omniaudio.encoders.whisper import WhisperEncoder

torch.manual_seed(0)
config = WhisperConfig(
    d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048,
    decoder_layers=1, decoder_attention_heads=8, decoder_ffn_dim=64,
)  # fmt: skip
theirs = WhisperModel(config).eval()
with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    encoder = WhisperEncoder(80, 512, 6, 8, 2048, pretrained=folder).eval()
frames_B = (100 * 7.5 * (0.25 + 1.5 * torch.rand(12))).long()
frames_B[-1] = 3000  # of the full length both must give the same
mels = [torch.randn(80, int(frames)) for frames in frames_B]
padded_BMT = torch.stack([torch.nn.functional.pad(mel, (0, 3000 - mel.shape[1])) for mel in mels])
steps = PooledPlan(frames_B.tolist(), budget=3000, seed=0, shuffle=False).epoch(
    0
)  # similar lengths side by side


@torch.no_grad()
def ours() -> torch.Tensor:
    states = {}
    for part in steps:
        batch_BTM = torch.nn.utils.rnn.pad_sequence([mels[i].T for i in part], batch_first=True)
        hidden_BTD, _ = encoder(batch_BTM.transpose(1, 2), frames_B[part])
        states.update(zip(part, hidden_BTD, strict=True))
    return states[len(mels) - 1]


@torch.no_grad()
def peer() -> torch.Tensor:
    return theirs.encoder(padded_BMT).last_hidden_state[-1]


padding = 3000 * len(mels) / int(frames_B.sum())  # frames of the peer for one of ours; attention saves more
compare(
    "9 Whisper encoder, mixed lengths (equal on the clip of 30 s)", ours, peer,
    lambda mine, other: close(mine, other, 1e-4), "transformers", 0.9 * padding, f"frames: {padding:.1f}",
)  # fmt: skip
