"""What may go wrong with data, and what must happen then: one test a promise of the README's table of faults."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import time
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch import distributed, multiprocessing

from omniaudio.corpus.checks import Checks
from omniaudio.corpus.download import unpack
from omniaudio.corpus.folder import AudioFolder
from omniaudio.corpus.items import RawItem
from omniaudio.corpus.prepare import Plan, prepare
from omniaudio.corpus.texts import NoTexts, TextFile
from omniaudio.data.document_steps import TextSteps
from omniaudio.data.mixture import MixturePlan, OneByOne
from omniaudio.data.planning import PooledPlan
from omniaudio.data.shards import ShardReader, ShardWriter
from omniaudio.data.steps import StepStream, WaveSteps
from omniaudio.data.texts import cut_texts
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio, read_audio
from omniaudio.frontend.text import TextTokenizer
from omniaudio.sequence.vocab import TokenSpace
from tests.corpus.conftest import DEFAULTS
from tests.corpus.make_audio import tone, write_audio

RATE = 16_000
TEN_MILLION = 10_000_000


def checks_with(**changes):
    return Checks(**{**DEFAULTS, **changes})


def item(path, **changes):
    known = {"key": "a", "path": path, "text": "hello you", "language": "en", "speaker": "s"}
    return RawItem(**{**known, **changes})


def write_clips(folder, seconds, max_bytes=60_000):
    """A split of clips as long as told, in shards of a few."""
    with ShardWriter(folder, "train", max_bytes=max_bytes) as writer:
        for i, sec in enumerate(seconds):
            wav_N = np.random.default_rng(i).uniform(-0.3, 0.3, int(sec * RATE)).astype(np.float32)
            facts = {"sample_rate_hz": RATE, "num_samples": len(wav_N), "text": f"clip {i}", "language": "en"}
            writer.write(
                f"c{i}",
                {"flac": encode_audio(wav_N, RATE)},
                {**facts, "speaker": "s", "corpus": "c", "tags": ["one"]},
            )
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"), [0.3 + 0.1 * (i % 7) for i in range(31)])


def wave_steps(shards, **settings):
    return WaveSteps(shards, "train", RATE, **{"batch_sec": 1.6, "crop_sec": 1.0, "seed": 0, **settings})


# -- uneven data


def _meet_at_every_batch(rank: int, folder: str, meeting: str, counts: Any) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=12)
    )
    seen = 0
    for batch in StepStream(wave_steps(folder), 0, 13, rank, 2):
        distributed.all_reduce(torch.tensor([len(batch.keys)]))  # waits for the other process
        seen += len(batch.keys) > 0
    counts[rank] = seen
    distributed.destroy_process_group()


def test_uneven_data_never_hang_two_processes(shards, tmp_path):
    """31 clips, one to five a step, over 13 steps: both processes get 13 batches, none of them empty."""
    assert any(len(wave_steps(shards).plan[step]) % 2 for step in range(13))
    counts = multiprocessing.get_context("spawn").Array("i", 2)
    multiprocessing.spawn(
        _meet_at_every_batch, (str(shards), str(tmp_path / "meeting"), counts), nprocs=2, join=True
    )
    assert list(counts) == [13, 13]


def test_fewer_shards_than_readers_work(tmp_path):
    source = wave_steps(write_clips(tmp_path, [0.4] * 9, max_bytes=1 << 30), batch_sec=0.8, crop_sec=0.8)
    assert len(source.reader.shards) == 1
    keys = [
        key
        for rank in range(4)
        for batch in torch.utils.data.DataLoader(
            StepStream(source, 0, 5, rank, 4), batch_size=None, num_workers=2
        )
        for key in batch.keys
    ]
    assert {f"c{i}" for i in range(9)} == set(keys)


# -- resume


@pytest.mark.parametrize("kind", ["clips", "documents"])
def test_ten_million_samples_go_on_within_seconds(kind):
    def make():
        rng = np.random.default_rng(0)
        if kind == "clips":
            return PooledPlan(rng.uniform(1, 30, TEN_MILLION).astype(np.float32), 3600, seed=0)
        return MixturePlan(OneByOne(rng.integers(20, 400, TEN_MILLION)), {"asr": 1}, 1 << 17)

    plan = make()
    memo = json.loads(json.dumps(plan.memo(64)))
    again, begin = make(), time.perf_counter()
    assert again.recall(memo) and again[64] == plan[64]
    assert time.perf_counter() - begin < 5.0


# -- damage


def changed(path, old: bytes, new: bytes):
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("train-000000.index.jsonl", b'"num_samples": 4800', b'"num_samples": 4801'),
        ("train-000000.index.jsonl", b'"text": "clip 0"', b'"text": "clip 9"'),
        ("train-000000.index.jsonl", b'"tags": ["one"]', b'"tags": ["two"]'),  # which no column has
        ("train.columns/num_samples.bin", np.float64(4800).tobytes(), np.float64(4801).tobytes()),
    ],
)
def test_a_changed_index_or_column_is_found(tmp_path, name, old, new):
    write_clips(tmp_path, [0.3, 0.4])
    assert ShardReader(tmp_path, "train").verify() == 2
    changed(tmp_path / name, old, new)
    with pytest.raises(UserError, match="make the shards again"):
        ShardReader(tmp_path, "train").verify()


def test_a_column_that_only_other_shards_need_is_read_too(tmp_path):
    with ShardWriter(tmp_path, "train", max_bytes=1) as writer:
        writer.write("a", {"txt": b"x"}, {"place": 1})
        writer.write("b", {"txt": b"x"}, {"place": 2, "band_hz": 4000})
    path = tmp_path / "train.columns" / "band_hz.bin"
    assert ShardReader(tmp_path, "train").verify() == 2
    path.write_bytes(np.array([3000.0, 4000.0]).tobytes())
    with pytest.raises(UserError, match="band_hz.bin: not what train-000000"):
        ShardReader(tmp_path, "train").verify()


def flip_a_byte(folder, position):
    """In the sound of a sample."""
    entry = ShardReader(folder, "train").entries[position]
    path = folder / f"train-{entry.shard:06d}.tar"
    content = bytearray(path.read_bytes())
    content[entry.members["flac"].offset + 200] ^= 1
    path.write_bytes(content)
    return entry.key


def test_a_flipped_byte_leaves_its_sample_out_and_is_counted(tmp_path):
    position = 5
    key = flip_a_byte(write_clips(tmp_path, [0.4] * 9), position)
    source = wave_steps(tmp_path)
    whole = {f"c{i}" for i in range(9)}
    batches = [source.batch(step, 0, 1) for step in range(3)]
    assert {k for batch in batches for k in batch.keys} == whole - {key}
    assert all(batch.wav_BN.shape[0] == len(batch.keys) == len(batch.texts) for batch in batches)
    (line,) = {line for batch in batches for line in batch.damaged}
    assert f"member '{key}.flac': expected" in line and "found" in line
    alone = wave_steps(tmp_path, batch_sec=1.0)  # two clips a step
    step = next(
        step for step in range(5) if any(source.reader.entries[i].key == key for i in alone.plan[step])
    )
    part = next(part for part in (0, 1) if alone.reader.entries[alone.plan[step][part]].key == key)
    stands_in = alone.batch(step, part, 2)
    assert stands_in.keys == alone.batch(step, 1 - part, 2).keys and len(stands_in.damaged) == 1, (
        "no rank is empty"
    )
    (other,) = (i for i in alone.plan[step] if i != position)
    flip_a_byte(tmp_path, other)
    with pytest.raises(UserError, match="all 2 samples of a step are damaged, the first: .*flac"):
        wave_steps(tmp_path, batch_sec=1.0).batch(step, part, 2)


def test_a_member_that_is_not_there_is_named(shards):
    with pytest.raises(UserError, match=r"sample 'c0' has no 'codes\.npy', only"):
        ShardReader(shards, "train").member(0, "codes.npy")


def test_members_in_another_order_are_noticed(tmp_path):
    reader = ShardReader(write_clips(tmp_path, [0.3, 0.35]), "train")
    (path,) = reader.shards
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in reversed(members):
            tar.addfile(member, io.BytesIO(content))
    again = (
        ShardReader(tmp_path, "train") if path.stat().st_size == reader.listing.shards[0].num_bytes else None
    )
    with pytest.raises(UserError, match=str(path)):
        (again or ShardReader(tmp_path, "train")).read(0)


def test_a_tar_of_others_has_no_index_and_is_not_guessed(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        writer.write({"__key__": "a", "txt": "x"})
    with pytest.raises(UserError, match="not there or was not finished"):
        ShardReader(tmp_path, "train")


# -- recordings and texts


def test_a_cut_wav_and_a_wrong_duration_are_refused(tmp_path):
    path = tmp_path / "whole.wav"
    write_audio(path, tone(1.0))
    (tmp_path / "cut.wav").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    checks = checks_with()
    assert checks.check(item(path)).reason is None
    assert checks.check(item(tmp_path / "cut.wav")).reason == "cut off"
    with pytest.raises(UserError, match="cut off: 32000 bytes of sound by its head, 159"):
        read_audio(tmp_path / "cut.wav")
    assert checks.check(item(path, duration_sec=1.05)).reason is None, "a rounded time is none"
    assert checks.check(item(path, duration_sec=5.0)).reason == "shorter than listed"
    assert checks.check(item(path, start_sec=0.5, duration_sec=0.9)).reason == "shorter than listed"


def test_a_line_of_a_megabyte_is_cut_and_nothing_of_it_lost(tmp_path):
    line = " ".join(f"word{i}" for i in range(120_000))
    assert len(line) > 1_000_000
    (tmp_path / "t.txt").write_text(f"short\n{line}\n")
    TextTokenizer.train([line[:20_000]], 400, tmp_path / "tokenizer.json")
    source = TextSteps(TokenSpace(400), tmp_path, tmp_path / "t.txt", 4096, max_positions=512)
    assert (
        max(map(len, source.pieces)) == 511
        and source.decode(list(itertools.chain(*source.pieces))) == f"short{line}"
    )


def test_long_texts_are_cut_at_spaces_and_nothing_of_them_lost():
    texts = ["short", "one two three four", "x" * 25, "é" * 12, "", "ab " * 9]
    pieces = list(cut_texts(texts, 10))
    assert max(len(piece.encode()) for piece in pieces) <= 10
    assert pieces[:3] == ["short", "one two", "three four"]
    assert "".join(pieces).replace(" ", "") == "".join(texts).replace(" ", "")
    assert list(cut_texts(["word " * 300_000], 4095))[-1].startswith("word")


def test_control_characters_of_a_text_become_spaces(tmp_path):
    (tmp_path / "t.txt").write_text("one\x00two\x1bthree\u2028four a\u200db\n", "utf-8")
    assert TextFile(str(tmp_path / "t.txt")).texts() == ["one two three four a\u200db"]


def test_duplicates_missing_files_and_paths_outside_are_counted(tmp_path):
    rows = ["gone\tno file\n", "../z\toutside\n", "a0\tsaid twice\n"]
    write_audio(tmp_path / "z.wav", tone(0.5))
    for i in range(30):
        write_audio(tmp_path / "in" / f"a{i}.wav", tone(0.5))
        rows.append(f"a{i}\ttext {i}\n")
    (tmp_path / "in" / "transcripts.tsv").write_text("".join(rows))
    plan = Plan(
        checks=checks_with(max_bad_share=0.5), split={"train": 0.6, "dev": 0.2, "test": 0.2}, text_source=NoTexts(),
        text_dev_share=0.1, max_shard_bytes=1 << 20, num_workers=0, key="k",
    )  # fmt: skip
    report = prepare(AudioFolder(str(tmp_path / "in"), "en"), tmp_path / "out", plan)
    assert report["bad"] == {"missing file": 1, "path outside the folder": 1, "duplicate key": 1}
    assert report["num_good"] == 30


# -- hostile files

EVIL = b"cos\nsystem\n(S'touch %s'\ntR."
"""Runs a command where it is unpickled."""


def test_code_in_a_shard_is_refused_by_name_and_never_run(tmp_path):
    sentinel = tmp_path / "ran"
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("a", {"flac": EVIL % str(sentinel).encode()}, {"num_samples": 1})
    changed(tmp_path / "train-000000.index.jsonl", b'"flac"', b'"pkl" ')
    with pytest.raises(UserError, match="refused"):
        ShardReader(tmp_path, "train").read(0)
    assert not sentinel.exists()


def test_an_address_that_is_a_command_is_a_file_that_is_not_there(tmp_path):
    sentinel = tmp_path / "ran"
    assert checks_with().check(item(f"pipe:touch {sentinel}")).reason == "missing file"
    with pytest.raises(UserError, match="not there"):
        ShardReader(f"pipe:touch {sentinel}", "train")
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "../.."), (tarfile.LNKTYPE, "../../evil"),
        (tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, ""),
    ],
)  # fmt: skip
def test_links_and_devices_in_an_archive_are_refused(tmp_path, kind, target):
    member = tarfile.TarInfo("in/link")
    member.type, member.linkname = kind, target
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="refused"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not [path for path in tmp_path.rglob("link") if path.is_symlink() or path.exists()]


# -- memory


def test_no_batch_is_larger_than_its_budget_and_the_first_is_the_largest(shards):
    sizes = []
    source = wave_steps(shards)
    for step in range(24):
        batch = source.batch(step, 0, 1)
        assert batch.wav_BN.numel() <= 1.6 * RATE + len(batch.keys)
        sizes.append(batch.wav_BN.numel())
    in_window = len(source.plan.epoch(0))
    assert sizes[0] == max(sizes[:in_window])
