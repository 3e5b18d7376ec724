from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from omniaudio.data.augment import Chain, Noise, Speed
from omniaudio.data.clip_mixture import ClipMixture
from omniaudio.data.shards import ShardWriter, dump_npy
from omniaudio.data.steps import StepStream, WaveSteps, pad
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio

RATE = 16000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with (
        ShardWriter(folder / "audio", "train") as audio,
        ShardWriter(
            folder / "codes", "train", fingerprint={"code_rate_hz": 12.5, "codebook_sizes": [16, 16]}
        ) as codes,
    ):
        for i in range(9):
            num_samples = RATE // 2 + 4000 * i
            wav = 0.1 * rng.standard_normal(num_samples).astype(np.float32)
            facts = {"num_samples": num_samples, "sample_rate_hz": RATE, "text": f"t{i}", "language": "en"}
            narrow = {"band_hz": 4000} if i == 8 else {}
            audio.write(f"clip-{i}", {"flac": encode_audio(wav, RATE)}, {**facts, **narrow})
            if i < 8:
                frames = np.full((num_samples // 1280, 2), i, np.uint16)
                codes.write(
                    f"clip-{i}", {"codes.npy": dump_npy(frames)}, {**facts, "num_frames": len(frames)}
                )
    return folder


def steps(shards: Path, **settings: object) -> WaveSteps:
    arguments = {"split": "train", "sample_rate_hz": RATE, "batch_sec": 4.0, "crop_sec": 1.5, **settings}
    return WaveSteps(shards / "audio", **arguments)  # type: ignore[arg-type]


def planned(source: WaveSteps) -> list[int]:
    return sorted(item for step in source.plan.epoch(0) for item in step)


def keys(batches: object) -> list[list[str]]:
    return [batch.keys for batch in batches]  # type: ignore[attr-defined]


def test_a_crop_keeps_the_text_only_when_whole(shards):
    source = steps(shards)
    for step in range(8):
        batch = source.batch(step, 0, 1)
        for key, text, num in zip(batch.keys, batch.texts, batch.num_samples_B.tolist(), strict=True):
            whole = RATE // 2 + 4000 * int(key[-1]) <= 1.5 * RATE
            assert text == (f"t{key[-1]}" if whole else "")
            assert num <= 1.5 * RATE
        assert batch.wav_BN.shape[1] == max(batch.num_samples_B.tolist())


def test_a_clip_is_asked_for_what_it_has(tmp_path: Path) -> None:
    """Shares of the kinds by their weights, among those that a clip can answer; the same in every run."""
    extra = [{"response": "r"}, {"translation": "e", "continuation": "c"}, {}]
    with ShardWriter(tmp_path / "audio", "train") as audio:
        for i in range(3):
            facts = {"num_samples": RATE, "sample_rate_hz": RATE, "text": "t", "language": "en", **extra[i]}
            audio.write(f"clip-{i}", {"flac": encode_audio(np.full(RATE, 0.1, np.float32), RATE)}, facts)
    weights = {"asr": 2.0, "aqa": 1.0, "s2tt": 1.0, "intlv": 1.0}
    source = steps(tmp_path, batch_sec=3.0, mixture=ClipMixture(weights=weights))
    asked: dict[str, list[tuple[str, str]]] = {}
    for step in range(400):
        batch = source.batch(step, 0, 1)
        for key, kind, text in zip(batch.keys, batch.kinds, batch.texts, strict=True):
            asked.setdefault(key, []).append((kind, text))
    assert set(asked["clip-2"]) == {("asr", "t")}
    assert set(asked["clip-0"]) == {("asr", "t"), ("aqa", "r")}
    assert set(asked["clip-1"]) == {("asr", "t"), ("s2tt", "e"), ("intlv", "c")}
    shares = [asked["clip-1"].count(answer) / 400 for answer in (("asr", "t"), ("s2tt", "e"), ("intlv", "c"))]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    assert (
        steps(tmp_path, batch_sec=3.0, mixture=ClipMixture(weights=weights)).batch(7, 0, 1).kinds
        == source.batch(7, 0, 1).kinds
    )
    assert set(steps(tmp_path, batch_sec=3.0).batch(0, 0, 1).kinds) == {"asr"}



def test_a_batch_tells_where_its_recordings_have_sound(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "audio", "train") as audio:
        for i, more in enumerate(({}, {"band_hz": 4000})):
            facts = {"num_samples": RATE, "sample_rate_hz": RATE, "text": "t", "language": "en", **more}
            audio.write(f"clip-{i}", {"flac": encode_audio(np.full(RATE, 0.1, np.float32), RATE)}, facts)
    batch = steps(tmp_path).batch(0, 0, 1)
    assert batch.band_hz_B is not None
    assert dict(zip(batch.keys, batch.band_hz_B.tolist(), strict=True)) == {"clip-0": 8000, "clip-1": 4000}


def test_narrow_clips_are_left_out_unless_there_are_no_others(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "audio", "train") as audio:
        for i, more in enumerate(({"band_hz": 4000}, {}, {"band_hz": 5000})):
            facts = {"num_samples": RATE, "sample_rate_hz": RATE, "text": f"t{i}", "language": "en", **more}
            wav = np.full(RATE, 0.1 * (i + 1), np.float32)
            audio.write(f"clip-{i}", {"flac": encode_audio(wav, RATE)}, facts)
    batch = steps(tmp_path, min_band_hz=8000.0).batch(0, 0, 1)
    assert batch.keys == ["clip-1"] and batch.texts == ["t1"]
    assert batch.wav_BN.mean() == pytest.approx(0.2, abs=1e-3), "its own sound"
    assert set(steps(tmp_path, min_band_hz=5000.0).batch(0, 0, 1).keys) == {"clip-1", "clip-2"}
    assert planned(steps(tmp_path, min_band_hz=9000.0)) == [0, 1, 2]


def test_the_same_step_gives_the_same_batch(shards):
    one, other = steps(shards), steps(shards)
    other.batch(5, 0, 1)
    assert torch.equal(one.batch(3, 0, 1).wav_BN, other.batch(3, 0, 1).wav_BN)


WEIGHTED = ClipMixture(corpora={"unnamed": 1})


@pytest.mark.parametrize("mixture", [None, WEIGHTED])
@pytest.mark.parametrize(("num_ranks", "workers", "accumulate"), [(1, 2, 1), (2, 0, 1), (2, 2, 1), (1, 0, 2)])
def test_ranks_workers_and_accumulation_share_the_same_global_steps(shards, num_ranks, workers, accumulate, mixture):
    whole = keys(steps(shards, mixture=mixture).batch(step, 0, 1) for step in range(6))
    parts: list[list[list[str]]] = []
    for rank in range(num_ranks):
        source = steps(shards, mixture=mixture)
        stream = StepStream(source, 0, 6 * accumulate, rank, num_ranks, accumulate)
        parts.append(keys(DataLoader(stream, batch_size=None, num_workers=workers)))
    for step, expected in enumerate(whole):
        ours = [
            k for part in parts for keys_ in part[step * accumulate : (step + 1) * accumulate] for k in keys_
        ]
        assert set(ours) == set(expected)


@pytest.mark.parametrize(("workers", "mixture"), [(0, None), (2, None), (2, WEIGHTED)])
def test_a_stream_goes_on_from_any_batch(shards, workers, mixture):
    whole = keys(DataLoader(StepStream(steps(shards, mixture=mixture), 0, 7), batch_size=None))
    rest = keys(
        DataLoader(StepStream(steps(shards, mixture=mixture), 3, 7), batch_size=None, num_workers=workers)
    )
    assert rest == whole[3:]


def test_resampling_and_padding_to_a_least_length(shards):
    batch = steps(shards, sample_rate_hz=24000, min_sec=1.5).batch(0, 0, 1)
    assert batch.sample_rate_hz == 24000
    assert set(batch.num_samples_B.tolist()) == {36000}


def test_codes_come_with_their_crop(shards):
    with pytest.raises(UserError, match="no codes for 'clip-8'"):
        source = steps(shards, codes_dir=shards / "codes", crop_at_start=True)
        [source.batch(step, 0, 1) for step in range(6)]
    source = steps(shards, codes_dir=shards / "codes", crop_at_start=True, min_band_hz=8000.0)
    for step in range(4):
        batch = source.batch(step, 0, 1)
        for i, key in enumerate(batch.keys):
            num = int(batch.codes.num_frames_B[i])
            assert num == min(18, (RATE // 2 + 4000 * int(key[-1])) // 1280)
            assert (batch.codes.codes_BSK[i, :num] == int(key[-1])).all()
            assert (batch.codes.codes_BSK[i, num:] == -1).all()


def test_pad():
    rows, lengths = pad([np.array([1, 2]), np.array([3])], value=-1)
    assert rows.tolist() == [[1, 2], [3, -1]] and lengths.tolist() == [2, 1]


def test_augmented_steps_are_the_same_on_any_rank_and_leave_held_out_data_alone(shards):
    chain = Chain([Speed(0.5, [0.8, 1.25]), Noise(0.5)])
    source, plain = steps(shards, augment=chain), steps(shards)
    assert source.lengths[np.arange(3)] == pytest.approx(
        np.minimum(1.5, 1.25 * plain.lengths[np.arange(3)])
    ), "room for the slower"
    changed = 0
    for step in range(6):
        whole = source.batch(step, 0, 1)
        rows = dict(
            zip(whole.keys, zip(whole.wav_BN, whole.num_samples_B.tolist(), strict=True), strict=True)
        )
        for part in range(2):
            batch = steps(shards, augment=chain).batch(step, part, 2)
            for key, wav_N, num in zip(batch.keys, batch.wav_BN, batch.num_samples_B.tolist(), strict=True):
                assert num == rows[key][1] and torch.equal(wav_N[:num], rows[key][0][:num])
                changed += num != min(RATE // 2 + 4000 * int(key[-1]), 1.5 * RATE)
        assert whole.wav_BN.shape[1] * len(whole.keys) <= 4.0 * RATE + len(whole.keys)
    assert changed
    held_out, bare = steps(shards, augment=chain, seed=None), steps(shards, seed=None)
    assert all(torch.equal(held_out.batch(i, 0, 1).wav_BN, bare.batch(i, 0, 1).wav_BN) for i in range(3))
    tight = steps(shards, augment=Chain([Speed(1.0, [0.5])])).batch(0, 0, 1)
    assert tight.wav_BN.shape[1] <= 1.5 * RATE and "" in tight.texts, (
        "slowed beyond the crop is cut, and has no text"
    )
    with pytest.raises(UserError, match="augment: the codes"):
        steps(shards, augment=chain, codes_dir=shards / "codes")


def test_the_largest_batch_has_the_longest_clip_of_all_windows(shards, monkeypatch):
    """The longest clip is planned late; what is tried at once is as long, with all that a clip may bring."""
    monkeypatch.setattr("omniaudio.data.planning.ShuffledWindows.__init__.__defaults__", (True, 3, 1))
    source = steps(shards, crop_sec=2.4, batch_sec=5.0, codes_dir=shards / "codes")
    longest = [8 in step for step in source.plan.epoch(0)].index(True)
    assert longest > 2 and source.plan.windows.num_windows == 3
    largest, more = source.largest(num_parts=2)
    assert largest.wav_BN.shape == (1, 2.4 * RATE) and set(largest.texts) == {"t7"}, "clip 8 is cropped"
    assert largest.codes.codes_BSK.shape == (1, 30, 2) and largest.codes.codes_BSK.max() < 16
    with_codes = [step for step in range(12) if 8 not in source.plan[step]]
    most = max(source.batch(step, part, 2).wav_BN.numel() for step in with_codes for part in (0, 1))
    assert more.wav_BN.shape[0] == 2 and more.wav_BN.numel() > 2.4 * RATE and most <= more.wav_BN.numel()
    first, second = source.largest(num_parts=1)
    assert first.wav_BN.shape == (2, 2.4 * RATE) and second.wav_BN.shape[0] == 3
    assert 4.9 * RATE < second.wav_BN.numel() <= 5.0 * RATE + 3


def test_a_batch_with_the_most_text_is_among_the_largest(tmp_path):
    """Half a second with long responses: the longest clips, with their texts, hold less."""
    with ShardWriter(tmp_path / "audio", "train") as writer:
        for i in range(40):
            num_samples = RATE // 2 if i % 2 else 2 * RATE
            facts = {"num_samples": num_samples, "sample_rate_hz": RATE, "text": f"{i}", "language": "en"}
            facts |= {"response": "y" * (100 + i)} if i % 2 else {}
            wav = np.full(num_samples, 0.1, np.float32)
            writer.write(f"c{i}", {"flac": encode_audio(wav, RATE)}, facts)
    source = steps(tmp_path, crop_sec=2.0, mixture=ClipMixture(weights={"asr": 1, "aqa": 1}))
    *padded, written = source.largest(num_parts=2)
    assert written.wav_BN.shape == (4, RATE // 2) and written.kinds == ["aqa"] * 4
    assert sorted(written.texts) == [source.reader.entries[i].facts["response"] for i in (33, 35, 37, 39)]
    most = max(sum(map(len, source.batch(s, part, 2).texts)) for s in range(60) for part in (0, 1))
    assert sum(map(len, written.texts)) >= most > max(sum(map(len, batch.texts)) for batch in padded)
    bare = steps(tmp_path, crop_sec=2.0)
    assert [set(map(len, batch.texts)) for batch in bare.largest(2)][2:] == [{2}], "no response"
    cropped = steps(tmp_path, crop_sec=0.4)
    assert len(list(cropped.largest(2))) == len(padded), "no clip is whole, so none has a text"

    path = tmp_path / "audio" / "train.shards.json"
    listing = json.loads(path.read_text())
    listing["columns"] = {name: k for name, k in listing["columns"].items() if not name.endswith("_chars")}
    path.write_text(json.dumps(listing))
    older = steps(tmp_path, crop_sec=2.0, mixture=ClipMixture(weights={"asr": 1, "aqa": 1}))
    assert [len(batch.texts) for batch in older.largest(2)] == [len(batch.texts) for batch in padded]


@pytest.mark.parametrize("gone", [{0}, {8}, {2, 3, 4}, {0, 1, 2, 3, 4, 5, 7}, {1, 3, 5, 7}])
def test_codes_of_clips_behind_gaps_are_found_near_their_place(shards, tmp_path, monkeypatch, gone):
    with ShardWriter(
        tmp_path, "train", fingerprint={"code_rate_hz": 12.5, "codebook_sizes": [16, 16]}
    ) as writer:
        for i in sorted(set(range(9)) - gone):
            frames = np.full((3, 2), i, np.uint16)
            writer.write(f"clip-{i}", {"codes.npy": dump_npy(frames)}, {"num_frames": 3, "language": "en"})
    source = steps(shards, codes_dir=tmp_path)
    for i in range(9):
        if i in gone:
            with pytest.raises(UserError, match=f"no codes for 'clip-{i}'"):
                source._codes_of(i, True)
        else:
            assert source._codes_of(i, True)[0, 0] == i
    monkeypatch.setattr("omniaudio.data.steps.MAX_SEARCHED", 0)
    assert [source._codes_of(i, True)[0, 0] for i in range(9) if i not in gone] == sorted(set(range(9)) - gone)


def test_codes_behind_a_long_gap_are_searched_from_there_on(shards, tmp_path, monkeypatch):
    with ShardWriter(tmp_path, "train", fingerprint={"code_rate_hz": 12.5, "codebook_sizes": [16, 16]}) as writer:
        for i in (5, 6, 7, 8):
            frames = np.full((3, 2), i, np.uint16)
            writer.write(f"clip-{i}", {"codes.npy": dump_npy(frames)}, {"num_frames": 3, "language": "en"})
    monkeypatch.setattr("omniaudio.data.steps.MAX_SEARCHED", 1)
    source = steps(shards, codes_dir=tmp_path)
    assert source._codes_of(5, True)[0, 0] == 5
    asked = []
    entries = source.codes.entries
    source.codes.entries = type(
        "Watched", (), {"__len__": lambda _: 4, "__getitem__": lambda _, i: asked.append(i) or entries[i]}
    )()
    assert [source._codes_of(i, True)[0, 0] for i in (6, 7)] == [6, 7] and len(asked) <= 2 * 4



def test_a_run_may_go_on_with_other_ranks_and_workers_again_and_again(shards):
    """(ranks, workers, batches of a step) from step to step: the clips of one process, in its order, none twice."""
    whole = keys(steps(shards).batch(step, 0, 1) for step in range(14))
    found, memo = [], None
    for ranks, workers, accumulate, first, last in (
        (1, 0, 1, 0, 4),
        (2, 2, 1, 4, 7),
        (4, 0, 1, 7, 11),
        (1, 1, 2, 11, 14),
    ):
        streams = []
        for rank in range(ranks):
            source = steps(shards)
            assert memo is None or source.plan.recall(memo)
            stream = StepStream(source, first * accumulate, last * accumulate, rank, ranks, accumulate)
            streams.append(list(DataLoader(stream, batch_size=None, num_workers=workers)))
        for i in range(last - first):
            parts = [stream[i * accumulate + micro].keys for micro in range(accumulate) for stream in streams]
            num_clips = len(whole[first + i])
            dealt = [parts[place % len(parts)][place // len(parts)] for place in range(num_clips)]
            assert sum(map(len, parts[:num_clips])) == num_clips, (
                "more parts than clips: the rest repeat some"
            )
            found.append(dealt)
        memo = json.loads(json.dumps(streams[-1][-1].memo))
    assert found == whole


def test_shares_of_the_corpora_are_told_once_they_were_planned(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        for i in range(30):
            wav_N = np.full(RATE // (1 if i % 3 else 2), 0.1, np.float32)
            facts = {"sample_rate_hz": RATE, "num_samples": len(wav_N), "text": "a", "language": "en", "speaker": "s"}
            facts |= {"corpus": "long"} if i % 3 else {"corpus": "short"} if i else {}
            writer.write(f"c{i}", {"flac": encode_audio(wav_N, RATE)}, facts)
    source = WaveSteps(tmp_path, "train", RATE, batch_sec=4.0, crop_sec=2.0)
    epoch = len(source.plan.epoch(0))
    assert source.plan.memo(0)["told"] == {}
    told = source.plan.memo(epoch)["told"]
    assert told == pytest.approx({"share/long": 20 / 25, "share/short": 4.5 / 25, "share/unnamed": 0.5 / 25})
    again = WaveSteps(tmp_path, "train", RATE, batch_sec=4.0, crop_sec=2.0)
    assert again.plan.recall(source.plan.memo(epoch)) and again.plan.memo(2 * epoch)["told"] == pytest.approx(told)
    assert WaveSteps(tmp_path, "train", RATE, batch_sec=4.0, crop_sec=2.0, seed=None).plan.memo(epoch)["told"] == {}
