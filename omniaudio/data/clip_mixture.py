"""Which clips a step of an audio stage holds where corpora have shares: drawn by corpus, padded little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from omniaudio.data.index import text_number
from omniaudio.data.mixture import MixturePlan, PlannedDocument, Weight, corpus_points
from omniaudio.data.planning import CHUNK, ChapteredPlan, Lengths, ShuffledWindows, State, cut_by_padded_cost
from omniaudio.data.prompts import WRITTEN
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError

SHARES = "mixture.clips.corpora"
STEPS_PER_CHAPTER = 128
UNITS_A_SEC = 1000


@dataclass(frozen=True, kw_only=True)
class ClipMixture:
    """What clips are asked for, and how much is heard of each corpus: choices of the config group ``mixture``.

    Args:
        weights: how often a clip is asked for its transcript (asr), a response (aqa), its translation (s2tt), or what
            follows it (intlv); a clip without such a text is not asked for it.
        corpora: share of each corpus in the seconds of a training, a number or pairs (step, share); one that is not
            named is not heard. None gives each as much as it holds.
        temperature: shares of corpora are raised to 1 / temperature; above 1 the small ones come more often.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"asr": 1.0})
    corpora: Mapping[str, Weight] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(WRITTEN)):
            raise UserError(
                f"mixture.clips.weights: {', '.join(unknown)} is unknown; one of {', '.join(WRITTEN)}"
            )
        if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in self.weights.values()) or not any(
            self.weights.values()
        ):
            raise UserError(f"mixture.clips.weights: {dict(self.weights)} must be numbers >= 0 and not all 0")
        corpus_points(self.corpora, SHARES)

    @property
    def as_they_come(self) -> bool:
        """Whether clips are heard once an epoch, whatever their corpus."""
        return not self.corpora and self.temperature == 1


