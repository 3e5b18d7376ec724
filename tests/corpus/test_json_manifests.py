import dataclasses
import gzip
import json

import pytest

from omniaudio.corpus.items import LeftOut
from omniaudio.corpus.json_manifests import (
    HuggingFaceFolder,
    LhotseCuts,
    NemoManifest,
    write_lhotse,
    write_nemo,
)
from omniaudio.data.shards import check_member_name
from omniaudio.errors import UserError
from tests.corpus.make_audio import write_audio
from tests.corpus.test_kaldi import check_round_trip, make_utterances


def lines(path, *objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(found) + "\n" for found in objects).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def test_lhotse_cuts_are_read_back(tmp_path):
    utterances, home = make_utterances(tmp_path), tmp_path / "manifest"
    write_lhotse(utterances, home, tmp_path / "out")
    corpus = LhotseCuts(str(tmp_path / "out" / "cuts.jsonl.gz"), "de", "lhotse")
    check_round_trip(utterances, corpus.inventory(tmp_path).items, home)
    first = (tmp_path / "out" / "cuts.jsonl.gz").read_bytes()
    write_lhotse(utterances, home, tmp_path / "out")
    assert (tmp_path / "out" / "cuts.jsonl.gz").read_bytes() == first


def test_nemo_manifests_are_read_back(tmp_path):
    utterances, home = make_utterances(tmp_path), tmp_path / "manifest"
    write_nemo(utterances, home, tmp_path / "out")
    corpus = NemoManifest(str(tmp_path / "out" / "manifest.json"), "de", "nemo")
    check_round_trip(utterances, corpus.inventory(tmp_path).items, home)


def test_the_mean_of_two_channels_stays_the_mean(tmp_path):
    utterances, home = make_utterances(tmp_path), tmp_path / "manifest"
    mean = dataclasses.replace(utterances[-1], channel=-1)
    write_lhotse([mean], home, tmp_path / "out")
    corpus = LhotseCuts(str(tmp_path / "out" / "cuts.jsonl.gz"), "de", "lhotse")
    check_round_trip([mean], corpus.inventory(tmp_path).items, home)


CUT = {
    "id": "cut-1", "start": 1.5, "duration": 2.0, "channel": 0, "type": "MonoCut",
    "supervisions": [
        {"id": "s", "recording_id": "r", "start": 0.0, "duration": 2.0, "text": "hi", "language": "English",
         "speaker": "A"}
    ],
    "recording": {
        "id": "r", "sampling_rate": 16000, "num_samples": 80000, "duration": 5.0, "channel_ids": [0],
        "sources": [{"type": "file", "channels": [0], "source": "wav/r.flac"}],
    },
}  # fmt: skip


def test_cuts_that_cannot_be_taken_are_counted(tmp_path):
    recording = CUT["recording"]
    command = {**recording, "sources": [{"type": "command", "channels": [0], "source": "rm -r x"}]}
    stereo = {**recording, "sources": [{"type": "file", "channels": [0, 1], "source": "wav/s.flac"}]}
    path = lines(
        tmp_path / "cuts.jsonl", CUT, {**CUT, "id": "c2", "recording": command},
        {**CUT, "id": "c3", "supervisions": []},
        {**CUT, "id": "c4", "recording": stereo, "channel": 1},
    )  # fmt: skip
    found = LhotseCuts({"dev": path}, "de", "lhotse").inventory(tmp_path)
    one, two = found.items
    assert (one.key, one.path, one.start_sec, one.duration_sec) == (
        "cut-1",
        tmp_path / "wav/r.flac",
        1.5,
        2.0,
    )
    assert (one.text, one.language, one.speaker, one.split, one.channel) == ("hi", "en", "A", "dev", None)
    assert (two.key, two.channel) == ("c4", 1)
    assert found.left_out == [
        LeftOut(name="c2", reason="cut whose recording is no file"),
        LeftOut(name="c3", reason="cut with no supervisions"),
    ]


def with_supervisions(cut, *parts, **changes):
    """A cut in which each of ``parts`` (start, duration, text) is said."""
    first = cut["supervisions"][0]
    said = [{**first, "start": start, "duration": seconds, "text": text} for start, seconds, text in parts]
    return {**cut, "supervisions": said, **changes}


