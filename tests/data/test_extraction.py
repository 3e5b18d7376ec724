import shutil
from pathlib import Path

import numpy as np
import pytest

from omniaudio.corpus.build.executors import LocalProcesses
from omniaudio.data.extraction import CodeExtraction, join_codes, jobs_of
from omniaudio.data.shards import ShardReader, ShardWriter, load_npy
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio

RATE = 16_000
SPLITS = ("train", "dev")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Seven shards of clips of different lengths."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for split, number in (("train", 9), ("dev", 2)):
        with ShardWriter(folder, split, max_bytes=60_000) as writer:
            for i in range(number):
                wav_N = rng.uniform(-0.3, 0.3, int(RATE * (0.4 + 0.2 * (i % 4)))).astype(np.float32)
                facts = {"sample_rate_hz": RATE, "num_samples": len(wav_N), "text": f"clip {i}", "language": "en"}
                writer.write(f"{split}-{i}", {"flac": encode_audio(wav_N, RATE)}, facts)
    assert len(ShardReader(folder, "train").shards) > 3
    return folder


@pytest.fixture(scope="module")
def make(tiny_chain, audio):
    def make(**changes):
        words = {"tokenizer": str(tiny_chain / "tokenizer" / "final" / "tokenizer"), "shards_dir": str(audio)}
        return {**words, "batch_size": 3, "num_threads": 1, **changes}

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(make, audio, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    jobs, extraction = jobs_of(audio, SPLITS), CodeExtraction(**make())
    for job in jobs:
        extraction.run(job, folder)
    told = join_codes(folder, jobs, SPLITS)
    shutil.rmtree(folder / "jobs")
    return folder, told


def test_every_clip_has_its_codes_in_the_order_of_the_audio(whole, audio):
    folder, told = whole
    for split in SPLITS:
        codes, sound = ShardReader(folder, split), ShardReader(audio, split)
        codes.verify()
        assert len(codes.shards) == len(sound.shards)
        assert [e.key for e in codes.entries] == [e.key for e in sound.entries]
        frames = [len(load_npy(codes.member(i, "codes.npy"))) for i in range(len(codes))]
        assert frames == [e.facts["num_frames"] for e in codes.entries]
        assert told[split] == {"clips": len(sound), "frames": sum(frames), "damaged": []}


def test_what_is_done_is_not_done_again_and_batches_change_nothing(whole, make, audio, tmp_path, monkeypatch):
    jobs, extraction = jobs_of(audio, SPLITS), CodeExtraction(**make(batch_size=1))
    for job in jobs[:2]:
        extraction.run(job, tmp_path)
    half = tmp_path / "jobs" / jobs[2].name
    half.mkdir()
    (half / "train-000000.tar").write_bytes(b"broken off")
    with pytest.raises(UserError, match="000002: this job is not done; the same command goes on"):
        join_codes(tmp_path, jobs, SPLITS)
    done = []
    original = CodeExtraction._extract
    monkeypatch.setattr(
        CodeExtraction, "_extract", lambda self, *words: done.append(words[:2]) or original(self, *words)
    )
    for job in reversed(jobs):
        CodeExtraction(**make()).run(job, tmp_path)
    assert len(done) == len(jobs) - 2
    join_codes(tmp_path, jobs, SPLITS)
    again = join_codes(tmp_path, jobs, SPLITS)
    shutil.rmtree(tmp_path / "jobs")
    assert contents(tmp_path) == contents(whole[0])
    assert again == whole[1]


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(whole, make, audio, tmp_path):
    jobs = jobs_of(audio, SPLITS)
    node = {"_target_": "omniaudio.data.extraction.CodeExtraction", **make()}
    LocalProcesses(2).run(node, tmp_path, jobs)
    join_codes(tmp_path, jobs, SPLITS)
    shutil.rmtree(tmp_path / "jobs")
    assert contents(tmp_path) == contents(whole[0])


def test_a_damaged_clip_alone_in_its_batch_is_left_out_too(make, audio, tmp_path):
    shutil.copytree(audio, tmp_path / "audio")
    reader = ShardReader(tmp_path / "audio", "dev")
    entry = reader.entries[0]
    tar = reader.shards[entry.shard]
    content = bytearray(tar.read_bytes())
    content[entry.members["flac"].offset + 99] ^= 1
    tar.write_bytes(content)
    jobs = jobs_of(tmp_path / "audio", ["dev"])
    extraction = CodeExtraction(**make(batch_size=1, shards_dir=str(tmp_path / "audio")))
    for job in jobs:
        extraction.run(job, tmp_path / "codes")
    told = join_codes(tmp_path / "codes", jobs, ["dev"])["dev"]
    assert told["clips"] == 1 and "dev-0.flac" in told["damaged"][0]
    assert [e.key for e in ShardReader(tmp_path / "codes", "dev").entries] == ["dev-1"]