class CorporaOfClips:
    """The corpora of a split: their names, and where their clips lie. Memory does not grow with the split."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self._names: dict[int, str] = {}

    def numbers(self, items: np.ndarray) -> np.ndarray:
        """The corpus of each clip as the number that ``text_number`` gives its name."""
        return np.asarray(self.reader.column("corpus")[items]).astype(np.uint64)

    def names(self, items: np.ndarray) -> list[str]:
        """The corpus of each clip; only the first of a corpus is read."""
        numbers = self.numbers(items)
        for number, first in zip(*np.unique(numbers, return_index=True), strict=True):
            if int(number) not in self._names:
                facts = self.reader.entries[int(items[first])].facts
                self._names[int(number)] = str(facts.get("corpus") or "unnamed")
        return [self._names[number] for number in numbers.tolist()]

    def spans(self) -> dict[str, tuple[int, int]]:
        """Name of each corpus -> its first clip and the one behind its last."""
        spans: dict[str, tuple[int, int]] = {}
        for start in range(0, len(self.reader), CHUNK):
            items = np.arange(start, min(start + CHUNK, len(self.reader)))
            numbers = self.numbers(items)
            begins = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))  # of runs of one corpus
            ends = np.append(begins[1:], len(items))
            _, firsts = np.unique(numbers[begins], return_index=True)
            _, lasts = np.unique(numbers[begins][::-1], return_index=True)
            names = self.names(items[begins[firsts]])
            for name, begin, end in zip(names, begins[firsts], ends[::-1][lasts], strict=True):
                spans[name] = spans.get(name, (start + int(begin),))[0], start + int(end)
        return spans


class _ClipsByCorpus:
    """A catalogue (omniaudio.data.mixture) whose kinds are corpora and whose documents are clips, in milliseconds."""

    def __init__(self, corpora: CorporaOfClips, spans: Mapping[str, tuple[int, int]], lengths: Lengths) -> None:
        self.corpora, self.spans, self.lengths = corpora, spans, lengths

    def num_windows(self, kind: str) -> int:
        begin, end = self.spans[kind]
        return ShuffledWindows(end - begin, 0).num_windows

    def groups(self, kind: str, window: int, seed: int) -> list[tuple[int, ...]]:
        begin, end = self.spans[kind]
        items = begin + ShuffledWindows(end - begin, seed)[window]
        items = items[self._mine(kind, items)]
        return [(item,) for item in items[~np.isnan(self.lengths[items])].tolist()]

    def occur(self, kind: str) -> bool:
        """Whether a corpus has a clip with a length."""
        return any(self.groups(kind, window, 0) for window in range(self.num_windows(kind)))

    def seconds(self, kind: str) -> float:
        """All that a corpus holds."""
        begin, end = self.spans[kind]
        total = 0.0
        for start in range(begin, end, CHUNK):
            items = np.arange(start, min(start + CHUNK, end))
            total += float(np.nansum(self.lengths[items[self._mine(kind, items)]]))
        return total

    def num_tokens(self, kind: str, item_ids: Sequence[int], seed: int) -> int:
        return max(1, math.ceil(UNITS_A_SEC * float(self.lengths[np.array(item_ids[:1])][0])))

    def _mine(self, kind: str, items: np.ndarray) -> np.ndarray:
        numbers = self.corpora.numbers(items)
        mine: np.ndarray = numbers == np.uint64(text_number(kind))
        return mine | (numbers == 0) if kind == "unnamed" else mine

    def goes_on(self, kind: str, item_ids: Sequence[int]) -> bool:
        return False


class _PaddedMixture(MixturePlan):
    """A mixture whose steps are of similar lengths and count their padding, instead of filled to the brim."""

    name = SHARES

    def arrange(
        self, documents: Sequence[PlannedDocument]
    ) -> tuple[list[list[PlannedDocument]], list[PlannedDocument]]:
        """Steps of falling length; the last is rarely full.  (Were it to wait, the shortest clips would wait for ever.)"""
        lengths = np.array([document.num_tokens for document in documents], dtype=np.float64)
        steps = cut_by_padded_cost(np.argsort(-lengths, kind="stable"), lengths, self.tokens_per_step)
        chosen = [[documents[i] for i in step.tolist()] for step in steps]
        return chosen, []

    def size(self, step: Sequence[PlannedDocument]) -> tuple[int, int]:
        longest = max(document.num_tokens for document in step)
        return len(step) * longest, longest


class WeightedClips(ChapteredPlan[int]):
    """``plan[step]`` -> clips of similar length, each corpus with its share of the seconds.

    Corpora take turns by their shares; within one every clip is heard before any is heard again. A chapter of
    ``STEPS_PER_CHAPTER`` steps is drawn with the shares of its first step, sorted by length and cut into steps.

    Args:
        mixture: shares of the corpora.
        corpora: of the split.
        lengths: seconds of every clip; NaN leaves one out.
        budget: seconds of padded audio in a step.
        seed: of all shuffles.

    Raises:
        UserError: a corpus that the split does not have; no clip may be heard.

    Attributes:
        unheard: corpora with a share, but without a clip that may be heard here.
    """

    def __init__(
        self, mixture: ClipMixture, corpora: CorporaOfClips, lengths: Lengths, budget: float, seed: int
    ) -> None:
        spans = corpora.spans()
        clips = _ClipsByCorpus(corpora, spans, lengths)
        named = corpus_points(mixture.corpora, SHARES)
        shares: dict[str, Weight] = {name: (mixture.corpora or {})[name] for name in named}
        if unknown := sorted(set(shares) - set(spans)):
            raise UserError(
                f"{SHARES}: {', '.join(unknown)} is not in {corpora.reader.folder}, which has {', '.join(sorted(spans))}"
            )
        self.unheard = [name for name in sorted(shares or spans) if not clips.occur(name)]
        shares = shares or {name: clips.seconds(name) for name in spans}
        shares = {name: share for name, share in shares.items() if name not in self.unheard}
        if not shares:
            raise UserError(
                f"{SHARES}: no clip of {', '.join(self.unheard)} may be heard here: their sound ends too low "
                "(min_band_hz), or only a language model is to learn from them"
            )
        self.budget = budget
        self._mixture = _PaddedMixture(
            clips, shares, math.ceil(UNITS_A_SEC * budget), seed,
            mixture.temperature,
        )  # fmt: skip
        self._mixture.steps_per_chapter = STEPS_PER_CHAPTER
        super().__init__(["clips", self._mixture.identity, len(lengths)])

    def first_state(self) -> State:
        return self._mixture.first_state()

    def chapter(self, state: State) -> tuple[list[list[int]], State]:
        steps, after = self._mixture.chapter(state)
        return [[document.item_ids[0] for document in step] for step in steps], after

    def told(self, state: State) -> dict[str, float]:
        """Share of the seconds that each corpus really had."""
        return self._mixture.told(state)

    def shares_at(self, step: int) -> dict[str, float]:
        """Share of the seconds that each corpus is to have at a step."""
        return self._mixture.shares_at(step)

    def epoch_sec(self, corpus: str, looked_at: int) -> float:
        """Seconds of an epoch of a corpus, drawn out from a window and ``looked_at`` clips."""
        return self._mixture.epoch_size(corpus, looked_at)[1] / UNITS_A_SEC
