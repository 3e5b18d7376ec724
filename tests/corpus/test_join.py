import json

import numpy as np
import pytest

from omniaudio.cli.main import main
from omniaudio.corpus.build.pipeline import join as join_jobs
from omniaudio.corpus.build.pipeline import make_jobs
from omniaudio.corpus.join import join
from omniaudio.data.chats import to_clips
from omniaudio.data.compose import DocumentComposer
from omniaudio.data.document_steps import DocumentSteps
from omniaudio.data.mixture import Mixture
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
from omniaudio.data.steps import WaveSteps
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio
from omniaudio.frontend.text import TextTokenizer
from omniaudio.sequence.vocab import TokenSpace
from tests.corpus.build.test_pipeline import make, sources
from tests.corpus.make_audio import tone

RATE = 16_000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build of twelve passages: some of its segments are refused, and may teach recognition."""
    folder = tmp_path_factory.mktemp("built")
    jobs, pipeline = make_jobs(sources(), 5), make()
    for job in jobs:
        pipeline.run(job, folder)
    join_jobs(folder, jobs, pipeline)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for split, number in (("train", 5), ("dev", 2), ("test", 1)):
        with ShardWriter(folder / "shards", split, max_bytes=30_000) as writer:
            for i in range(number):
                facts = {
                    "sample_rate_hz": RATE,
                    "num_samples": RATE // 2,
                    "text": f"{split} {i}",
                    "language": "en",
                }
                facts |= {"speaker": "s", "corpus": "own"}
                writer.write(f"{split}-{i}", {"flac": encode_audio(tone(0.5, 0.3), RATE)}, facts)
    (folder / "texts").mkdir()
    (folder / "texts" / "train.txt").write_text("train 0\ntwo of p01\n")
    (folder / "texts" / "dev.txt").write_text("dev 0\n")
    (folder / "ATTRIBUTION").write_text("Own recordings.\n")
    return folder


def entries(folder, split):
    return list(ShardReader(folder, split).entries)


def test_all_samples_of_all_folders_are_there_and_whole(built, prepared, tmp_path):
    out = tmp_path / "both"
    joined = join([prepared, built], out)
    refused = entries(built / "shards", "asr")
    samples = joined["samples"]
    assert refused and samples[str(built)]["asr"] == len(refused)
    for split in ("train", "dev", "test"):
        reader = ShardReader(out / "shards", split)
        reader.verify()
        parts = [entries(place / "shards", split) for place in (prepared, built)]
        expected = [e.key for part in parts for e in part] + [e.key for e in refused if split == "train"]
        assert [e.key for e in reader.entries] == expected
    train = ShardReader(out / "shards", "train")
    there = {
        entry.key: (reader, i)
        for place, split in ((prepared, "train"), (built, "train"), (built, "asr"))
        for reader in [ShardReader(place / "shards", split)]
        for i, entry in enumerate(reader.entries)
    }
    for position, entry in enumerate(train.entries):
        reader, i = there[entry.key]
        assert train.member(position, "flac") == reader.member(i, "flac")
        assert {**entry.facts, "only": 0} == {**reader.entries[i].facts, "only": 0}
    texts = (out / "texts" / "train.txt").read_text().splitlines()
    assert texts[:2] == ["train 0", "two of p01"] and len(texts) == len(set(texts)) > 2
    assert (out / "ATTRIBUTION").read_text().startswith("Own recordings.\n\n")


def coded(shards, folder):
    """Codes of the training split of audio shards."""
    with ShardWriter(folder, "train", fingerprint={"codebook_sizes": [8, 4]}) as writer:
        for entry in ShardReader(shards, "train").entries:
            facts = {**entry.facts, "num_frames": 4}
            writer.write(entry.key, {"codes.npy": dump_npy(np.ones((4, 2), np.uint16))}, facts)
    return DocumentComposer(
        ShardReader(folder, "train"), lambda text: list(text.encode()), TokenSpace(256, [8, 4])
    )


def learned(composer):
    kinds = ("asr", "tts", "audio", "itts")
    return {kind: {i for group in composer.groups(kind, 0, 0) for i in group} for kind in kinds}


def test_what_was_refused_teaches_its_own_kind_alone_and_no_held_out_passage(built, prepared, tmp_path):
    join([prepared, built], tmp_path / "both")
    shards = tmp_path / "both" / "shards"
    reader = ShardReader(shards, "train")
    held_out = {e.facts["passage"] for split in ("dev", "test") for e in entries(built / "shards", split)}
    refused = {i for i, entry in enumerate(reader.entries) if "fault" in entry.facts}
    unseen = {i for i in refused if reader.entries[i].facts["passage"] in held_out}
    assert unseen and refused - unseen, "both occur"
    assert {reader.entries[i].facts["only"] for i in unseen} == {"held_out"}
    every = set(range(len(reader)))
    found = learned(coded(shards, tmp_path / "codes"))
    assert found["asr"] == every - unseen
    assert found["tts"] == found["audio"] == every - refused
    assert not refused & found["itts"]
    waves = WaveSteps(shards, "train", RATE, batch_sec=50.0, crop_sec=5.0)
    assert {i for step in waves.plan.epoch(0) for i in step} == every - refused


def test_what_one_folder_holds_out_another_does_not_train_on(prepared, tmp_path):
    other = tmp_path / "other"
    for split, texts in (("train", ["Train 9.", "DEV 1!", "test 0"]), ("dev", ["train 3"]), ("test", [])):
        with ShardWriter(other / "shards", split) as writer:
            for i, text in enumerate(texts):
                facts = {"sample_rate_hz": RATE, "num_samples": RATE // 2, "text": text, "language": "en"}
                sound = encode_audio(tone(0.5, 0.3), RATE)
                writer.write(f"o-{split}-{i}", {"flac": sound}, {**facts, "speaker": "s", "corpus": "o"})
    join([prepared, other], tmp_path / "both")
    reader = ShardReader(tmp_path / "both" / "shards", "train")
    out = {entry.facts["text"] for entry in reader.entries if entry.facts.get("only") == "held_out"}
    assert out == {"train 3", "DEV 1!", "test 0"}
    kept = learned(coded(tmp_path / "both" / "shards", tmp_path / "codes"))["asr"]
    assert {reader.entries[i].facts["text"] for i in kept} == {
        "train 0",
        "train 1",
        "train 2",
        "train 4",
        "Train 9.",
    }
    (prepared / "texts" / "train.txt").write_text("train 0\ndev 0\n")
    join([prepared, other], tmp_path / "again")
    assert (tmp_path / "again" / "texts" / "train.txt").read_text() == "train 0\n"
    (prepared / "texts" / "train.txt").write_text("train 0\ntwo of p01\n")


def spoken_chats(folder, chats, dev=()):
    """A prepared folder of chats in which user and assistant speak in turn, and of texts that it holds out."""
    with ShardWriter(folder / "shards", "train") as train, ShardWriter(folder / "shards", "dev") as held_out:
        common = {"language": "en", "speaker": "s", "corpus": folder.name}
        sound, common = (
            encode_audio(tone(0.5, 0.3), RATE),
            {**common, "sample_rate_hz": RATE, "num_samples": RATE // 2},
        )
        for name, said in chats.items():
            turns = [
                (("user", "assistant")[turn % 2], [text]) for turn, text in enumerate(map(str.encode, said))
            ]
            for place, (text, facts) in enumerate(to_clips(turns, name)):
                train.write(f"{name}-{place}", {"flac": sound}, {**common, **facts, "text": text.decode()})
        for place, text in enumerate(dev):
            held_out.write(f"{folder.name}-{place}", {"flac": sound}, {**common, "text": text})


def test_what_is_held_out_elsewhere_and_the_chats_that_end_there_are_counted(tmp_path, capsys):
    chats = {
        "cut": ["Hi.", "Hello.", "Okay.", "Fine.", "Bye.", "okay!"],
        "lost": ["Okay", "Yes."],
        "whole": ["Who?", "I."],
        "unharmed": ["Where?", "Here.", "Okay."],  # nobody replied to it
    }
    spoken_chats(tmp_path / "chats", chats)
    spoken_chats(tmp_path / "other", {"more": ["Why?", "So."]}, dev=["okay"])
    main(["join", f"folders=[{tmp_path}/chats,{tmp_path}/other]", f"data_dir={tmp_path}/both"])
    told = (
        f"  {tmp_path}/chats: train 13\n    of these, 4 clips are not learned: their text or passage is in a held-out "
        f"split; 1 chats are cut and 1 lost by it\n  {tmp_path}/other: train 2, dev 1\njoined"
    )
    assert told in capsys.readouterr().out
    counts = json.loads((tmp_path / "both" / "joined.json").read_text())["held_out"]
    assert counts[f"{tmp_path}/chats"] == {"clips": 4, "chats_cut": 1, "chats_lost": 1}
    assert counts[f"{tmp_path}/other"] == {"clips": 0, "chats_cut": 0, "chats_lost": 0}
    composer = coded(tmp_path / "both" / "shards", tmp_path / "codes")
    groups = composer.groups("sft_chat", 0, 0)
    learned_of = {composer.reader.entries[group[0]].facts["passage"]: len(group) for group in groups}
    assert learned_of == {"cut": 2, "whole": 2, "unharmed": 2, "more": 2}, "as it was counted"


def test_code_shards_are_joined_and_trained_on(tmp_path):
    for name, corpus in (("one", "a"), ("other", "b")):
        with ShardWriter(tmp_path / name, "train", fingerprint={"codebook_sizes": [8, 4]}) as writer:
            for i in range(4):
                facts = {
                    "text": "one two",
                    "language": "en",
                    "speaker": "s",
                    "corpus": corpus,
                    "num_frames": 3,
                }
                writer.write(f"{name}-{i}", {"codes.npy": dump_npy(np.ones((3, 2), np.uint16))}, facts)
    TextTokenizer.train(["one two"], 265, tmp_path / "tokenizer.json")
    join([tmp_path / "one", tmp_path / "other"], tmp_path / "codes")
    mixture = Mixture(weights={"asr": 1}, corpora={"a": 1, "b": 3})
    steps = DocumentSteps(
        TokenSpace(265, [8, 4]),
        tmp_path / "tokenizer.json",
        mixture,
        400,
        codes_dir=tmp_path / "codes",
        split="train",
    )
    assert steps.plan.shares(40) == pytest.approx({"asr@a": 0.25, "asr@b": 0.75}, abs=0.03)
    assert len(ShardReader(tmp_path / "codes", "dev")) == 0
    with ShardWriter(tmp_path / "wide", "train", fingerprint={"codebook_sizes": [16, 4]}) as writer:
        writer.write("w", {"codes.npy": dump_npy(np.ones((3, 2), np.uint16))}, {"num_frames": 3})
    with pytest.raises(UserError, match="codebook_sizes"):
        join([tmp_path / "one", tmp_path / "wide"], tmp_path / "no")
    with pytest.raises(UserError, match="holds code shards, the others hold audio"):
        (tmp_path / "data").mkdir()
        (tmp_path / "one").rename(tmp_path / "data" / "shards")
        join([tmp_path / "data", tmp_path / "other"], tmp_path / "mixed")


def test_done_it_stays_and_a_broken_one_is_made_anew(built, prepared, tmp_path):
    out = tmp_path / "both"
    join([prepared, built], out)
    tar = out / "shards" / "train-000000.tar"
    assert tar.stat().st_ino == (prepared / "shards" / "train-000000.tar").stat().st_ino, (
        "a link takes no space"
    )
    stamp = (out / "joined.json").stat().st_mtime_ns
    assert join([prepared, built], out)["samples"][str(prepared)] == {"train": 5, "dev": 2, "test": 1}
    assert (out / "joined.json").stat().st_mtime_ns == stamp
    tar.unlink()
    join([prepared, built], out)
    assert tar.is_file() and (prepared / "shards" / "train-000000.tar").is_file()
    (out / "joined.json").write_text(json.dumps({"key": None}))
    (out / "shards" / "train.shards.json").unlink()
    join([prepared, built], out)
    assert len(ShardReader(out / "shards", "train")) > 5
    assert "asr" not in join([prepared, built], out, refused=False)["samples"][str(built)]
    assert not any("fault" in entry.facts for entry in entries(out / "shards", "train"))


def test_mistakes_are_one_line(built, prepared, tmp_path):
    join([prepared, built], tmp_path / "all")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    for folders, out, words in (
        ([prepared], "x", "1 given; name at least two"),
        ([prepared, tmp_path / "nothing"], "x", "nothing: holds no finished shards; prepare, build"),
        ([prepared, built], "full", "full: is not empty and no joined folder"),
        ([tmp_path / "all", built], "all", "all is joined into it; give another data_dir"),
        ([prepared, prepared], "twice", r"8 samples have the same key in .*prepared.*corpus=several"),
    ):
        with pytest.raises(UserError, match=words):
            join(folders, tmp_path / out)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
