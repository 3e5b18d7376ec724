"""Audio shards, 500 MB of FLAC bytes: ours in shuffled order with every checksum verified, webdataset's in sequence."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import webdataset
from common import compare

from omniaudio.data.shards import ShardReader, ShardWriter

NUM_CLIPS, MEAN_BYTES = 4000, 125_000  # 7.5 s at 16 kHz as FLAC

with tempfile.TemporaryDirectory() as name:
    folder, rng = Path(name), np.random.default_rng(0)
    with ShardWriter(folder, "train", max_bytes=64 << 20) as writer:
        for i in range(NUM_CLIPS):
            content = rng.bytes(int(rng.uniform(0.2, 1.8) * MEAN_BYTES))  # like FLAC, nothing to compress
            writer.write(f"clip-{i}", {"flac": content}, {"num_samples": 120_000, "text": "words"})
    reader = ShardReader(folder, "train")
    urls = sorted(map(str, folder.glob("*.tar")))

    def ours() -> tuple[int, int]:
        sizes = [len(reader.member(i, "flac")) for i in rng.permutation(len(reader)).tolist()]
        return len(sizes), sum(sizes)

    def peer() -> tuple[int, int]:
        sizes = [len(sample["flac"]) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
        return len(sizes), sum(sizes)

    compare(
        "2 audio shards, 500 MB (ours shuffled and checked)", ours, peer,
        lambda mine, other: "" if mine == other else f"{mine}, {other}", "webdataset in sequence", 6.0, "memory copy",
    )  # fmt: skip
