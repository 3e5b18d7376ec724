"""Step number -> this rank's batch. What reads them is the same for waveforms, codes and documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from omniaudio.data.augment import Augmentation
from omniaudio.data.clip_mixture import ClipMixture, CorporaOfClips, WeightedClips
from omniaudio.data.index import chars_column, text_number
from omniaudio.data.planning import (
    CHUNK,
    ChapteredPlan,
    PooledPlan,
    largest_padded,
    most_written,
    share_of,
)
from omniaudio.data.prompts import WRITTEN, written_prompt
from omniaudio.data.shards import ShardReader, load_npy
from omniaudio.errors import DamagedSampleError, UserError
from omniaudio.fingerprint import Fingerprint, check_fingerprints
from omniaudio.frontend.audio import read_audio, resample
from omniaudio.types import Batch, Codes, CodesWaveBatch, WaveBatch

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_SEARCHED = 1 << 13
"""Samples on either side of where a clip's codes should stand, if the clips without codes lay evenly."""

MAX_CACHE_BYTES = 1 << 30
"""Memory of a process for decoded clips."""


class StepSource(Protocol):
    """Where batches come from."""

    def batch(self, step: int, part: int, num_parts: int) -> Batch:
        """``part`` is one (micro-batch, rank) pair of ``num_parts``."""
        ...

    def largest(self, num_parts: int) -> Iterator[Batch]:
        """Batches that no part of any step exceeds, whatever the plan comes to: see ``Task.rehearse``."""
        ...

    plan: ChapteredPlan[Any]

    def check_layout(self, layout: Fingerprint) -> None:
        """Raise a UserError if the batches hold codes of another token layout."""
        ...


