import json
from dataclasses import replace

import numpy as np
import pytest

from omniaudio.corpus.build.pipeline import Job, Pipeline, join, make_jobs
from omniaudio.corpus.build.segment import Gate, Segment
from omniaudio.data.chats import to_messages
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio
from tests.corpus.build.steps import Mumble, Mumbler
from tests.corpus.make_audio import tone

FRACTIONS = {"train": 0.6, "dev": 0.2, "test": 0.2}


def make(**steps):
    return Pipeline(
        Mumbler(),
        steps or {"mumble": Mumble(), "loud": Gate("level", most=0.65, goes_to="asr")},
        FRACTIONS,
        "c",
    )


def sources(number=12):
    return [{"key": f"p{i:02d}", "words": ["one", "two", "three"][: 1 + i % 3]} for i in range(number)]


def contents(folder):
    kept = [path for name in ("shards", "texts") for path in (folder / name).rglob("*") if path.is_file()]
    return {
        path.relative_to(folder): path.read_bytes()
        for path in [*kept, folder / "build.json", folder / "unspoken.jsonl"]
    }


def test_segments_passages_texts_and_what_was_refused(tmp_path):
    jobs = make_jobs(sources(), 5)
    assert [len(job.sources) for job in jobs] == [5, 5, 2]
    pipeline = make()
    for job in jobs:
        pipeline.run(job, tmp_path)
    report = join(tmp_path, jobs, pipeline)
    readers = {
        split: ShardReader(tmp_path / "shards", split) for split in ("train", "dev", "test", "asr", "tts")
    }
    found = {entry.key: (split, entry.facts) for split, r in readers.items() for entry in r.entries}
    # the words "one" are unspoken, "two" have level 0.5 and "three" 0.7
    assert {key.rpartition("/")[0] for key, (split, _) in found.items() if split in FRACTIONS} == {
        f"c/p{i:02d}" for i in range(12) if i % 3
    }
    assert all(
        facts["text"].startswith("three") and facts["fault"] == "level over 0.65"
        for s, facts in found.values()
        if s == "asr"
    )
    assert sum(split == "asr" for split, _ in found.values()) == 4 and len(readers["tts"]) == 0
    two = next(facts for split, facts in found.values() if split in FRACTIONS)
    assert (two["text"], two["place"], two["level"], two["corpus"]) == (
        f"two of {two['passage'].removeprefix('c/')}",
        1,
        0.5,
        "c",
    )
    position = next(i for i, e in enumerate(readers["asr"].entries) if e.facts["text"].startswith("three"))
    assert read_audio(readers["asr"].member(position, "flac")) == pytest.approx(tone(0.2, 0.7), abs=1e-3)
    assert report["faults"] == {"level over 0.65": 4, "synthesis: no sound": 12}
    assert report["steps"] == {"mumble": [24, 12], "loud": [12, 8]}
    assert (
        sum(report["histograms"]["loud"]) == 12
        and report["num_unspoken"] == 12
        and report["num_speakers"] == 2
    )
    unspoken = [json.loads(line) for line in (tmp_path / "unspoken.jsonl").read_text().splitlines()]
    assert unspoken[0] == {
        "key": "p00/0000",
        "language": "en",
        "text": "one of p00",
        "fault": "synthesis: no sound",
    }
    texts = (tmp_path / "texts" / "train.txt").read_text().splitlines()
    assert texts and all(text.startswith("two of p") for text in texts)
    assert len(texts) == len({e.facts["passage"] for e in readers["train"].entries})


