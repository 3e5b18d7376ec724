import numpy as np
import pytest
import soundfile

from omniaudio.corpus.items import RawItem
from tests.corpus.make_audio import RATE_HZ, tone, write_audio


def item(path, text="hello you", **changes):
    return RawItem(**{"key": "a", "path": path, "text": text, "language": "en", "speaker": "s", **changes})


def test_a_good_recording_passes(tmp_path, make_checks):
    finding = make_checks().check(item(write_audio(tmp_path / "a.wav")))
    assert (finding.reason, finding.num_samples, finding.sample_rate_hz) == (None, 16_000, 16_000)


AUDIO = {
    "too short": tone(0.29),
    "too long": tone(30.1),
    "silence": tone(amplitude=0.0005),
    "clipped": np.clip(tone(amplitude=2.0), -1, 1),
    "several channels": np.stack([tone(), tone()], 1),
    "empty audio": tone(0.0),
}


@pytest.mark.parametrize("reason", AUDIO)
def test_bad_audio_is_named(tmp_path, make_checks, reason):
    path = write_audio(tmp_path / "a.wav", AUDIO[reason])
    finding = make_checks(min_chars_per_sec=0.0).check(item(path))
    assert finding.reason == reason and finding.detail


def test_other_bad_files_are_named(tmp_path, make_checks):
    checks = make_checks()
    soundfile.write(
        tmp_path / "nan.wav", np.array([0.1, np.nan] * 9_000, np.float32), RATE_HZ, subtype="FLOAT"
    )
    assert checks.check(item(tmp_path / "nan.wav")).reason == "audio not finite"
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    assert checks.check(item(tmp_path / "bad.wav")).reason == "unreadable audio"
    assert checks.check(item(tmp_path / "none.wav")).reason == "missing file"
    whole = write_audio(tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    assert checks.check(item(tmp_path / "cut.flac")).reason == "cut off"
    assert checks.check(item(tmp_path / "none.wav", fault="duplicate key")).reason == "duplicate key"


def test_other_rates_and_channels_pass_only_where_the_config_says_so(tmp_path, make_checks):
    path = write_audio(tmp_path / "a.wav", np.stack([tone(rate_hz=8_000)] * 2, 1), rate_hz=8_000)
    assert make_checks(downmix=True).check(item(path)).reason == "wrong sample rate"
    assert make_checks(resample=True).check(item(path)).reason == "several channels"
    checks = make_checks(resample=True, downmix=True)
    assert checks.check(item(path)).reason is None
    wav = checks.load(item(path))
    assert wav.shape == (16_000,)
    assert np.abs(wav[2_000:-2_000] - tone()[2_000:-2_000]).max() < 1e-2


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "missing transcript"),
        ("", "empty transcript"),
        (" ?! ", "empty transcript"),
        ("hello\x00there", "control characters in the transcript"),
        ("hello\nthere", "control characters in the transcript"),
        ("hello\ud800", "control characters in the transcript"),
        ("x" * 2_001, "transcript too long"),
        ("x" * 26, "text does not fit the duration"),
        ("x" * 25, None),
    ],
)
def test_bad_texts_are_named(tmp_path, make_checks, text, reason):
    assert make_checks().check(item(write_audio(tmp_path / "a.wav"), text)).reason == reason


@pytest.mark.parametrize("name", ["response", "continuation", "translation"])
def test_the_other_written_answers_pass_the_same_limits(tmp_path, make_checks, name):
    path, checks = write_audio(tmp_path / "a.wav"), make_checks()

    def reason(answer, **changes):
        return checks.check(
            item(path, **{name: (answer,) if name == "response" else answer}, **changes)
        ).reason

    assert reason("x" * 2_000) is None
    assert reason("x" * 2_001) == f"{name} too long"
    assert reason("yes\x00no") == f"control characters in the {name}"
    assert reason("x" * 2_001, text="", chat="{}") == f"{name} too long", "where no word was written down"


def test_a_word_in_a_long_recording_does_not_fit(tmp_path, make_checks):
    path = write_audio(tmp_path / "a.wav", tone(10.0))
    assert make_checks().check(item(path, "yes")).reason == "text does not fit the duration"


@pytest.mark.parametrize(
    "place",
    [
        {"start_sec": -0.5},
        {"start_sec": float("nan")},
        {"duration_sec": 0.0},
        {"duration_sec": float("inf")},
        {"channel": -1},
    ],
)
def test_a_place_in_a_file_that_is_none_is_refused(tmp_path, make_checks, place):
    finding = make_checks().check(item(write_audio(tmp_path / "a.wav"), **place))
    assert finding.reason == "no stretch of time"


def test_a_channel_is_taken_or_missed(tmp_path, make_checks):
    path = write_audio(tmp_path / "a.wav", np.stack([tone(), 0.5 * tone()], 1))
    assert make_checks().load(item(path, channel=1)) == pytest.approx(0.5 * tone(), abs=1e-3)
    assert make_checks().check(item(path, channel=1)).reason is None
    assert make_checks().check(item(path, channel=2)).reason == "no such channel"
