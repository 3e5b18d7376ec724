"""Audio files to waveforms. Nothing is repaired on the way: what is wrong is a UserError that names the file.

WAV, FLAC, OGG and MP3 are read by soundfile, all else (G.722, M4A, ...) by PyAV.
Shapes: N samples, C channels.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from omniaudio.errors import UserError

RAW_FORMATS = {".g722": "g722"}
"""Endings of streams without a header, and the format name that PyAV needs to read them."""

STREAMED = 0x7FFFF000
"""Sizes from here on are those of a WAV that was written before its length was known."""
UNKNOWN = 1 << 62
"""Numbers of samples from here on are soundfile's for a head that tells none."""
OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest
WINDOW_SEC = 60
"""Of a long recording, decoded at once."""
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".webm", ".g722")
"""Files that are taken for recordings."""


def decode_audio(
    source: str | Path | bytes,
    start_sec: float = 0.0,
    duration_sec: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a file, or a part of it, as it is.

    Args:
        source: a path, or the bytes of a whole file.
        start_sec, duration_sec: the part; None is up to the end. Samples are counted to the nearest.
        channel: the only one to give; None gives all.

    Returns:
        wav_CN float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        UserError: the file does not exist, cannot be decoded, or holds no samples.
    """
    name = _name(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise UserError(f"{name}: no such audio file")
    try:
        _check_whole(source, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
    part = (start_sec, duration_sec)
    wav_CN, rate_hz = _by_soundfile(source, suffix, name, *part) or _by_av(source, suffix, name, *part)
    if wav_CN.shape[1] == 0:
        where = f" from {start_sec} s on" if start_sec else ""
        raise UserError(f"{name}: empty audio (0 samples{where})")
    if channel is None:
        return wav_CN, rate_hz
    if channel >= len(wav_CN):
        raise UserError(f"{name}: no such channel: {channel} of {len(wav_CN)} (they count from 0)")
    return wav_CN[channel : channel + 1], rate_hz


def decode_mono_at(
    path: str | Path,
    sample_rate_hz: int,
    start_sec: float = 0.0,
    duration_sec: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, int]:
    """As ``decode_audio``, mixed down and resampled window by window: hours of sound never lie in memory as they are
    in the file, where soundfile reads it (what PyAV reads is decoded whole).

    Returns:
        wav_N float32 at ``sample_rate_hz``, and the rate of the file.
    """
    import soundfile

    pieces: list[np.ndarray] = []
    try:
        _check_whole(path, str(path))
        with soundfile.SoundFile(str(path)) as opened:
            rate_hz = int(opened.samplerate)
            start, num = _samples(start_sec, duration_sec, rate_hz)
            opened.seek(min(start, opened.frames))
            whole = opened.channels <= (channel or 0) or Path(path).suffix.lower() in RAW_FORMATS
            there = max(0, opened.frames - start)
            left = 0 if whole else there if num is None else min(num, there)
            resampler = Resampler(rate_hz, sample_rate_hz)
            while len(
                wav_NC := opened.read(min(left, WINDOW_SEC * rate_hz), dtype="float32", always_2d=True)
            ):
                left -= len(wav_NC)
                wav_N = wav_NC.mean(axis=1) if channel is None else wav_NC[:, channel]
                pieces.append(resampler.push(wav_N))
            if left:  # less than its head says: decode_audio knows what that means
                pieces = []
            elif pieces:
                pieces.append(resampler.finish())
    except (soundfile.LibsndfileError, RuntimeError, OSError):
        pieces = []
    if not pieces:  # another format, or nothing in it: decode_audio says what
        wav_CN, rate_hz = decode_audio(path, start_sec, duration_sec, channel)
        return resample(wav_CN.mean(axis=0), rate_hz, sample_rate_hz), rate_hz
    return np.concatenate(pieces), rate_hz


def audio_facts(path: str | Path) -> tuple[int, int, int]:
    """Channels, samples and sample rate in Hz of a file, from its head where that tells."""
    import soundfile

    with suppress(soundfile.LibsndfileError, RuntimeError, TypeError):
        known = soundfile.info(str(path))
        if known.frames < UNKNOWN:
            return known.channels, known.frames, known.samplerate
    wav_CN, rate_hz = decode_audio(path)
    return wav_CN.shape[0], wav_CN.shape[1], rate_hz


def read_audio(
    source: str | Path | bytes, *, sample_rate_hz: int | None = None, mono: bool = True
) -> np.ndarray:
    """Read a recording as one channel.

    Args:
        source: a path, or the bytes of a whole file.
        sample_rate_hz: the rate that the file must have; None takes any (see ``read_audio_at`` to convert).
        mono: True refuses a file of several channels; False takes their mean.

    Returns:
        wav_N float32.

    Raises:
        UserError: unreadable, empty, not finite, another rate, several channels.
    """
    wav_CN, rate_hz = decode_audio(source)
    if sample_rate_hz is not None and rate_hz != sample_rate_hz:
        raise UserError(f"{_name(source)}: sample rate is {rate_hz} Hz, expected {sample_rate_hz} Hz")
    return _one_channel(wav_CN, _name(source), mono)


def read_audio_at(source: str | Path | bytes, sample_rate_hz: int, *, mono: bool = True) -> np.ndarray:
    """As ``read_audio``, but a file of another rate is resampled to ``sample_rate_hz``."""
    wav_CN, rate_hz = decode_audio(source)
    return resample(_one_channel(wav_CN, _name(source), mono), rate_hz, sample_rate_hz)


def _name(source: str | Path | bytes) -> str:
    return "audio bytes" if isinstance(source, bytes) else str(source)


def _one_channel(wav_CN: np.ndarray, name: str, mono: bool) -> np.ndarray:
    if mono and wav_CN.shape[0] != 1:
        raise UserError(f"{name}: {wav_CN.shape[0]} channels, expected 1 (mono)")
    if not np.isfinite(wav_CN).all():
        raise UserError(f"{name}: {int((~np.isfinite(wav_CN)).sum())} samples are not finite (NaN or Inf)")
    wav_N: np.ndarray = wav_CN[0] if wav_CN.shape[0] == 1 else wav_CN.mean(axis=0)
    return wav_N


def resample(wav_N: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited conversion of the sample rate (soxr, high quality)."""
    if from_hz == to_hz:
        return wav_N
    import soxr

    resampled: np.ndarray = soxr.resample(wav_N, from_hz, to_hz).astype(np.float32)
    return resampled


class Resampler:
    """``resample`` of sound that comes in pieces: no seam can be heard, and in all there are as many samples.

    Args:
        from_hz, to_hz: sample rates.
    """

    def __init__(self, from_hz: float, to_hz: float) -> None:
        import soxr

        self._stream = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, "float32")

    def push(self, wav_N: np.ndarray) -> np.ndarray:
        """The next samples (N,), float32, of any number; returns those of the other rate that are ready."""
        if self._stream is None:
            return wav_N
        resampled: np.ndarray = self._stream.resample_chunk(wav_N)
        return resampled

    def finish(self) -> np.ndarray:
        """The sound is over: the samples that are left."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        left: np.ndarray = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        return left


def one_channel(wav_N: np.ndarray) -> np.ndarray:
    """Samples as float32 (N,).

    Raises:
        UserError: several channels, whole numbers, or values that are not finite.
    """
    samples = np.asarray(wav_N)
    if samples.dtype.kind in "iu":
        raise UserError(f"speech of {samples.dtype}: expected floats in [-1, 1]; divide int16 by 32768")
    samples = samples.astype(np.float32, copy=False)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise UserError(f"speech of shape {samples.shape}: expected one channel of finite samples")
    return samples


def encode_audio(wav_N: np.ndarray, sample_rate_hz: int, form: str = "FLAC") -> bytes:
    """The bytes of a 16-bit mono FLAC (or ``WAV``) file; values outside [-1, 1] are clipped."""
    import soundfile

    buffer = io.BytesIO()
    pcm_N = np.clip(np.round(np.asarray(wav_N, np.float64) * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(buffer, pcm_N, sample_rate_hz, format=form, subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: str | Path, wav_N: np.ndarray, sample_rate_hz: int) -> None:
    """Write a 16-bit mono WAV file."""
    Path(path).write_bytes(encode_audio(wav_N, sample_rate_hz, "WAV"))


def _by_soundfile(
    source: str | Path | bytes, suffix: str, name: str, start_sec: float, duration_sec: float | None
) -> tuple[np.ndarray, int] | None:
    """wav_CN and rate, or None for a format that soundfile does not know."""
    import soundfile

    if suffix in RAW_FORMATS:
        return None
    exact = False
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        with soundfile.SoundFile(file) as opened:
            rate_hz, there = opened.samplerate, opened.frames
            if there >= UNKNOWN:
                return None
            exact = opened.format == "FLAC" or (opened.format == "MP3" and _counts_frames(source))
            start, num = _samples(start_sec, duration_sec, rate_hz)
            if start:
                opened.seek(min(start, there))
            wav_NC = opened.read(-1 if num is None else num, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        if exact:
            raise UserError(
                f"{name}: cut off or damaged: not all of its {there} samples can be read"
            ) from error
        return None
    promised = max(0, there - start) if num is None else min(num, max(0, there - start))
    if exact and len(wav_NC) < promised:
        raise UserError(f"{name}: cut off: {promised} samples by its head, {len(wav_NC)} are there")
    return np.ascontiguousarray(wav_NC.T), int(rate_hz)


def _counts_frames(source: str | Path | bytes) -> bool:
    """Whether the head of an MP3 says how long it is: the number is guessed from the file's size if not."""
    with _opened(source) as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # its size in seven bits a byte
            file.seek(10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10])))
        else:
            file.seek(0)
        start = file.read(64)
    return b"Xing" in start or b"Info" in start