def test_a_supervision_is_the_stretch_that_it_names(tmp_path):
    path = lines(
        tmp_path / "cuts.jsonl",
        with_supervisions(CUT, (10.0, 2.0, "one"), id="long", start=1.5, duration=30.0),
        with_supervisions(CUT, (0.0, 0.5, "a"), (0.75, 1.3, "b"), (1.5, 3.0, "c"), id="several"),
    )
    found = LhotseCuts(path, "de", "lhotse").inventory(tmp_path)
    assert [(i.key, i.start_sec, i.duration_sec, i.text, i.sample_rate_hz) for i in found.items] == [
        ("long", 11.5, 2.0, "one", 16_000),
        ("several/0000", 1.5, 0.5, "a", 16_000),
        ("several/0001", 2.25, 1.3, "b", 16_000),
    ]
    assert found.left_out == [LeftOut(name="several", reason="supervision that is not whole in its cut")]


def test_cuts_that_lhotse_would_mix_or_change_are_left_out(tmp_path):
    def changed(name, *transforms):
        return {**CUT, "id": name, "recording": {**CUT["recording"], "transforms": list(transforms)}}

    resampled = {
        "name": "Resample",
        "kwargs": {"source_sampling_rate": 44_100, "target_sampling_rate": 16_000},
    }
    faster = {"name": "Speed", "kwargs": {"factor": 1.1}}
    mixed = {"id": "m", "type": "MixedCut", "tracks": [{"cut": CUT, "offset": 0.0}]}
    path = lines(tmp_path / "cuts.jsonl", mixed, changed("s", resampled, faster), changed("r", resampled))
    found = LhotseCuts(path, "de", "lhotse").inventory(tmp_path)
    assert [(item.key, item.sample_rate_hz) for item in found.items] == [("r", 44_100)]
    assert found.left_out == [
        LeftOut(name="m", reason="MixedCut without a recording of its own"),
        LeftOut(name="s", reason="cut whose recording is changed by Speed"),
    ]


def test_the_file_of_a_channel_is_taken(tmp_path):
    files = [{"type": "file", "channels": [i], "source": f"{i}.wav"} for i in (0, 1)]
    recording = {**CUT["recording"], "channel_ids": [0, 1], "sources": files}
    both = {**CUT, "id": "both", "channel": [0, 1], "recording": recording}
    path = lines(tmp_path / "cuts.jsonl", {**CUT, "channel": 1, "recording": recording}, both)
    found = LhotseCuts(path, "de", "lhotse").inventory(tmp_path)
    assert [(item.path, item.channel) for item in found.items] == [(tmp_path / "1.wav", None)]
    assert [entry.detail for entry in found.left_out] == ["none of 2 files has the channel [0, 1]"]


def test_lines_that_cannot_be_used_are_counted(tmp_path):
    good = {"audio_filepath": "a.wav", "text": "hi"}
    path = lines(tmp_path / "m.json", good, {"text": "x"}, [1], {**good, "chat": "{}"}, {**good, "id": "b"})
    with (tmp_path / "m.json").open("a") as file:
        file.write('{"audio_filepath": "half')
    found = NemoManifest(path, "en", "nemo").inventory(tmp_path)
    assert [item.key for item in found.items] == ["a", "b"]
    assert [entry.name for entry in found.left_out] == [f"{path}:{number}" for number in (2, 3, 4, 6)]
    told = [entry.detail for entry in found.left_out]
    assert told[:2] == ["audio_filepath is None, expected str", "a list, expected an object"]
    assert told[2].startswith("chat is '{}', expected json") and told[3].startswith("not valid json (Unterm")
    assert [(entry.reason, entry.bad) for entry in found.left_out] == [
        ("audio_filepath is no str", True), ("a list, expected an object", True), ("chat is not as expected", True),
        ("not valid json", True),
    ]  # fmt: skip
    bad = lines(tmp_path / "bad.json", {"text": "x"}, [1])
    with pytest.raises(UserError, match=r"bad\.json:1: audio_filepath is None.*nor can any other line"):
        NemoManifest({"train": path, "dev": bad}, "en", "nemo").inventory(tmp_path)


def test_nemo_lines(tmp_path):
    path = lines(
        tmp_path / "m.json",
        {"audio_filepath": "wav/a.b.wav", "duration": 3.2, "text": "hi", "lang": "zh-CN", "speaker": 7},
        {"audio_filepath": "wav/a.b.wav", "offset": 1.25, "duration": 0.5},
    )
    one, two = NemoManifest(path, "en", "nemo").inventory(tmp_path).items
    assert (one.key, one.path, one.text, one.language, one.speaker) == (
        "wav/a_b", tmp_path / "wav/a.b.wav", "hi", "zh", "7",
    )  # fmt: skip
    assert (two.key, two.start_sec, two.text, two.language) == ("wav/a_b_1250", 1.25, None, "en")


