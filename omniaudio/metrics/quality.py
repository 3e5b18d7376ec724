"""All measures of a signal that need no words, in one table; one whose package is missing is told, not skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.metrics import pitch, spectrum, voice
from omniaudio.metrics.records import Row
from omniaudio.metrics.signal import RATE_HZ, estoi, mean_of, pesq, stoi
from omniaudio.progress import track

SECTION = "The signal against the recording"
EXTRA = "pip install 'omniaudio[metrics]'"

Sound = tuple[np.ndarray, int]
"""Samples (N,) and their rate in Hz."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number for speech that was made of a recording.

    Attributes:
        name: of the row.
        reading: of the number, in a few words.
        hear: what it takes from a signal, a name of ``Heard.ways``; once a signal, for all measures that share it.
        compare: what was heard of the recording and of the speech -> number; None: cannot be told.
        packages: that it needs beyond those of OmniAudio.
        install: command that brings them.
        alone: it judges the speech without the recording, so the recording has a number too.
    """

    name: str
    reading: str
    hear: str
    compare: Callable[[Any, Any], float | None]
    packages: tuple[str, ...] = ()
    install: str = EXTRA
    alone: bool = False


MEASURES = (
    Measure(
        name="STOI", reading="1 is equal", hear="samples", compare=lambda a, b: stoi(a, b, RATE_HZ, RATE_HZ)
    ),
    Measure(
        name="ESTOI", reading="1 is equal", hear="samples", compare=lambda a, b: estoi(a, b, RATE_HZ, RATE_HZ)
    ),
    Measure(
        name="PESQ",
        reading="wide-band, 4.6 is equal",
        hear="samples",
        compare=lambda a, b: pesq(a, b, RATE_HZ, RATE_HZ),
        packages=("pesq",),
    ),
    Measure(
        name="mel error", reading="mean absolute, of the log-mel", hear="mel", compare=spectrum.mel_error
    ),
    Measure(
        name="MCD", reading="dB, 13 cepstra, not warped", hear="mel", compare=spectrum.cepstral_distortion
    ),
    Measure(
        name="F0 RMSE",
        reading="Hz, voiced in both",
        hear="pitch",
        compare=pitch.f0_error,
        packages=("librosa",),
    ),
    Measure(
        name="voicing error",
        reading="share of frames",
        hear="pitch",
        compare=pitch.voicing_error,
        packages=("librosa",),
    ),
    Measure(
        name="speaker similarity",
        reading="cosine, 1 is the same voice",
        hear="voice",
        compare=voice.similarity,
        packages=("resemblyzer",),
    ),
    Measure(
        name="DNSMOS",
        reading="predicted opinion, 1 to 5",
        hear="opinion",
        compare=lambda _, made: made,
        packages=("speechmos",),
        alone=True,
    ),
    Measure(
        name="DistillMOS",
        reading="predicted opinion, 1 to 5",
        hear="distilled opinion",
        compare=lambda _, made: made,
        packages=("distillmos", "xls_r_sqa"),
        install=voice.DISTILLMOS,
        alone=True,
    ),
)

NAMES = tuple(measure.name for measure in MEASURES)

Track = Callable[[Iterable[Any], str], Iterable[Any]]


def check_measures(names: Any) -> None:
    """A list of names of measures, or a UserError."""
    if not isinstance(names, list | tuple) or any(name not in NAMES for name in names):
        raise UserError(f"config measures: {names}; must be a list of {', '.join(NAMES)}")


def quality_rows(
    recordings: Sequence[Sound],
    made: Mapping[str, Sequence[np.ndarray]],
    rate_hz: int,
    names: Sequence[str] = NAMES,
    track: Track = track,
) -> tuple[list[Row], dict[str, dict[str, float | None]]]:
    """Means over the clips: one row a measure and kind of speech, and one for each measure that is not installed.

    Args:
        recordings: held-out clips.
        made: kind of speech -> waveforms of the first clips, in their order.
        rate_hz: of what was made.
        names: of the measures that are wanted.
        track: shows progress.

    Returns:
        rows; and the same numbers as measure -> kind of speech -> mean.

    Raises:
        UserError: a name is not that of a measure.
    """
    check_measures(names)
    wanted = [m for m in MEASURES if m.name in names]
    absent = [m for m in wanted if None in map(find_spec, m.packages)]
    present = [m for m in wanted if m not in absent]
    num_clips = max((len(wavs) for wavs in made.values()), default=0)
    values: dict[str, dict[str, list[float | None]]] = {m.name: {} for m in present}
    voices = voice.Voices()
    for i, recording in enumerate(track(recordings[:num_clips], "signals")):
        true = Heard(recording, voices)
        for kind, wavs in {"original recording": [], **made}.items():
            sound = Heard((wavs[i], rate_hz), voices) if wavs else true
            for measure in (m for m in present if wavs or m.alone):
                values[measure.name].setdefault(kind, []).append(compared(measure, true, sound))
    means = {m.name: {kind: mean_of(found) for kind, found in values[m.name].items()} for m in present}
    rows = [
        Row(
            section=SECTION,
            name=f"{m.name}, {kind}",
            value=mean,
            text="not measurable" if mean is None else f"{mean:.3f}",
            note=f"{m.reading}; mean of {count} clips",
        )
        for m in present
        for kind, (mean, count) in means[m.name].items()
    ]
    rows += [
        Row(
            section=SECTION,
            name=m.name,
            value=None,
            text="not installed",
            note=f"{' and '.join(m.packages)}: {m.install}",
        )
        for m in absent
    ]
    return rows, {name: {kind: mean for kind, (mean, _) in of.items()} for name, of in means.items()}


class Heard:
    """One signal at 16 kHz, and what the measures take from it, each computed when it is first asked for."""

    def __init__(self, sound: Sound, voices: voice.Voices) -> None:
        self.wav_N = resample(sound[0], sound[1], RATE_HZ)
        self.ways: dict[str, Callable[[np.ndarray], Any]] = {
            "samples": lambda wav_N: wav_N,
            "mel": spectrum.log_mel,
            "pitch": pitch.f0,
            "voice": voices,
            "opinion": voice.opinion,
            "distilled opinion": voice.distilled_opinion,
        }
        self.known: dict[str, Any] = {}

    def __call__(self, way: str) -> Any:
        if way not in self.known:
            self.known[way] = self.ways[way](self.wav_N)
        return self.known[way]


def compared(measure: Measure, true: Heard, made: Heard) -> float | None:
    """The number of a measure; None if either signal gives it nothing to hold on to."""
    heard = (None if measure.alone else true(measure.hear)), made(measure.hear)
    if heard[1] is None or (heard[0] is None and not measure.alone):
        return None
    return measure.compare(*heard)
