"""Steps on recordings: where there is speech, who speaks, how good it sounds, and cuts where it pauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from omniaudio.corpus.build.segment import Segment, device_for
from omniaudio.corpus.build.text_steps import CLAUSE_ENDS, CLOSING, SENTENCE_ENDS
from omniaudio.errors import UserError
from omniaudio.metrics.asr_judge import TimedWord
from omniaudio.metrics.voice import load_voice_encoder, opinion

SHORTEST_SEC = 0.1  # what is shorter has no word in it, and not the samples that a tokenizer begins with
RATE_HZ = 16_000  # what the models of these steps were made for
EXTRA = "pip install -e .[corpora]"
WORST = 1.0  # opinion of silence


class VoiceActivity:
    """Stretches of speech (silero-vad), joined over short pauses into pieces; a long pause ends the passage.

    Args:
        max_sec: of a piece; a longer stretch of speech is cut at its quietest moment.
        max_pause_sec: longer pauses part pieces.
        max_gap_sec: longer ones part passages.
        threshold: probability above which it is speech.
        max_passage_sec: of a passage, from its first piece to the end of its last.
    """

    def __init__(
        self,
        max_sec: float = 28.0,
        max_pause_sec: float = 0.8,
        max_gap_sec: float = 5.0,
        threshold: float = 0.5,
        max_passage_sec: float = 300.0,
    ) -> None:
        self.max_sec, self.max_pause_sec, self.max_gap_sec = max_sec, max_pause_sec, max_gap_sec
        self.threshold, self.max_passage_sec = threshold, max_passage_sec
        self._model: Any = None

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [piece for segment in segments for piece in self._pieces(segment)]

    def _pieces(self, segment: Segment) -> list[Segment]:
        wav_N = _at_16k(segment)
        stretches = self.stretches(wav_N)
        if not stretches:
            return [segment.refused("no speech")]
        pieces: list[Segment] = []
        passage, place = 0, 0
        first_begin = last_end = stretches[0][0]
        for begin, end in self.joined(stretches, wav_N):
            too_long = end - first_begin > self.max_passage_sec * RATE_HZ and place > 0
            if begin - last_end > self.max_gap_sec * RATE_HZ or too_long:
                passage, place, first_begin = passage + 1, 0, begin
            name = f"{segment.passage}-{passage:03d}"
            pieces.append(
                replace(
                    segment,
                    key=f"{name}/{place:04d}",
                    passage=name,
                    place=place,
                    wav_N=wav_N[begin:end],
                    rate_hz=RATE_HZ,
                    start_sec=segment.start_sec + begin / RATE_HZ,
                )
            )
            place, last_end = place + 1, end
        return pieces

    def stretches(self, wav_N: np.ndarray) -> list[tuple[int, int]]:
        """First and last sample of every stretch of speech."""
        try:
            import silero_vad
        except ModuleNotFoundError as error:
            raise UserError(f"speech is found with silero-vad: {EXTRA}") from error
        import torch

        if self._model is None:
            self._model = silero_vad.load_silero_vad(onnx=False)
        found = silero_vad.get_speech_timestamps(
            torch.from_numpy(np.ascontiguousarray(wav_N)),
            self._model,
            threshold=self.threshold,
            sampling_rate=RATE_HZ,
        )
        return [(int(part["start"]), int(part["end"])) for part in found]

    def joined(self, stretches: Sequence[tuple[int, int]], wav_N: np.ndarray) -> list[tuple[int, int]]:
        """Stretches joined over short pauses, none longer than ``max_sec``."""
        most, pause = round(self.max_sec * RATE_HZ), self.max_pause_sec * RATE_HZ
        pieces: list[tuple[int, int]] = []
        for begin, end in stretches:
            if pieces and begin - pieces[-1][1] <= pause and end - pieces[-1][0] <= most:
                pieces[-1] = (pieces[-1][0], end)
                continue
            while end - begin > most:
                cut = _quietest(wav_N, begin + most // 2, begin + most)
                pieces.append((begin, cut))
                begin = cut
            pieces.append((begin, end))
        return pieces


class CutAtPauses:
    """Pieces with timed words into segments: behind a sentence, or at a clause or a pause once it is long enough.

    Args:
        min_sec: no segment is shorter, but a piece that is. The last of a piece joins the one before it.
        max_sec: from half of it on a clause or a pause is enough; without any a segment may be longer.
        min_pause_sec: between two words, to be one.
    """

    def __init__(self, min_sec: float = 1.0, max_sec: float = 8.0, min_pause_sec: float = 0.3) -> None:
        self.min_sec, self.max_sec, self.min_pause_sec = min_sec, max_sec, min_pause_sec

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        found: list[Segment] = []
        next_place: dict[str, int] = {}
        last_piece: dict[str, int] = {}
        for piece in segments:
            place = next_place.get(piece.passage, 0)
            if piece.place > last_piece.get(piece.passage, -1) + 1:
                place += (
                    1  # a piece between them was refused: what follows it does not follow what was before it
                )
            groups = self.cut(at_sound(piece), piece.duration_sec)
            if not groups:
                found.append(piece.refused("no times of words"))
            cuts = [(before[-1][2] + behind[0][1]) / 2 for before, behind in pairwise(groups)]
            ends = [*cuts, piece.duration_sec][: len(groups)]
            for words, begin, end in zip(groups, [0.0, *ends[:-1]][: len(groups)], ends, strict=True):
                found.append(_part(piece, words, place, begin, end))
                place += 1
            next_place[piece.passage], last_piece[piece.passage] = place, piece.place
        return found

    def cut(self, words: Sequence[TimedWord], end_sec: float) -> list[list[TimedWord]]:
        """Groups of words of a piece that is so long."""
        groups: list[list[TimedWord]] = [[]]
        for i, word in enumerate(words):
            groups[-1].append(word)
            if i + 1 == len(words):
                break
            seconds = word[2] - groups[-1][0][1]
            last = word[0].rstrip(CLOSING + " ")[-1:]
            pause = words[i + 1][1] - word[2] >= self.min_pause_sec
            at_end = last in SENTENCE_ENDS and bool(last)
            at_clause = (last in CLAUSE_ENDS and bool(last)) or pause
            if seconds >= self.min_sec and (at_end or (at_clause and seconds >= self.max_sec / 2)):
                groups.append([])
        if len(groups) > 1 and end_sec - groups[-1][0][1] < max(self.min_sec, SHORTEST_SEC):
            last_words = groups.pop()
            groups[-1] += last_words
        return [group for group in groups if group]


def at_sound(
    piece: Segment, frame_sec: float = 0.02, margin_sec: float = 0.06, quiet: float = 0.05
) -> list[TimedWord]:
    """Words that begin and end where their sound does: recognisers let a word last until the next one begins.

    Args:
        frame_sec: of the measured levels.
        margin_sec: that is left before and behind the sound.
        quiet: share of the level of loud speech (95th percentile) under which a frame is silent.
    """
    size = max(1, round(frame_sec * piece.rate_hz))
    frame_sec = size / max(1, piece.rate_hz)
    if piece.wav_N is None or len(piece.wav_N) < size:
        return list(piece.words)
    frames_TN = piece.wav_N[: len(piece.wav_N) // size * size].reshape(-1, size)
    level_T = np.sqrt((frames_TN**2).mean(axis=1))
    loud_T = level_T > quiet * np.percentile(level_T, 95)
    found = []
    for word, start, end in piece.words:
        first = int(start / frame_sec)
        loud = np.flatnonzero(loud_T[first : max(first + 1, int(np.ceil(end / frame_sec)))]) + first
        if len(loud):
            start = max(start, loud[0] * frame_sec - margin_sec)
            end = min(end, (loud[-1] + 1) * frame_sec + margin_sec)
        found.append((word, float(start), float(end)))
    return found


def _part(
    piece: Segment, words: Sequence[TimedWord], place: int, begin_sec: float, end_sec: float
) -> Segment:
    """A segment of its words; their times count from its beginning."""
    assert piece.wav_N is not None
    begin, end = round(begin_sec * piece.rate_hz), round(end_sec * piece.rate_hz)
    part = replace(
        piece,
        key=f"{piece.key}-{place:04d}",  # a refused piece of the passage keeps its own
        place=place,
        text="".join(word for word, _, _ in words).strip(),
        wav_N=piece.wav_N[begin:end],
        start_sec=piece.start_sec + begin_sec,
        words=tuple((w, max(0.0, start - begin_sec), max(0.0, stop - begin_sec)) for w, start, stop in words),
    )
    return part if part.duration_sec >= SHORTEST_SEC else part.refused(f"shorter than {SHORTEST_SEC:g} s")


class _ComparesVoices:
    """Has a speaker encoder from the first segment on."""

    device: str | None
    _loaded: Any = None

    @property
    def encoder(self) -> Any:
        self._loaded = self._loaded or load_voice_encoder(device_for(self.device))
        return self._loaded


class SpeakerConsistency(_ComparesVoices):
    """Scores ``voice_match``: the least cosine between the voice of a part and that of the whole (Resemblyzer).

    Args:
        device: torch device; null takes a GPU where there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [segment.scored(voice_match=self._least(segment)) for segment in segments]

    def _least(self, segment: Segment) -> float:
        whole, parts, _ = self.encoder.embed_utterance(_at_16k(segment), return_partials=True)
        return float((parts @ whole).min())


