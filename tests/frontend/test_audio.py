import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from omniaudio.errors import UserError
from omniaudio.frontend import audio
from omniaudio.frontend.audio import (
    Resampler,
    audio_facts,
    decode_audio,
    decode_mono_at,
    encode_audio,
    one_channel,
    read_audio,
    read_audio_at,
    resample,
    write_wav,
)


def sine(seconds=0.5, rate_hz=16_000, hz=440.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(
        np.float32
    )


@pytest.mark.parametrize(
    "ending, subtype", [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", None)]
)
def test_reads_what_soundfile_reads(tmp_path, ending, subtype):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, sine(), 16_000, subtype=subtype)
    wav = read_audio(path, sample_rate_hz=16_000)
    assert wav.dtype == np.float32 and wav.shape == (8_000,)
    assert np.abs(wav - sine()).max() < (0.05 if ending == "ogg" else 1e-4)
    assert np.array_equal(wav, read_audio(path.read_bytes()))


def write_by_av(path, form, codec, wav, rate_hz, **options):
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        pcm = np.round(wav * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_reads_raw_g722(tmp_path):
    write_by_av(tmp_path / "a.g722", "g722", "g722", sine(1.0), 16_000)
    assert (tmp_path / "a.g722").stat().st_size == 8_000
    wav, rate_hz = decode_audio(tmp_path / "a.g722")
    assert rate_hz == 16_000 and wav.shape == (1, 16_000)
    # the codec delays by 22 samples
    assert np.corrcoef(wav[0, 4022:12_022], sine(1.0)[4000:12_000])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("ending", "form", "codec"), [("m4a", "ipod", "aac"), ("aac", "adts", "aac"), ("webm", "webm", "libopus")]
)
def test_reads_what_phones_and_browsers_record(tmp_path, ending, form, codec):
    """Sound in the place where it was."""
    rate_hz, path = 48_000, tmp_path / f"a.{ending}"
    steps = sine(1.0, rate_hz) * np.repeat([0.2, 1.0, 0.4, 0.8], rate_hz // 4).astype(np.float32)
    write_by_av(path, form, codec, steps, rate_hz)
    wav_CN, found_hz = decode_audio(path)
    assert found_hz == rate_hz and wav_CN.shape[0] == 1 and 0 <= wav_CN.shape[1] - rate_hz <= 4096
    late = 1024 if form == "adts" else 0  # it has no place to say how much of its beginning is not sound
    assert np.corrcoef(wav_CN[0, late : late + 47_000], steps[:47_000])[0, 1] > 0.98
    part_CN, _ = decode_audio(path, 0.5, 0.25)
    assert np.array_equal(part_CN, wav_CN[:, 24_000:36_000])
    assert np.array_equal(read_audio(path.read_bytes()), wav_CN[0])


@pytest.mark.parametrize("num_samples", [0, 1])
def test_empty_audio_is_refused(tmp_path, num_samples):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(num_samples, np.float32), 16_000)
    if num_samples:
        assert read_audio(path).shape == (1,)
    else:
        with pytest.raises(UserError, match=r"a\.wav: empty audio \(0 samples\)"):
            read_audio(path)


def test_what_is_wrong_is_named(tmp_path):
    stereo, bad, nan = tmp_path / "stereo.wav", tmp_path / "bad.wav", tmp_path / "nan.wav"
    soundfile.write(stereo, np.stack([sine(), -sine()], 1), 16_000)
    soundfile.write(nan, np.array([0.1, np.nan, np.inf], np.float32), 16_000, subtype="FLOAT")
    bad.write_bytes(b"RIFFxxxx this is no wav")
    with pytest.raises(UserError, match=r"stereo\.wav: 2 channels, expected 1"):
        read_audio(stereo)
    with pytest.raises(UserError, match="16000 Hz, expected 24000 Hz"):
        read_audio(stereo, sample_rate_hz=24_000, mono=False)
    with pytest.raises(UserError, match=r"nan\.wav: 2 samples are not finite"):
        read_audio(nan)
    with pytest.raises(UserError, match=r"bad\.wav: cannot be read as audio") as raised:
        read_audio(bad)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"none\.wav: no such audio file"):
        read_audio(tmp_path / "none.wav")
    assert np.abs(read_audio(stereo, mono=False)).max() < 1e-4  # the mean of two opposite channels


def test_a_truncated_file_is_not_read_as_whole(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encode_audio(sine(), 16_000)[:40])
    with pytest.raises(UserError):
        read_audio(path)


def test_encode_is_exact_on_16_bit_and_clips(tmp_path):
    pcm = np.array([-32768, -1, 0, 1, 32767], np.int16)
    assert np.array_equal(read_audio(encode_audio(pcm / 32768, 16_000)) * 32768, pcm)
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0]), 24_000)
    assert np.array_equal(read_audio(tmp_path / "a.wav", sample_rate_hz=24_000) * 32768, [32767, -32768])


