"""Which clips a step of an audio stage holds where corpora have shares: drawn by corpus, padded little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from omniaudio.data.index import text_number
from omniaudio.data.mixture import MixturePlan, PlannedDocument, Weight
from omniaudio.data.planning import CHUNK, ChapteredPlan, Lengths, ShuffledWindows, State, cut_by_padded_cost
from omniaudio.data.prompts import WRITTEN
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError

STEPS_PER_CHAPTER = 128
UNITS_A_SEC = 1000


@dataclass(frozen=True, kw_only=True)
class ClipMixture:
    """What clips are asked for, and how much is heard of each corpus: choices of the config group ``mixture``.

    Args:
        weights: how often a clip is asked for its transcript (asr), a response (aqa), its translation (s2tt), or what
            follows it (intlv); a clip without such a text is not asked for it.
        corpora: share of each corpus in the seconds of a training, a number or pairs (step, share); one that is not
            named is not heard. None takes clips as they come, so each corpus has as much as it holds.
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
            _, firsts = np.unique(numbers, return_index=True)
            _, lasts = np.unique(numbers[::-1], return_index=True)
            for name, first, last in zip(self.names(items[firsts]), firsts, lasts, strict=True):
                begin = spans[name][0] if name in spans else int(items[first])
                spans[name] = begin, int(items[len(items) - 1 - last]) + 1
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
        number = 0 if kind == "unnamed" else text_number(kind)
        items = items[self.corpora.numbers(items) == np.uint64(number)]
        return [(item,) for item in items[~np.isnan(self.lengths[items])].tolist()]

    def occur(self, kind: str) -> bool:
        """Whether a corpus has a clip with a length."""
        return any(self.groups(kind, window, 0) for window in range(self.num_windows(kind)))

    def num_tokens(self, kind: str, item_ids: Sequence[int], seed: int) -> int:
        return max(1, round(UNITS_A_SEC * float(self.lengths[np.array(item_ids[:1])][0])))

    def goes_on(self, kind: str, item_ids: Sequence[int]) -> bool:
        return False


class _PaddedMixture(MixturePlan):
    """A mixture whose steps are of similar lengths and count their padding, instead of filled to the brim."""

    name = "mixture.clips.corpora"

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
        UserError: a corpus that the split does not have, or one of whose clips none may be heard.
    """

    def __init__(
        self, mixture: ClipMixture, corpora: CorporaOfClips, lengths: Lengths, budget: float, seed: int
    ) -> None:
        spans, shares = corpora.spans(), mixture.corpora or {}
        if unknown := sorted(set(shares) - set(spans)):
            raise UserError(
                f"mixture.clips.corpora: {', '.join(unknown)} is not in {corpora.reader.folder}, which has "
                f"{', '.join(sorted(spans))}"
            )
        clips = _ClipsByCorpus(corpora, spans, lengths)
        if silent := [name for name in sorted(shares) if not clips.occur(name)]:
            raise UserError(
                f"mixture.clips.corpora: none of the clips of {', '.join(silent)} may be heard here: their sound ends too "
                "low (min_band_hz), or only a language model is to learn from them"
            )
        self.budget = budget
        self._mixture = _PaddedMixture(
            clips, shares, round(UNITS_A_SEC * budget), seed,
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