def _opened(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _check_whole(source: str | Path | bytes, name: str) -> None:
    """A WAV or OGG whose head, or last page's head, promises more than follows is a UserError: libraries read on."""
    with _opened(source) as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            _check_last_page(file, name)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        while len(chunk := file.read(8)) == 8:
            kind, size = struct.unpack("<4sI", chunk)
            if kind == b"data":
                begin = file.tell()
                there = file.seek(0, io.SEEK_END) - begin
                if there < size < STREAMED:
                    raise UserError(f"{name}: cut off: {size} bytes of sound by its head, {there} are there")
                return
            file.seek(size + size % 2, io.SEEK_CUR)


def _check_last_page(file: BinaryIO, name: str) -> None:
    """The last page of an OGG must be there to its end: a table in its head names the sizes of its parts."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - 2 * OGG_PAGE))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    size = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else OGG_PAGE
    if len(page) < size:
        raise UserError(
            f"{name}: cut off: {size} bytes of its last page by the page's head, {len(page)} are there"
        )


def _samples(start_sec: float, duration_sec: float | None, rate_hz: int) -> tuple[int, int | None]:
    """First sample and number of samples of a part."""
    start = round(start_sec * rate_hz)
    return start, None if duration_sec is None else max(
        0, round((start_sec + duration_sec) * rate_hz) - start
    )


def _by_av(
    source: str | Path | bytes, suffix: str, name: str, start_sec: float, duration_sec: float | None
) -> tuple[np.ndarray, int]:
    import av

    file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    pieces: list[np.ndarray] = []
    rate_hz = 0
    try:
        with av.open(file, format=RAW_FORMATS.get(suffix)) as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", rate=stream.rate)
            rate_hz = int(stream.rate or 0)
            for frame in container.decode(stream):
                pieces += [part.to_ndarray() for part in resampler.resample(frame)]
            pieces += [part.to_ndarray() for part in resampler.resample(None)]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as audio ({str(error).splitlines()[0]})") from error
    if not pieces:
        return np.zeros((1, 0), np.float32), rate_hz
    start, num = _samples(start_sec, duration_sec, rate_hz)
    wav_CN = np.concatenate(pieces, axis=1).astype(np.float32)
    return wav_CN[:, start : None if num is None else start + num], rate_hz