@pytest.mark.parametrize(
    ("ending", "rate_hz"), [("wav", 44_100), ("mp3", 44_100), ("flac", 16_000), ("ogg", 24_000)]
)
def test_windows_are_the_whole(tmp_path, monkeypatch, ending, rate_hz):
    monkeypatch.setattr(audio, "WINDOW_SEC", 1)
    reads: list[int] = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames=-1, **more: reads.append(frames) or read(self, frames, **more),
    )
    wav_NC = 0.1 * np.random.default_rng(0).standard_normal((int(3.3 * rate_hz), 2))
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, wav_NC, rate_hz)
    for part in ((0.0, None, None), (0.5, 1.7, None), (0.2, None, 1)):
        reads.clear()
        wav_N, found_hz = decode_mono_at(path, 16_000, *part)
        assert max(reads) <= rate_hz and len(reads) >= 3, "a window at a time"
        whole_CN, _ = decode_audio(path, *part)
        expected = resample(whole_CN.mean(axis=0), rate_hz, 16_000)
        assert found_hz == rate_hz and wav_N.dtype == np.float32 and len(wav_N) == len(expected)
        assert wav_N == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_read_in_windows_is_read_whole_or_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    with pytest.raises(UserError, match="no such channel: 3"):
        decode_mono_at(tmp_path / "a.wav", 16_000, channel=3)
    with pytest.raises(UserError, match="no such audio file"):
        decode_mono_at(tmp_path / "b.wav", 16_000)
    write_by_av(tmp_path / "a.g722", "g722", "g722", sine(0.2), 16_000)
    wav_N, found_hz = decode_mono_at(tmp_path / "a.g722", 8000)
    assert found_hz == 16_000 and abs(len(wav_N) - 1600) < 40


def test_resample_keeps_a_tone(tmp_path):
    wav = resample(sine(1.0), 16_000, 24_000)
    assert wav.shape == (24_000,) and wav.dtype == np.float32
    assert np.abs(wav[2000:-2000] - sine(1.0, 24_000)[2000:-2000]).max() < 1e-3
    assert resample(wav, 24_000, 24_000) is wav
    write_wav(tmp_path / "a.wav", sine(1.0), 16_000)
    assert read_audio_at(tmp_path / "a.wav", 24_000).shape == (24_000,)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (8000, 16_000), (16_000, 16_000)])
def test_pieces_of_any_size_are_resampled_as_the_whole(from_hz, to_hz):
    wav_N = np.random.default_rng(0).normal(0, 0.2, from_hz + 17).astype(np.float32)
    resampler = Resampler(from_hz, to_hz)
    pieces = [
        resampler.push(piece_N) for piece_N in np.split(wav_N, [0, 1, 1, 3, 700, 20_000 % from_hz, from_hz])
    ]
    resampled_N, expected_N = np.concatenate([*pieces, resampler.finish()]), resample(wav_N, from_hz, to_hz)
    assert len(resampled_N) == len(expected_N) and sum(map(len, pieces)) > 0.9 * len(expected_N)
    np.testing.assert_allclose(resampled_N, expected_N, atol=1e-5)


def test_samples_that_are_not_of_one_channel_or_no_fractions_are_named():
    assert one_channel([0.5, 1]).dtype == np.float32
    with pytest.raises(UserError, match="speech of int16: expected floats in .-1, 1.; divide int16 by 32768"):
        one_channel(np.zeros(3, np.int16))


def compressed(ending, subtype=None):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.05, 32_000).astype(np.float32)
    soundfile.write(buffer, sine(2.0) + noise, 16_000, format=ending.upper(), subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "ending, subtype", [("flac", None), ("mp3", None), ("ogg", "VORBIS"), ("ogg", "OPUS")]
)
def test_half_a_compressed_file_is_refused(tmp_path, ending, subtype):
    content = compressed(ending, subtype)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    for source in (path, content):
        assert decode_audio(source)[0].shape == (1, 32_000)
        assert decode_audio(source, 1.5)[0].shape == (1, 8_000)
        assert decode_audio(source, 0.5, 0.25)[0].shape == (1, 4_000)
    for num_bytes in (len(content) // 2, len(content) - 100):
        path.write_bytes(content[:num_bytes])
        for source in (path, content[:num_bytes]):
            with pytest.raises(UserError, match="cut off"):
                decode_audio(source)
    with pytest.raises(UserError, match="cut off"):
        decode_audio(content[: len(content) // 2], 1.5)


def test_lengths_that_a_head_does_not_tell_are_those_of_the_sound(tmp_path):
    flac = bytearray(compressed("flac"))
    flac[21] &= 0xF0  # the number of samples: 36 bits, 0 for unknown
    flac[22:26] = bytes(4)
    path = tmp_path / "a.flac"
    path.write_bytes(flac)
    assert decode_audio(path)[0].shape == (1, 32_000) and audio_facts(path) == (1, 32_000, 16_000)
    mp3 = compressed("mp3")
    tagged = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257) + mp3
    assert decode_audio(tagged)[0].shape == (1, 32_000)
    with pytest.raises(UserError, match="cut off"):
        decode_audio(tagged[: len(tagged) // 2])
    write_by_av(tmp_path / "a.mp3", "mp3", "libmp3lame", sine(1.0), 16_000, write_xing="0")
    assert 16_000 <= decode_audio(tmp_path / "a.mp3")[0].shape[1] < 19_000