class StepStream(IterableDataset):
    """The batches of one rank, from any batch on: batch i is micro-batch i % accumulate of step i // accumulate.

    Workers take turns, and the loader asks them in turn, so the order is that of one process.

    Args:
        start: first batch; a resumed run begins where the stopped one ended.
        stop: one past the last batch.
    """

    def __init__(
        self,
        source: StepSource,
        start: int,
        stop: int,
        rank: int = 0,
        num_ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.source, self.start, self.stop = source, start, stop
        self.rank, self.num_ranks, self.accumulate = rank, num_ranks, accumulate

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(self.start + first, self.stop, stride):
            step, micro = divmod(index, self.accumulate)
            part = micro * self.num_ranks + self.rank
            batch = self.source.batch(step, part, self.accumulate * self.num_ranks)
            batch.memo = self.source.plan.memo(step)
            yield batch


class WaveSteps:
    """Waveforms of audio shards, cropped to a length, in steps of similar lengths.

    Args:
        shards_dir: folder of audio shards.
        split: train, dev or test.
        sample_rate_hz: of the batches; clips at another rate are resampled once and kept in memory.
        batch_sec: seconds of padded audio in a step, over all ranks.
        crop_sec: longer clips are cropped: at random in training, at the start otherwise.
        crop_at_start: crop at the start in training too (causal parts hear the clip's beginning).
        min_sec: shorter clips are zero-padded to this length.
        codes_dir: folder of code shards of the same split; batches then carry the codes of the crop.
        min_band_hz: leave out clips whose sound ends below this frequency, unless all do: what is to be generated needs
            examples of it.
        mixture: what clips are asked for, and shares of the corpora in a training; None asks for transcripts, of clips
            as they come.
        seed: of all draws; None for held-out data: no shuffling, crops at the start, nothing drawn.
        augment: changes to the waveforms of a training; the same for the same step and key.
    """

    def __init__(
        self,
        shards_dir: str | Path,
        split: str,
        sample_rate_hz: int,
        batch_sec: float,
        crop_sec: float,
        seed: int | None = 0,
        crop_at_start: bool = False,
        min_sec: float = 0.0,
        codes_dir: str | Path | None = None,
        min_band_hz: float = 0.0,
        mixture: ClipMixture | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        self.reader = ShardReader(shards_dir, split)
        self.rate, self.crop_sec, self.min_sec = sample_rate_hz, crop_sec, min_sec
        self.seed, training = seed or 0, seed is not None
        self.crop_at_start, self.augment = crop_at_start or not training, augment if training else None
        if self.augment is not None and codes_dir:
            raise UserError(
                "augment: the codes of codes_dir are those of the clips as they are; leave out one of both"
            )
        mixture = mixture or ClipMixture()
        self.kind_weights = dict(mixture.weights)
        self.codes = ShardReader(codes_dir, split) if codes_dir else None
        if crop_sec > batch_sec:
            raise UserError(
                f"crop_sec {crop_sec:g} exceeds batch_sec {batch_sec:g}: a step must hold the longest clip"
            )
        longest = self.augment.longest if self.augment is not None else 1.0
        self.lengths = ClipSeconds(self.reader, min_sec, crop_sec, min_band_hz, longest)
        corpora = CorporaOfClips(self.reader)
        self._code_lag = 0
        self.plan: PooledPlan | WeightedClips = (
            WeightedClips(mixture, corpora, self.lengths, batch_sec, self.seed)
            if training and not mixture.as_they_come
            else PooledPlan(
                self.lengths, batch_sec, self.seed, shuffle=training, groups=corpora.names if training else None
            )
        )
        self._cache: dict[int, np.ndarray] = {}
        self._cache_bytes = 0

    def batch(self, step: int, part: int, num_parts: int) -> WaveBatch:
        items = self.plan[step]
        mine = share_of(items, part, num_parts)
        crops, damaged = readable(lambda item: self._crop(step, item), mine, spare=items)
        if not crops:
            raise none_whole(damaged)
        batch = self._collate(crops, [self.kind_of(step, crop.item) for crop in crops])
        batch.damaged = damaged
        return batch

    def largest(self, num_parts: int) -> Iterator[WaveBatch]:
        """Noise of the length of the longest clip of all, with the text of the longest that is not cropped; and, where
        the shards know the lengths of texts, of the clips that a part may have with the most text.
        """
        longest, item = self.lengths.longest_item()
        facts = self.reader.entries[item].facts
        text = max(
            (str(facts.get(WRITTEN[kind], "")) for kind, share in self.kind_weights.items() if share), key=len
        )
        for number, seconds in largest_padded(self.plan.budget, longest, num_parts):
            num_samples, codes_SK = round(seconds * self.rate), None
            if self.codes is not None:
                layout = self.codes.fingerprint
                num_frames = max(1, int(seconds * float(layout["code_rate_hz"])))
                codes_SK = np.zeros((num_frames, len(layout["codebook_sizes"])), np.int64)
            noise_N = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
            batch = self._collate(
                [_Crop(item, noise_N, True, self.rate / 2, codes_SK)] * number, ["asr"] * number
            )
            batch.texts = [text] * number
            yield batch
        if self.codes is None:  # who reads codes reads no texts
            yield from self._most_written(num_parts)

    def _most_written(self, num_parts: int) -> Iterator[WaveBatch]:
        """The batch with the most text, if there is any and its length is known.

        A clip stands in it once, also where shares of corpora may bring those of a small one into a step twice.
        """
        kinds = [kind for kind, share in self.kind_weights.items() if share]

        def chars(items: np.ndarray) -> np.ndarray:
            columns = {kind: self.reader.column(chars_column(WRITTEN[kind]))[items] for kind in kinds}
            asked = [np.where(c > 0, c + len(written_prompt(kind, "en")), 0) for kind, c in columns.items()]
            return np.where(self.lengths.recorded(items) <= self.crop_sec, np.max(asked, axis=0), 0)

        seconds, items = most_written(self.lengths, chars, self.plan.budget, num_parts)
        if not len(items):
            return
        noise_N = np.random.default_rng(0).normal(0, 0.1, round(seconds * self.rate)).astype(np.float32)
        facts = [self.reader.entries[item].facts for item in items.tolist()]
        yield self._collate(
            [_Crop(item, noise_N, True, self.rate / 2, None) for item in items.tolist()],
            [max(kinds, key=lambda kind: len(known.get(WRITTEN[kind], ""))) for known in facts],
        )

    def _draws(self, step: int, item: int, purpose: str) -> np.random.Generator:
        key = text_number(self.reader.entries[item].key)
        return np.random.default_rng([self.seed, step, key, *purpose.encode()])

    def check_layout(self, layout: Fingerprint) -> None:
        if self.codes:
            check_fingerprints(layout, self.codes.fingerprint, str(self.codes.folder))

    def _wave(self, item: int) -> np.ndarray:
        """The whole clip at the batch's rate, as int16."""
        if item in self._cache:
            return self._cache[item]
        wav = read_audio(self.reader.member(item, "flac"))
        wav = resample(wav, int(self.reader.entries[item].facts["sample_rate_hz"]), self.rate)
        clip = np.round(np.clip(wav, -1.0, 1.0) * 32767).astype(np.int16)
        if self._cache_bytes + clip.nbytes <= MAX_CACHE_BYTES:
            self._cache[item] = clip
            self._cache_bytes += clip.nbytes
        return clip

    def _crop(self, step: int, item: int) -> _Crop:
        clip = self._wave(item)
        num_wanted = round(self.crop_sec * self.rate)
        spare = len(clip) - num_wanted
        whole = spare <= 0
        start = 0 if whole or self.crop_at_start else int(self._draws(step, item, "crop").integers(spare + 1))
        sound = (
            clip[start : start + num_wanted].astype(np.float32) / 32767,
            band_hz(self.reader.entries[item].facts),
        )
        if self.augment is not None:
            sound = self.augment(sound, self.rate, self._draws(step, item, "augment"))
        wav, band = sound
        whole, wav = whole and len(wav) <= num_wanted, wav[:num_wanted]
        wav = np.pad(wav, (0, max(0, round(self.min_sec * self.rate) - len(wav))))
        return _Crop(item, wav, whole, band, self._codes_of(item, whole))

    def kind_of(self, step: int, item: int) -> str:
        """What a clip is asked for in a step; the transcript if it has nothing else."""
        facts = self.reader.entries[item].facts
        weights = {
            kind: share for kind, share in self.kind_weights.items() if share and facts.get(WRITTEN[kind])
        }
        if not weights:
            return "asr"
        shares = np.cumsum(list(weights.values()))
        drawn = self._draws(step, item, "kind").random() * shares[-1]
        return list(weights)[int(np.searchsorted(shares, drawn, side="right"))]

    def _codes_of(self, item: int, whole: bool) -> np.ndarray | None:
        if self.codes is None:
            return None
        position = self._code_place(self.codes, item)
        codes = load_npy(self.codes.member(position, "codes.npy")).astype(np.int64)
        code_rate_hz = float(self.codes.fingerprint["code_rate_hz"])
        return codes if whole else codes[: int(self.crop_sec * code_rate_hz)]

    def _code_place(self, codes: ShardReader, item: int) -> int:
        """Position of a clip's codes: its own, or one near by where some clips have no codes."""
        key = self.reader.entries[item].key
        if item < len(codes) and codes.entries[item].key == key:
            return item
        # Codes are in the order of the clips: behind the first clip without some, their places lag by ever more.
        num_clips, lacking = len(self.reader), abs(len(self.reader) - len(codes))
        guess = item + round((len(codes) - num_clips) * item / num_clips) + self._code_lag
        first = max(0, guess - MAX_SEARCHED, item - lacking)
        near = range(first, min(guess + MAX_SEARCHED, item + lacking, len(codes) - 1) + 1)
        for place in sorted(near, key=lambda place: abs(place - guess)):
            if codes.entries[place].key == key:
                return place
        for place in range(len(codes)):  # very uneven gaps: once, what follows is near this one
            if codes.entries[place].key == key:
                self._code_lag += place - guess
                return place
        raise UserError(f"{codes.folder}: no codes for {key!r}; extract the codes of this split again")

    def _collate(self, crops: list[_Crop], kinds: list[str]) -> WaveBatch:
        entries = [self.reader.entries[crop.item] for crop in crops]
        wav_BN, num_samples_B = pad([crop.wav_N for crop in crops])
        common: dict[str, Any] = {
            "keys": [e.key for e in entries],
            "wav_BN": wav_BN,
            "num_samples_B": num_samples_B,
            "sample_rate_hz": self.rate,
            "kinds": kinds,
            "texts": [
                e.facts.get(WRITTEN[kind], "") if crop.whole else ""
                for e, kind, crop in zip(entries, kinds, crops, strict=True)
            ],
            "languages": [e.facts["language"] for e in entries],
            "band_hz_B": torch.tensor([crop.band_hz for crop in crops]),
        }
        if self.codes is None:
            return WaveBatch(**common)
        codes_BSK, num_frames_B = pad(
            [crop.codes_SK for crop in crops if crop.codes_SK is not None], value=-1
        )
        return CodesWaveBatch(**common, codes=Codes(codes_BSK=codes_BSK, num_frames_B=num_frames_B))


def readable(
    read: Callable[[Item], Result], items: Sequence[Item], spare: Sequence[Item] = ()
) -> tuple[list[Result], list[str]]:
    """What is read of all items whose bytes are whole, and a line for each of the others.

    Args:
        spare: other items of the step; where none of ``items`` is whole, the first whole one stands for them, so that
            no rank is left without a batch.
    """
    found: list[Result] = []
    damaged: list[str] = []
    for place, item in enumerate([*items, *spare]):
        if place >= len(items) and found:
            break
        try:
            found.append(read(item))
        except DamagedSampleError as error:
            damaged.append(str(error))
    return found, list(dict.fromkeys(damaged))


def none_whole(damaged: Sequence[str]) -> UserError:
    """What ends a run: a step of damaged samples alone."""
    return UserError(f"all {len(damaged)} samples of a step are damaged, the first: {damaged[0]}")


class _Crop(NamedTuple):
    """What a batch takes of a clip."""

    item: int
    wav_N: np.ndarray
    whole: bool
    band_hz: float
    codes_SK: np.ndarray | None


class ClipSeconds:
    """Seconds that clips take in a batch, from the columns of their shards; NaN for one whose band is too narrow, and
    for one that only a language model is to learn from.

    Args:
        reader: audio shards.
        min_sec, crop_sec: shorter clips are padded, longer ones cropped.
        min_band_hz: see WaveSteps.
        longest: factor by which an augmentation may lengthen them.
    """

    def __init__(
        self,
        reader: ShardReader,
        min_sec: float,
        crop_sec: float,
        min_band_hz: float = 0.0,
        longest: float = 1.0,
    ) -> None:
        if len(reader) and (
            lacking := [n for n in ("num_samples", "sample_rate_hz") if n not in reader.listing.kinds]
        ):
            raise UserError(
                f"{reader.folder}: its samples have no {', '.join(lacking)}; are these shards of audio?"
            )
        self.longest = longest
        self.reader, self.min_sec, self.crop_sec, self.min_band_hz = reader, min_sec, crop_sec, min_band_hz
        starts = range(0, len(reader), CHUNK)
        if min_band_hz and all(
            np.isnan(self[np.arange(i, min(i + CHUNK, len(reader)))]).all() for i in starts
        ):
            self.min_band_hz = 0.0

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, items: np.ndarray) -> np.ndarray:
        num_samples, rate_hz, band, only = (
            np.asarray(self.reader.column(name)[items])
            for name in ("num_samples", "sample_rate_hz", "band_hz", "only")
        )
        seconds = np.clip(num_samples / rate_hz * self.longest, self.min_sec, self.crop_sec)
        fits = (np.where(band > 0, band, rate_hz / 2) >= self.min_band_hz) & (only == 0)
        return np.where(fits, seconds, np.nan)

    def recorded(self, items: np.ndarray) -> np.ndarray:
        """Seconds of whole clips, as they are in the shards."""
        num_samples, rate_hz = (
            np.asarray(self.reader.column(name)[items]) for name in ("num_samples", "sample_rate_hz")
        )
        return np.asarray(num_samples / rate_hz)

    def longest_item(self) -> tuple[float, int]:
        """Seconds of the longest clip of all, and which is the longest of those that are not cropped."""
        most, whole, item = 0.0, -1.0, 0
        for start in range(0, len(self), CHUNK):
            items = np.arange(start, min(start + CHUNK, len(self)))
            seconds = self[items]
            most = max(most, float(np.nanmax(seconds, initial=0.0)))
            recorded = self.recorded(items)
            uncut = np.where(np.isnan(seconds) | (recorded > self.crop_sec), -1.0, recorded)
            if uncut.max() > whole:
                whole, item = float(uncut.max()), int(items[uncut.argmax()])
        return most, item


def band_hz(facts: Mapping[str, Any]) -> float:
    """Highest frequency with sound in a clip of a shard."""
    return float(facts.get("band_hz", facts["sample_rate_hz"] / 2))


def pad(rows: list[np.ndarray], value: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length to one tensor and their lengths."""
    tensors = [torch.from_numpy(np.ascontiguousarray(row)) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    return padded, torch.tensor([len(row) for row in rows])