class SpeakerClusters(_ComparesVoices):
    """Names the speakers of a recording: segments whose voices are alike have one name.

    Args:
        max_distance: cosine distance at which voices are still the same (average linkage).
        device: torch device; null takes a GPU where there is one.
    """

    def __init__(self, max_distance: float = 0.25, device: str | None = None) -> None:
        self.max_distance, self.device = max_distance, device

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        if not segments:
            return []
        voices = np.stack([self.encoder.embed_utterance(_at_16k(segment)) for segment in segments])
        names = cluster(voices, self.max_distance)
        source = segments[0].passage.rpartition("-")[0] or segments[0].passage
        return [replace(s, speaker=f"{source}-s{name}") for s, name in zip(segments, names, strict=True)]


def cluster(voices_BD: np.ndarray, max_distance: float) -> list[int]:
    """Numbers of the clusters, in the order in which they appear."""
    if len(voices_BD) == 1:
        return [0]
    from scipy.cluster.hierarchy import fcluster, linkage

    labels = fcluster(linkage(voices_BD, "average", "cosine"), max_distance, "distance").tolist()
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [order[label] for label in labels]


class Dnsmos:
    """Scores ``dnsmos``: the overall opinion score that DNSMOS P.835 predicts, 1 to 5 (package speechmos)."""

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [segment.scored(dnsmos=opinion(_at_16k(segment)) or WORST) for segment in segments]


def _at_16k(segment: Segment) -> np.ndarray:
    from omniaudio.frontend.audio import resample

    if segment.wav_N is None:
        raise UserError(f"{segment.key}: has no sound; the pipeline needs a step before that gives it some")
    return resample(segment.wav_N, segment.rate_hz, RATE_HZ)


def _quietest(wav_N: np.ndarray, begin: int, end: int) -> int:
    """Middle of the quietest 50 ms."""
    width = RATE_HZ // 20
    powers = np.convolve(np.square(wav_N[begin:end], dtype=np.float64), np.ones(width), "valid")
    return begin + int(np.argmin(powers)) + width // 2
