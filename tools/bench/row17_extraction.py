"""Codes of audio shards, flac to code shard, against the same encoder one clip at a time, padded to 30 s."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from common import compare, speech_like

from omniaudio.cli.extract import extract
from omniaudio.cli.main import compose
from omniaudio.config import build
from omniaudio.data.shards import ShardReader, ShardWriter, load_npy
from omniaudio.frontend.audio import encode_audio, read_audio
from omniaudio.training.artifacts import load_module, save_module

folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
node = compose("train", ["experiment=baichuan_audio/tokenizer", "scale=mini"])["tokenizer"]
fresh = build(node)
save_module(folder / "tokenizer", fresh.state_dict(), node, {})
with ShardWriter(folder / "shards", "train") as writer:
    whole = torch.randn(480000, generator=torch.Generator().manual_seed(1)) * 0.1  # 30 s: nothing is padded
    for i, wave in enumerate([*speech_like(24, 6.0), whole]):
        facts = {"num_samples": len(wave), "sample_rate_hz": 16000, "text": "", "language": "en"}
        writer.write(f"clip-{i}", {"flac": encode_audio(wave.numpy(), 16000)}, facts)
config = {
    "num_threads": 1, "tokenizer": str(folder / "tokenizer"), "device": "cpu",
    "shards_dir": str(folder / "shards"), "batch_size": 8, "splits": ["train"],
    "executor": {"_target_": "omniaudio.corpus.build.executors.LocalProcesses"},
}  # fmt: skip


def codes_of(name: str) -> list[torch.Tensor]:
    reader = ShardReader(folder / name, "train")
    return [
        torch.from_numpy(load_npy(reader.read(i)["codes.npy"]).astype("int64")) for i in range(len(reader))
    ]


def ours() -> list[torch.Tensor]:
    shutil.rmtree(folder / "ours", ignore_errors=True)  # or nothing is left to do
    extract(config, folder / "ours")
    return codes_of("ours")


@torch.inference_mode()
def peer() -> list[torch.Tensor]:
    tokenizer = load_module(config["tokenizer"])
    reader, codes = ShardReader(folder / "shards", "train"), []
    for i in range(len(reader)):
        wav_N = torch.from_numpy(read_audio(reader.read(i)["flac"]))
        padded_BN = torch.nn.functional.pad(wav_N, (0, 480000 - len(wav_N)))[None]
        length = int(tokenizer.num_frames(tokenizer.mel_spec.num_frames(torch.tensor([len(wav_N)])))[0])
        codes.append(tokenizer.encode(padded_BN, torch.tensor([480000])).codes_BSK[0, :length])
    return codes


def same(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> str:
    """The peer's encoder hears the padding, so only the clip of 30 s must have the same codes."""
    lengths = [(len(m), len(t)) for m, t in zip(mine, theirs, strict=True) if len(m) != len(t)]
    share = float((mine[-1] == theirs[-1]).float().mean())
    return (
        f"frames {lengths[:3]}"
        if lengths
        else ""
        if share == 1
        else f"{share:.1%} of the codes of 30 s agree"
    )


compare("17 extraction, flac to codes", ours, peer, same, "padded to 30 s, one by one", 3.0, "rows 1 + 9")
