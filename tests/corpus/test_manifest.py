import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniaudio.corpus.manifest import read_manifest, write_manifest
from omniaudio.errors import UserError
from omniaudio.types import Utterance

GOOD = {
    "key": "en/a",
    "audio_path": "../raw/a.wav",
    "sample_rate_hz": 16_000,
    "num_samples": 8_000,
    "text": "h\u2028ello \u00e9",
    "language": "en",
    "speaker": "s",
    "corpus": "c",
}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_reads_what_it_wrote(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("m") / "train.jsonl"
    utterances = [Utterance(**{**GOOD, "key": f"k{i}", "text": text}) for i, text in enumerate(texts)]
    write_manifest(path, utterances)
    assert read_manifest(path) == utterances


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_samples": "8000"}, r"m\.jsonl:2: num_samples is '8000', expected int"),
        ({"num_samples": True}, "expected int"),
        ({"text": None}, "text is None, expected str"),
        ({"key": "a.b"}, "key 'a.b' may hold letters"),
        ({"key": "../a"}, r"key '\.\./a' may hold"),
        ({"audio_path": "x/../../a.wav"}, "climbs out"),
        ({"num_samples": 0}, "must be positive"),
        ({"more": 1}, "expected the fields key, audio_path"),
    ],
)
def test_a_bad_line_is_named(tmp_path, changes, message):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({**GOOD, "key": "first"}) + "\n" + json.dumps({**GOOD, **changes}) + "\n")
    with pytest.raises(UserError, match=message):
        read_manifest(path)


def test_keys_must_be_unique(tmp_path):
    path = tmp_path / "m.jsonl"
    with pytest.raises(UserError, match="key 'en/a' comes twice"):
        write_manifest(path, [Utterance(**GOOD)] * 2)
    assert not path.exists()
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD))
    with pytest.raises(UserError, match=r"m\.jsonl:3: key 'en/a' stands on line 1 already"):
        read_manifest(path)


def test_files_that_are_no_manifest(tmp_path):
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"m\.jsonl:1: not valid json"):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        read_manifest(tmp_path / "m.jsonl")