def test_long_paths_and_names_of_other_scripts_become_keys_that_a_shard_can_hold(tmp_path):
    deep = "/data/" + "recordings/" * 12
    paths = [f"{deep}1.wav", f"{deep}2.wav", "第一.wav", "第二.wav"]
    path = lines(tmp_path / "m.json", *({"audio_filepath": name, "text": "x"} for name in paths))
    items = NemoManifest(path, "zh", "nemo").inventory(tmp_path).items
    assert [item.fault for item in items] == [None] * 4 and len({item.key for item in items}) == 4
    assert all(check_member_name(f"{item.key}.flac", "here") for item in items)


def test_hugging_face_folders_with_and_without_splits(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "metadata.csv").write_text(
        'file_name,speaker_id,text\na.wav,3,"yes, ""so"""\n../x.wav,4,b\n'
    )
    one, two = HuggingFaceFolder(str(tmp_path / "flat"), "en").inventory(tmp_path).items
    assert (one.key, one.text, one.speaker, one.split, one.fault) == ("a", 'yes, "so"', "3", "", None)
    assert two.fault == "path outside the folder"
    for split in ("train", "validation"):
        row = {"file_name": "d/a.wav", "sentence": "s", "transcription": split, "language": "de"}
        lines(tmp_path / "split" / split / "metadata.jsonl", row)
    items = HuggingFaceFolder(str(tmp_path / "split"), "en").inventory(tmp_path).items
    assert [(i.key, i.text, i.split, i.language, i.speaker) for i in items] == [
        ("train/d/a", "train", "train", "de", "d"), ("dev/d/a", "validation", "dev", "de", "d"),
    ]  # fmt: skip
    other = HuggingFaceFolder(str(tmp_path / "split"), "en", text_column="sentence").inventory(tmp_path).items
    assert [item.text for item in other] == ["s", "s"]


@pytest.mark.parametrize(
    "names",
    [("metadata.csv", "metadata.jsonl"), ("train/metadata.csv", "train/metadata.jsonl"),
     ("validation/metadata.jsonl", "valid/metadata.jsonl")],
)  # fmt: skip
def test_two_lists_of_one_split_are_a_mistake(tmp_path, names):
    for name in ("test/metadata.csv", *names):
        lines(tmp_path / name, {"file_name": "a.wav", "text": "s"})
    with pytest.raises(
        UserError, match=f"{names[0]} and {names[1]} list the same split; put all lines into one"
    ):
        HuggingFaceFolder(str(tmp_path), "en")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"audio_filepath": 3}, "m.json:1: audio_filepath is 3, expected str"),
        ({"audio_filepath": "a.wav", "offset": "x"}, "m.json:1: offset is 'x'"),
        ([1], "m.json:1: a list, expected an object"),
        (
            {"audio_filepath": "a.wav", "sample_rate_hz": "8k"},
            "m.json:1: sample_rate_hz is '8k', expected a freq",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, content, expected):
    path = lines(tmp_path / "m.json", content)
    with pytest.raises(UserError, match=expected):
        NemoManifest(path, "en", "nemo").inventory(tmp_path)


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        NemoManifest(str(tmp_path / "none"), "en", "nemo").inventory(tmp_path)
    with pytest.raises(UserError, match="'validate' is no split|validate is no split"):
        NemoManifest({"validate": "x"}, "en", "nemo")
    (tmp_path / "cuts.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz: cannot be read"):
        LhotseCuts(str(tmp_path / "cuts.jsonl.gz"), "en", "l").inventory(tmp_path)
    with pytest.raises(UserError, match=r"no metadata\.csv"):
        HuggingFaceFolder(str(tmp_path), "en")
    (tmp_path / "metadata.csv").write_text("file_name,words\na.wav,b\n")
    with pytest.raises(UserError, match=r"metadata\.csv:2: no column .*; set corpus\.text_column"):
        HuggingFaceFolder(str(tmp_path), "en").inventory(tmp_path)


def test_a_part_of_a_recording_becomes_a_clip(tmp_path, make_checks):
    """From a manifest to checked samples: the stretch that the line names, and no other."""
    import numpy as np

    wav = np.concatenate([np.full(8000, 0.1), np.full(8000, 0.4)]).astype(np.float32)
    write_audio(tmp_path / "a.wav", wav)
    path = lines(
        tmp_path / "m.json", {"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.5, "text": "some words"}
    )
    (item,) = NemoManifest(path, "en", "nemo").inventory(tmp_path).items
    checks = make_checks()
    finding = checks.check(item)
    assert (finding.reason, finding.num_samples) == (None, 8000)
    assert checks.load(item) == pytest.approx(np.full(8000, 0.4), abs=1e-3)