def test_a_job_that_is_done_stays_and_a_broken_one_is_done_again(tmp_path, monkeypatch):
    jobs = make_jobs(sources(), 4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for job in jobs:
        make().run(job, whole)
    join(whole, jobs, make())
    make().run(jobs[0], broken)
    done = (broken / "jobs" / "000000" / "job.json").stat().st_mtime_ns
    calls = []

    def stop(self, segments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return mumble(self, segments)

    mumble = Mumble.__call__
    monkeypatch.setattr(Mumble, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        make().run(jobs[1], broken)
    monkeypatch.undo()
    with pytest.raises(UserError, match="000001: this job is not done; the same command goes on"):
        join(broken, jobs, make())
    for job in reversed(jobs):
        make().run(job, broken)
    join(broken, jobs, make())
    assert (broken / "jobs" / "000000" / "job.json").stat().st_mtime_ns == done
    assert contents(broken) == contents(whole)
    join(broken, jobs, make())
    assert contents(broken) == contents(whole), "joining again changes nothing"


def test_what_a_source_refuses_itself_is_counted(tmp_path):
    class Broken(Mumbler):
        def __call__(self, source):
            return [Segment(key=f"{source['key']}/0", passage=source["key"]).refused("unreadable audio")]

    pipeline = Pipeline(Broken(), {}, FRACTIONS, "c")
    jobs = [Job(0, tuple(sources(3)))]
    pipeline.run(jobs[0], tmp_path)
    assert join(tmp_path, jobs, pipeline)["faults"] == {"unreadable audio": 3}


def test_scores_do_not_overwrite_facts(tmp_path):
    class Speaker:
        def __call__(self, segments):
            return [s.scored(voice_match=0.5) for s in segments]

    pipeline = make(mumble=Mumble(), match=Speaker())
    job = Job(0, tuple(sources(3)))
    pipeline.run(job, tmp_path)
    join(tmp_path, [job], pipeline)
    entries = [e for split in FRACTIONS for e in ShardReader(tmp_path / "shards", split).entries]
    assert entries and all(
        e.facts["speaker"].startswith("v") and e.facts["voice_match"] == 0.5 for e in entries
    )
    assert np.isfinite([e.facts["start_sec"] for e in entries]).all()


def test_times_of_words_go_into_the_shards(tmp_path):
    class Timed:
        def __call__(self, segments):
            return [replace(s, words=((" two", 0.0, 0.1234), (" of it", 0.1234, 0.2))) for s in segments[:1]]

    pipeline = make(mumble=Mumble(), timed=Timed())
    job = Job(0, tuple(sources(6)))
    pipeline.run(job, tmp_path)
    join(tmp_path, [job], pipeline)
    entries = [e for split in FRACTIONS for e in ShardReader(tmp_path / "shards", split).entries]
    assert entries and all(
        e.facts["words"] == [[" two", 0.0, 0.123], [" of it", 0.123, 0.2]] for e in entries
    )


class Talk:
    """A chat of two questions and two replies; the system speaks in writing."""

    def __call__(self, source):
        told = [
            ("user", 1, "two"),
            ("assistant", 2, source["reply"]),
            ("assistant", 2, "two"),
            ("user", 3, "two"),
            ("assistant", 4, "two"),
        ]
        key = source["key"]
        found = [
            Segment(
                key=f"{key}/{i:04d}",
                passage=key,
                place=i,
                text=f"{word} {key}",
                language="en",
                role=role,
                turn=turn,
                turns=5,
            )
            for i, (role, turn, word) in enumerate(told)
        ]
        return [replace(found[0], before=((0, "system", "S"),)), *found[1:]]

    def attribution(self):
        return "talk"


def test_chats_know_their_messages_and_what_is_left_of_them_is_counted(tmp_path):
    pipeline = Pipeline(
        Talk(), {"mumble": Mumble(), "loud": Gate("level", most=0.65, goes_to="asr")}, FRACTIONS, "c"
    )
    jobs = make_jobs([{"key": f"t{i}", "reply": "three" if i == 1 else "two"} for i in range(4)], 3)
    for job in jobs:
        pipeline.run(job, tmp_path)
    report = join(tmp_path, jobs, pipeline)
    assert report["chats"] == {"whole": 3, "without a whole reply": 1}
    readers = [ShardReader(tmp_path / "shards", split) for split in FRACTIONS]
    chats = {}
    for reader in readers:
        for entry in reader.entries:
            chats.setdefault(entry.facts["passage"], []).append((entry.facts, entry.key))
    assert sorted(chats) == ["c/t0", "c/t1", "c/t2", "c/t3"]
    assert [facts["turn_parts"] for facts, _ in chats["c/t1"]] == [1, 2, 1, 1]
    assert to_messages(chats["c/t1"]) == []
    assert to_messages(chats["c/t0"], speech=False) == [
        {"role": "system", "content": ["S"]},
        {"role": "user", "content": ["c/t0/0000"]},
        {"role": "assistant", "content": ["two t0", " two t0"]},
        {"role": "user", "content": ["c/t0/0003"]},
        {"role": "assistant", "content": ["two t0"]},
    ]
