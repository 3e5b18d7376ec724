"""Code shards, codes and text decoded: ours in shuffled order, webdataset's in sequence."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import webdataset
from common import compare

from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy, load_npy

NUM_CLIPS = 5000

with tempfile.TemporaryDirectory() as name:
    folder, rng = Path(name), np.random.default_rng(0)
    with ShardWriter(folder, "train") as writer:
        for i in range(NUM_CLIPS):
            codes = rng.integers(1024, size=(int(rng.integers(20, 160)), 8)).astype(np.uint16)
            facts = {"num_frames": len(codes), "text": "some words that were said " * 3, "language": "en"}
            writer.write(f"clip-{i}", {"codes.npy": dump_npy(codes)}, facts)
    urls = sorted(map(str, folder.glob("*.tar")))

    def ours() -> tuple[int, int]:
        reader, total, characters = ShardReader(folder, "train"), 0, 0
        for i in rng.permutation(len(reader)).tolist():
            total += load_npy(reader.member(i, "codes.npy"))[-1, -1].item()
            characters += len(reader.entries[i].facts["text"])
        return total, characters

    def peer() -> tuple[int, int]:
        total = characters = 0
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
            total += sample["codes.npy"][-1, -1].item()
            characters += len(sample["json"]["text"])
        return total, characters

    compare(
        "3 code shards, decoded (ours shuffled and checked)", ours, peer,
        lambda mine, other: "" if mine == other else f"{mine}, {other}", "webdataset .decode()", 20.0, "memory copy",
    )  # fmt: skip
