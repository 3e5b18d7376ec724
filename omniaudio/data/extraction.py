"""Code extraction in jobs: each shard of audio becomes a shard of codes, whoever does it and however often it stops.

A folder of codes under construction holds ``jobs/<number>/``: the codes of one audio shard, and ``job.json``, written
last. A job that is done is never done again; when all are, their shards become the splits of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.corpus.build.pipeline import DONE, Job
from omniaudio.data.index import Listing, link_shard, remove_listing, write_listing
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
from omniaudio.data.steps import pad, readable
from omniaudio.errors import UserError
from omniaudio.files import user_os_errors, write_whole
from omniaudio.frontend.audio import read_audio


def jobs_of(shards_dir: str | Path, splits: Sequence[str]) -> list[Job]:
    """A job for every shard of audio."""
    sources = [
        {"split": split, "shard": number}
        for split in splits
        for number in range(len(Listing(Path(shards_dir), split).shards))
    ]
    return [Job(number, (source,)) for number, source in enumerate(sources)]


class CodeExtraction:
    """What an executor builds once in every process: writes the codes of the shards that it is given.

    Args:
        tokenizer: folder of the trained tokenizer.
        shards_dir: audio shards.
        batch_size: clips of similar length side by side; the codes do not depend on it.
        device: of the tokenizer.
        num_threads: of torch; null takes what the executor gives.
    """

    def __init__(
        self,
        tokenizer: str,
        shards_dir: str,
        batch_size: int,
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        self.folder, self.shards_dir, self.batch_size = tokenizer, shards_dir, batch_size
        self.device, self.num_threads = device, num_threads
        self._tokenizer: Any = None
        self._readers: dict[str, ShardReader] = {}

    def run(self, job: Job, folder: Path) -> None:
        """Do a job, unless it is done; what a broken-off try left is removed."""
        home = job.begun(folder)
        if home is None:
            return
        (source,) = job.sources
        write_whole(home / DONE, json.dumps(self._extract(source["split"], source["shard"], home)))

    def _extract(self, split: str, shard: int, home: Path) -> dict[str, Any]:
        tokenizer, reader = self._loaded(), self._reader(split)
        counts = [facts.num_entries for facts in reader.listing.shards]
        items = np.arange(counts[shard]) + sum(counts[:shard])
        order = items[np.argsort(reader.column("num_samples")[items], kind="stable")].tolist()
        codes: dict[int, np.ndarray] = {}
        damaged: list[str] = []
        for start in range(0, len(order), self.batch_size):
            found, lost = self._codes(tokenizer, reader, order[start : start + self.batch_size])
            codes.update(found)
            damaged += lost
        with ShardWriter(home, split, fingerprint=tokenizer.fingerprint()) as writer:
            for i, codes_SK in sorted(codes.items()):  # in the order of the audio
                entry = reader.entries[i]
                facts = {**entry.facts, "num_frames": len(codes_SK)}
                writer.write(entry.key, {"codes.npy": dump_npy(codes_SK)}, facts)
        return {"clips": len(codes), "frames": sum(map(len, codes.values())), "damaged": damaged}

    def _codes(
        self, tokenizer: Any, reader: ShardReader, group: Sequence[int]
    ) -> tuple[dict[int, np.ndarray], list[str]]:
        """Codes of clips by position, and a line for each damaged one."""
        import torch

        def read(i: int) -> tuple[int, np.ndarray]:
            return i, read_audio(reader.member(i, "flac"), sample_rate_hz=tokenizer.sample_rate_hz)

        found, damaged = readable(read, group)
        if not found:
            return {}, damaged
        wav_BN, num_samples_B = pad([wav_N for _, wav_N in found])
        with torch.inference_mode():
            out = tokenizer.encode(wav_BN.to(self.device), num_samples_B.to(self.device))
        rows = zip(found, out.codes_BSK.cpu(), out.num_frames_B.tolist(), strict=True)
        return {i: codes_SK[:num].numpy().astype(np.uint16) for (i, _), codes_SK, num in rows}, damaged

    def _loaded(self) -> Any:
        if self._tokenizer is None:
            import torch

            from omniaudio.training.artifacts import load_module

            if self.num_threads:
                torch.set_num_threads(self.num_threads)
            tokenizer: Any = load_module(self.folder, self.device)
            if max(tokenizer.codebook_sizes) > np.iinfo(np.uint16).max + 1:
                raise UserError(
                    f"{self.folder}: a book of {max(tokenizer.codebook_sizes)} codes; shards hold 65536"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def _reader(self, split: str) -> ShardReader:
        if split not in self._readers:
            self._readers[split] = ShardReader(self.shards_dir, split)
        return self._readers[split]


def join_codes(folder: Path, jobs: Sequence[Job], splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Make one split of the jobs' shards each; returns clips, frames and damaged by split: see ``join_shards``."""
    return join_shards(folder, jobs, {split: {"clips": 0, "frames": 0, "damaged": []} for split in splits})


def join_shards(
    folder: Path, jobs: Sequence[Job], told: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Make one split of the jobs' shards each.

    Args:
        folder: of the jobs, and of the splits.
        told: by split what nothing at all comes to; what the jobs have told is added to it.

    Raises:
        UserError: a job is not done.
    """
    names: dict[str, list[str]] = {split: [] for split in told}
    with user_os_errors(folder):
        for split in told:
            remove_listing(folder, split)
            for path in (*folder.glob(f"{split}-*.tar"), *folder.glob(f"{split}-*.index.jsonl")):
                path.unlink()
        for job in jobs:
            home, split = folder / "jobs" / job.name, job.sources[0]["split"]
            if not (home / DONE).is_file():
                raise UserError(f"{home}: this job is not done; the same command goes on from here")
            for name, value in json.loads((home / DONE).read_text("utf-8")).items():
                told[split][name] = told[split][name] + value if name in told[split] else value
            for shard in Listing(home, split).shards:
                names[split].append(f"{split}-{len(names[split]):06d}")
                link_shard(home / f"{shard.name}.tar", folder / f"{names[split][-1]}.tar")
        for split in told:
            write_listing(folder, split, names[split])
    return told
