"""Changes to waveforms while training: speed, level, noise, codecs. All draws come from the generator that is given.

Who gives it seeds it by step and key of the sample, so the same step hears the same, on whatever rank or worker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from omniaudio.errors import UserError
from omniaudio.frontend.audio import AUDIO_ENDINGS, read_audio_at, resample

Sound = tuple[np.ndarray, float]
"""wav_N, and the highest frequency with sound in it, in Hz."""


class Augmentation(Protocol):
    """One change, or a chain of them."""

    @property
    def longest(self) -> float:
        """Factor by which a waveform may grow; plans of batches leave room for it."""
        ...

    def __call__(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound: ...


class Chain:
    """Changes one after the other; each is made with its own probability.

    Args:
        steps: the changes.
    """

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = list(steps)

    @property
    def longest(self) -> float:
        return float(np.prod([step.longest for step in self.steps])) if self.steps else 1.0

    def __call__(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        for step in self.steps:
            sound = step(sound, rate_hz, rng)
        return sound


class _Sometimes:
    """A change of a share of the samples; how many draws it takes does not depend on what was drawn.

    Args:
        share: of the samples, in [0, 1].
    """

    longest: float = 1.0

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"augment: share {share} must lie in [0, 1]")
        self.share = share

    def __call__(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        chosen, own = rng.random() < self.share, np.random.default_rng(int(rng.integers(1 << 62)))
        return self.change(sound, rate_hz, own) if chosen else sound

    def change(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        raise NotImplementedError


class Speed(_Sometimes):
    """Faster or slower, with the pitch, as a tape.

    Args:
        share: of the samples.
        factors: one is drawn; 1.1 is a tenth faster.
    """

    def __init__(self, share: float, factors: Sequence[float] = (0.9, 1.1)) -> None:
        super().__init__(share)
        if not factors or min(factors) <= 0:
            raise UserError(f"augment: factors {list(factors)} must be positive")
        self.factors = tuple(factors)
        self.longest = max(1.0, 1 / min(factors))

    def change(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        wav_N, band_hz = sound
        factor = self.factors[int(rng.integers(len(self.factors)))]
        return resample(wav_N, round(rate_hz * factor), rate_hz), min(band_hz * factor, rate_hz / 2)


class Gain(_Sometimes):
    """Louder or softer; never beyond full scale.

    Args:
        share: of the samples.
        db: least and most.
    """

    def __init__(self, share: float, db: tuple[float, float] = (-12.0, 6.0)) -> None:
        super().__init__(share)
        self.db = _ordered("db", db)

    def change(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        wav_N, band_hz = sound
        peak = float(np.abs(wav_N).max(initial=1e-6))
        return wav_N * np.float32(min(10 ** (rng.uniform(*self.db) / 20), 1 / peak)), band_hz


class Noise(_Sometimes):
    """Noise of recordings, or made: white, or pink (power falls with frequency).

    Args:
        share: of the samples.
        snr_db: least and most of the speech's power over the noise's.
        colour: white or pink; of the noise that is made.
        folder: of recordings of noise; one is drawn, and repeated where it is shorter.
    """

    def __init__(
        self,
        share: float,
        snr_db: tuple[float, float] = (5.0, 30.0),
        colour: str = "pink",
        folder: str | None = None,
    ) -> None:
        super().__init__(share)
        if colour not in ("white", "pink"):
            raise UserError(f"augment: colour {colour!r} is neither white nor pink")
        self.snr_db, self.colour = _ordered("snr_db", snr_db), colour
        self.paths: list[Path] = []
        if folder is not None:
            self.paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in AUDIO_ENDINGS)
            if not self.paths:
                raise UserError(f"augment: folder {folder}: no recordings of noise")

    def change(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        wav_N, _ = sound
        snr_db = rng.uniform(*self.snr_db)
        noise_N = self._recorded(len(wav_N), rate_hz, rng) if self.paths else self._made(len(wav_N), rng)
        power, noise_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (wav_N, noise_N))
        if not power or not noise_power:
            return sound
        mixed_N = wav_N + noise_N * np.float32(np.sqrt(power / noise_power / 10 ** (snr_db / 10)))
        return (mixed_N / max(1.0, float(np.abs(mixed_N).max()))).astype(np.float32), rate_hz / 2

    def _made(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        noise_N = rng.standard_normal(num_samples).astype(np.float32)
        if self.colour == "white":
            return noise_N
        spectrum = np.fft.rfft(noise_N)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
        return np.fft.irfft(spectrum, num_samples).astype(np.float32)

    def _recorded(self, num_samples: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
        noise_N = _opened(self.paths[int(rng.integers(len(self.paths)))], rate_hz)
        start = int(rng.integers(max(1, len(noise_N) - num_samples + 1)))
        return np.resize(noise_N[start:], num_samples)


CODECS = ("mulaw", "g722", "mp3", "opus")


class Codec(_Sometimes):
    """Through a codec and back, in the length it had.

    Args:
        share: of the samples.
        codecs: one is drawn: mulaw (telephone, 8 kHz), g722 (16 kHz), mp3, opus.
    """

    def __init__(self, share: float, codecs: Sequence[str] = CODECS) -> None:
        super().__init__(share)
        if unknown := sorted(set(codecs) - set(CODECS)) or (not codecs and ["none given"]):
            raise UserError(f"augment: codecs {', '.join(unknown)}; allowed are {', '.join(CODECS)}")
        self.codecs = tuple(codecs)

    def change(self, sound: Sound, rate_hz: int, rng: np.random.Generator) -> Sound:
        wav_N, band_hz = sound
        codec = self.codecs[int(rng.integers(len(self.codecs)))]
        if codec == "mulaw":
            return _fitted(resample(_mulaw(resample(wav_N, rate_hz, 8000)), 8000, rate_hz), wav_N), min(
                band_hz, 4000
            )
        if codec == "g722":
            coded_N = _g722(resample(wav_N, rate_hz, 16_000))
            return _fitted(resample(coded_N, 16_000, rate_hz), wav_N), min(band_hz, 8000)
        return _fitted(_soundfile(wav_N, rate_hz, codec), wav_N), band_hz


def _ordered(name: str, pair: Sequence[float]) -> tuple[float, float]:
    low, high = (float(x) for x in pair)
    if low > high:
        raise UserError(f"augment: {name} {list(pair)}: the least comes first")
    return low, high


def _fitted(wav_N: np.ndarray, like_N: np.ndarray) -> np.ndarray:
    """Cut or padded to the length of another."""
    return np.pad(wav_N[: len(like_N)], (0, max(0, len(like_N) - len(wav_N)))).astype(np.float32)


def _mulaw(wav_N: np.ndarray) -> np.ndarray:
    """To 8-bit mu-law (ITU-T G.711's curve) and back."""
    squeezed = np.sign(wav_N) * np.log1p(255 * np.abs(np.clip(wav_N, -1, 1))) / np.log(256)
    coded = np.round(squeezed * 127) / 127
    return (np.sign(coded) * (256 ** np.abs(coded) - 1) / 255).astype(np.float32)


def _soundfile(wav_N: np.ndarray, rate_hz: int, codec: str) -> np.ndarray:
    import soundfile

    buffer = io.BytesIO()
    if codec == "mp3":
        soundfile.write(buffer, wav_N, rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    else:
        soundfile.write(buffer, resample(wav_N, rate_hz, 48_000), 48_000, format="OGG", subtype="OPUS")
    return read_audio_at(buffer.getvalue(), rate_hz)


def _g722(wav_N: np.ndarray) -> np.ndarray:
    import av

    buffer = io.BytesIO()
    pcm = np.round(np.clip(wav_N, -1, 1) * 32767).astype(np.int16)[None]
    with av.open(buffer, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with av.open(io.BytesIO(buffer.getvalue()), "r", format="g722") as opened:
        parts = [frame.to_ndarray() for frame in opened.decode(audio=0)]
    return np.concatenate(parts, axis=1)[0].astype(np.float32) / 32768


@lru_cache(maxsize=16)
def _opened(path: Path, rate_hz: int) -> np.ndarray:
    return read_audio_at(path, rate_hz, mono=False)
