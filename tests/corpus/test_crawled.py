import json

import pytest

from omniaudio.corpus.crawled import GigaSpeech, WenetSpeech
from omniaudio.errors import UserError
from tests.corpus.make_trees import gigaspeech, wenetspeech


def test_wenetspeech(tmp_path, make_checks):
    root = wenetspeech(tmp_path)
    found = WenetSpeech(["L", "DEV", "TEST_NET"], str(root)).inventory(tmp_path)
    assert [(item.key, item.split, item.language) for item in found.items] == [
        ("Y0000000000_--5llN02F84_S00000", "train", "zh"), ("Y0000000001_x_S00000", "dev", "zh"),
        ("Y0000000001_x_S00001", "dev", "zh"), ("T0000000001_x_S00000", "test", "zh"),
    ]  # fmt: skip
    first = found.items[0]
    assert (first.start_sec, first.duration_sec) == (0.2, pytest.approx(1.2))
    assert first.text == "怎么样这些日子住得还习惯吧" and first.speaker == "Y0000000000_--5llN02F84"
    checks = make_checks(resample=True)
    assert checks.check(first).reason is None and len(checks.load(first)) == pytest.approx(
        1.2 * 16_000, abs=2
    )
    weak = WenetSpeech(["W"], str(root), min_confidence=0.95).inventory(tmp_path)
    assert not weak.items and [entry.reason for entry in weak.left_out] == ["no words, by its own account"]


def test_gigaspeech(tmp_path):
    root = gigaspeech(tmp_path)
    found = GigaSpeech(["XL", "DEV", "TEST"], str(root)).inventory(tmp_path)
    assert [(item.key, item.text, item.split) for item in found.items] == [
        ("POD0000000000_S0000000", "MCGRAY IS OUR GUIDE, TODAY.", "train"),
        ("POD0000000001_S0000000", "AND THIS IS POD?", "dev"), ("YOU0000000002_S0000000", "AND THIS IS YOU?", "test"),
    ]  # fmt: skip
    assert [entry.name for entry in found.left_out] == ["POD0000000000_S0000001"]
    assert len(GigaSpeech(["XS"], str(root)).inventory(tmp_path).items) == 1


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.subsets: XXL; allowed are XS, S"):
        GigaSpeech(["XXL"], str(tmp_path))
    with pytest.raises(UserError, match="given out to those who ask"):
        WenetSpeech().fetch(tmp_path)
    with pytest.raises(UserError, match=r"WenetSpeech\.json: no such file"):
        WenetSpeech(root=str(tmp_path)).inventory(tmp_path)
    (tmp_path / "WenetSpeech.json").write_text('{"audios": [')
    with pytest.raises(UserError, match="not valid json"):
        WenetSpeech(root=str(tmp_path)).inventory(tmp_path)
    (tmp_path / "WenetSpeech.json").write_text(json.dumps({"audios": [{"aid": "a"}]}))
    with pytest.raises(UserError, match="recording 0 has no path, segments"):
        WenetSpeech(root=str(tmp_path)).inventory(tmp_path)
    recording = {"aid": "a", "path": "p", "segments": [{"sid": "s", "subsets": ["L"], "begin_time": 0}]}
    (tmp_path / "WenetSpeech.json").write_text(json.dumps({"audios": [recording]}))
    with pytest.raises(UserError, match="a segment of a has no end_time"):
        WenetSpeech(root=str(tmp_path)).inventory(tmp_path)
