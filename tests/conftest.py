"""Shared by all tests: a tiny corpus, and the whole chain trained on it for two steps a stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and "NUMBA_CACHE_DIR" in os.environ:
    os.environ["NUMBA_CACHE_DIR"] += f"/{worker}"  # what two processes write at once crashes them

STAGES = ("text_lm", "tokenizer", "codes", "pretrain_stage1", "pretrain_stage2", "sft", "flow", "vocoder")
RATE_HZ = 16000


@pytest.fixture(autouse=True, scope="session")
def loud_branches() -> Iterator[None]:
    """Modules that a test builds do something in every layer, as trained ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omniaudio.init.BRANCH_GAIN", 1.0)
        yield


def write_corpus(folder: Path) -> Path:
    """Audio shards and texts of a few seconds of voiced noise, as ``omniaudio prepare`` leaves them."""
    from omniaudio.data.shards import ShardWriter
    from omniaudio.frontend.audio import encode_audio

    rng = np.random.default_rng(0)
    words = [
        "please",
        "hold",
        "the",
        "line",
        "while",
        "we",
        "connect",
        "your",
        "call",
        "to",
        "the",
        "next",
        "agent",
    ]
    for split, num_clips in (("train", 12), ("dev", 3), ("test", 3)):
        with ShardWriter(folder / "shards", split) as writer:
            for i in range(num_clips):
                num_samples = int(rng.integers(RATE_HZ, 2 * RATE_HZ))
                tone = np.sin(np.arange(num_samples) * (0.05 + 0.01 * i)) * np.hanning(num_samples)
                wav = 0.2 * tone + 0.02 * rng.standard_normal(num_samples)
                facts = {
                    "num_samples": num_samples,
                    "sample_rate_hz": RATE_HZ,
                    "text": " ".join(rng.choice(words, 4)),
                    "language": "en",
                    "speaker": f"voice-{i % 2}",
                    "corpus": "tiny",
                }
                writer.write(f"{split}-{i}", {"flac": encode_audio(wav.astype(np.float32), RATE_HZ)}, facts)
    (folder / "texts").mkdir()
    for name, count in (("train", 60), ("dev", 10)):
        lines = [" ".join(rng.choice(words, 8)) for _ in range(count)]
        (folder / "texts" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "ATTRIBUTION").write_text("tiny: made by the tests\n")
    return folder


def train_words(stage: str, data_dir: Path, exp_dir: Path, *more: str) -> list[str]:
    """Command-line words of a training at tiny scale."""
    return [
        f"experiment=baichuan_audio/{stage}", "scale=tiny", f"data_dir={data_dir}", f"exp_dir={exp_dir}",
        "num_threads=1", "tracker=none", *more,
    ]  # fmt: skip


def run_stage(stage: str, data_dir: Path, exp_dir: Path, *more: str) -> None:
    """Run one stage in this process."""
    from omniaudio.cli import extract, train
    from omniaudio.cli.main import compose

    if stage == "codes":
        words = [
            "system=baichuan_audio",
            "scale=tiny",
            f"data_dir={data_dir}",
            f"exp_dir={exp_dir}",
            "num_threads=1",
        ]
        extract.main(compose("extract", words))
    else:
        train.main(compose("train", train_words(stage, data_dir, exp_dir, *more)))


def write_pairs(chain: Path, folder: Path) -> None:
    """Pairs made of the clips of a chain: the chosen reply says the clip again, the rejected one another clip."""
    from omniaudio.data.pairs import Pair, write_pair
    from omniaudio.data.shards import ShardReader, ShardWriter, load_npy

    for split in ("train", "dev"):
        codes = ShardReader(chain / "codes", split)
        with ShardWriter(folder, split, fingerprint=codes.fingerprint) as writer:
            for i, entry in enumerate(codes.entries):
                ours, other = (load_npy(codes.member(j % len(codes), "codes.npy")) for j in (i, i + 1))
                pair = Pair(
                    key=entry.key, language="en", prompt=[{"role": "user", "content": [ours, "again"]}],
                    chosen=[entry.facts["text"], ours], rejected=[entry.facts["text"], other[:6]],
                )  # fmt: skip
                write_pair(writer, pair)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_chain(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exp_dir with every stage trained for two steps."""
    exp_dir = tmp_path_factory.mktemp("exp")
    for stage in STAGES:
        run_stage(stage, tiny_data, exp_dir)
    return exp_dir
