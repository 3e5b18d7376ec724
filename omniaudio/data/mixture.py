"""Which documents a training step holds: a pure function of (seed, step), whoever asks.

No rank, worker or restart enters the plan, so a run goes on from any step under another number of ranks with
the same documents in the same order. Only lengths are read, never a shard.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from omniaudio.data.planning import ChapteredPlan, Lengths, ShuffledWindows, State, largest_first
from omniaudio.errors import UserError
from omniaudio.stage import is_main_process

CHAPTER_TOKENS = 1 << 17
FILLED = (
    0.999  # share of the positions of a chapter that is drawn; the rest lets the last documents find room
)

Weight = float | Sequence[Sequence[float]]
"""A share, or pairs (step, share) with straight lines between them."""
Points = tuple[list[float], list[float]]
"""Steps, and shares at them."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What documents are made of a corpus, and in which shares: choices of the config group ``mixture``.

    Args:
        weights: share of LLM positions by kind; a number, or pairs (step, share).
        optional: kinds that are left out, which is told, where no clip has what they need; of any other it is an error.
        corpora: share of each corpus in a folder with several, within every kind that is made of clips; None takes
            clips as they come, so each corpus has as much as it holds.
        temperature: shares, of the kinds and of the corpora within a kind, are raised to 1 / temperature.
        max_clips, max_joined_frames, loss_on_intlv_audio, voices: see DocumentComposer.
    """

    weights: Mapping[str, Weight]
    corpora: Mapping[str, Weight] | None = None
    temperature: float = 1.0
    max_clips: int = 6
    max_joined_frames: int = 375
    loss_on_intlv_audio: bool = False
    voices: Mapping[str, str] | None = None
    optional: Sequence[str] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.optional) - set(self.weights)):
            raise UserError(f"mixture.optional: {unknown[0]!r} is none of {', '.join(self.weights)}")
        if self.voices is not None:  # a label like 1089 comes as a number
            object.__setattr__(self, "voices", {str(label): name for label, name in self.voices.items()})
        for label, name in (self.voices or {}).items():
            if not isinstance(name, str) or not name.strip():
                raise UserError(
                    f"mixture.voices.{label}: {name!r} is not a name; give words that call the voice"
                )

    def streams(self, occurs: Callable[[str, str], bool], *, all_named: bool = True) -> dict[str, Weight]:
        """Kinds, or kinds of corpora (``asr@fotaq``), with their weights.

        Args:
            occurs: whether a corpus has clips for a kind.
            all_named: False leaves out kinds, and lets corpora be named, that have no clips: held-out splits need not
                have all.
        """
        points = corpus_points(self.corpora, "mixture.corpora")
        absent = self._absent(occurs, (all_named and list(points)) or [""], all_named)
        weights = {kind: weight for kind, weight in self.weights.items() if kind not in absent}
        if not points:
            return weights
        streams: dict[str, Weight] = {}
        missing = set(points)
        for kind, weight in weights.items():
            if kind == "text" or not max(_points(kind, weight)[1]):
                streams[kind] = weight
                continue
            there = {name: share for name, share in points.items() if occurs(kind, name)}
            missing -= set(there)
            if there:
                streams |= {
                    f"{kind}@{name}": part for name, part in self._parts(_points(kind, weight), there).items()
                }
            elif all_named:
                raise UserError(
                    f"mixture.corpora: none of {', '.join(points)} has clips for the kind {kind!r}; "
                    f"set mixture.weights.{kind}=0 or name other corpora"
                )
            else:
                streams[kind] = weight
        if missing and all_named:
            raise UserError(
                f"mixture.corpora: {', '.join(sorted(missing))} has no clips for any kind; is the name right?"
            )
        return streams

    def _absent(
        self, occurs: Callable[[str, str], bool], corpora: Sequence[str], all_named: bool
    ) -> set[str]:
        """Kinds with a weight that may be left out and that none of the corpora (``""``: of all there are) has."""
        kinds = self.optional if all_named else set(self.weights) - {"text"}
        weighty = (kind for kind in kinds if max(_points(kind, self.weights[kind])[1]))
        absent = {kind for kind in weighty if not any(occurs(kind, corpus) for corpus in corpora)}
        for kind in sorted(absent) if all_named and is_main_process() else []:
            print(f"mixture: no clip has what {kind} needs; its share goes to the other kinds", flush=True)
        return absent

    def _parts(self, weight: Points, shares: Mapping[str, Points]) -> dict[str, Weight]:
        """A kind's weight shared out among corpora, at every step where one of them bends."""
        parts: dict[str, list[tuple[float, float]]] = {name: [] for name in shares}
        for step in sorted({*weight[0], *(step for points in shares.values() for step in points[0])}):
            at = {
                name: float(np.interp(step, *points)) ** (1 / self.temperature)
                for name, points in shares.items()
            }
            for name, share in at.items():
                # Raised to 1 / temperature with the weight, it is the share again.
                part = (share / max(sum(at.values()), 1e-12)) ** self.temperature
                parts[name].append((step, float(np.interp(step, *weight)) * part))
        return dict(parts)


class Catalogue(Protocol):
    """What the plan must know of the documents that can be made; a kind may be one of a corpus, ``asr@fotaq``."""

    def num_windows(self, kind: str) -> int:
        """Windows of an epoch."""

    def groups(self, kind: str, window: int, seed: int) -> list[tuple[int, ...]]:
        """Groups of item ids, one a document, in the order to visit; ``window`` counts on over epochs."""

    def num_tokens(self, kind: str, item_ids: Sequence[int], seed: int) -> int:
        """LLM positions of the document."""

    def goes_on(self, kind: str, item_ids: Sequence[int]) -> bool:
        """Whether it is a later piece of what was too long for one document."""


class OneByOne:
    """A catalogue of items each of which is a document, of one known length in whatever kind.

    Args:
        lengths: LLM positions by item; an array, or what is asked like one.
    """

    def __init__(self, lengths: Lengths | Sequence[int]) -> None:
        self.lengths = lengths

    def num_windows(self, kind: str) -> int:
        return ShuffledWindows(len(self.lengths), 0).num_windows

    def groups(self, kind: str, window: int, seed: int) -> list[tuple[int, ...]]:
        return [(i,) for i in ShuffledWindows(len(self.lengths), seed)[window].tolist()]

    def num_tokens(self, kind: str, item_ids: Sequence[int], seed: int) -> int:
        return int(self.lengths[item_ids[0]])

    def goes_on(self, kind: str, item_ids: Sequence[int]) -> bool:
        return False


@dataclass(frozen=True)
class PlannedDocument:
    """A document to compose: its kind, its items, and the seed of its random choices."""

    kind: str
    item_ids: tuple[int, ...]
    seed: int
    num_tokens: int


class MixturePlan(ChapteredPlan[PlannedDocument]):
    """``plan[step]`` -> the documents of that step, at most ``tokens_per_step`` positions.

    Kinds take turns by their shares; within a kind every item is drawn before any is drawn again. The documents of
    a chapter go, the longest first, to the step with the most room: steps are full to a fraction of a percent. The
    few that find no room open the next chapter: nothing is lost. One that is longer than a step, or than
    ``max_document_tokens``, is left out and counted. The very first step is the largest of its chapter.

    Args:
        catalogue: items and lengths.
        weights: share of LLM positions of each kind; divided by their sum; 0 leaves the kind out. A kind's share may
            change with the step.
        tokens_per_step: LLM positions of a global batch.
        seed: of the order.
        temperature: weights are raised to 1 / temperature; above 1 the small kinds come more often.
        max_document_tokens: longest document: what the parts of a step may differ by, however many there are. None
            is a whole step.
    """

    name = "mixture.weights"  # in the config

    def __init__(
        self,
        catalogue: Catalogue,
        weights: Mapping[str, Weight],
        tokens_per_step: int,
        seed: int = 0,
        temperature: float = 1.0,
        max_document_tokens: int | None = None,
    ) -> None:
        self.weights = {kind: _points(kind, weight, self.name) for kind, weight in weights.items()}
        self.weights = {kind: points for kind, points in self.weights.items() if max(points[1]) > 0}
        self.kinds = sorted(self.weights)
        if not self.weights:
            raise UserError(f"{self.name}: {dict(weights)} must be >= 0 and not all 0")
        if temperature <= 0:
            raise UserError(
                f"{self.name.rpartition('.')[0]}.temperature: {temperature} must be > 0; 1 takes weights as they are"
            )
        self.tokens_per_step, self.temperature = tokens_per_step, temperature
        for step in {step for points in self.weights.values() for step in points[0]} | {0.0}:
            self.shares_at(int(step))  # said now, not when the step comes
        self.steps_per_chapter = max(1, CHAPTER_TOKENS // tokens_per_step)
        self.longest = min(max_document_tokens or tokens_per_step, tokens_per_step)
        self._catalogue, self._seed = _Remembered(catalogue), seed
        super().__init__(["mixture", self.weights, tokens_per_step, seed, temperature, self.longest])

    def first_state(self) -> State:
        streams = {kind: [0, 0, 0, 0, 0, 0, 0.0] for kind in self.kinds}  # fields of _Stream
        return {"step": 0, "late": [], "streams": streams}

    def chapter(self, state: State) -> tuple[list[list[PlannedDocument]], State]:
        """Draw what ``steps_per_chapter`` steps hold, and share it out."""
        first = int(state["step"])
        streams = {
            kind: _Stream(self._catalogue, kind, self._seed, self.longest, *state["streams"][kind])
            for kind in self.kinds
        }
        late = [PlannedDocument(kind, tuple(ids), seed, num) for kind, ids, seed, num in state["late"]]
        wanted = FILLED * self.steps_per_chapter * self.tokens_per_step - sum(d.num_tokens for d in late)
        drawn = late + _draw(streams, self.shares_at(first), wanted)
        steps, late = self.arrange(drawn)
        order = np.random.default_rng(seed_of(self._seed, "", first, "steps")).permutation(len(steps))
        after = {
            "step": first + len(steps),
            "late": [[d.kind, list(d.item_ids), d.seed, d.num_tokens] for d in late],
            "streams": {kind: stream.state() for kind, stream in streams.items()},
        }
        steps = [steps[i] for i in order]
        if first == 0:
            largest_first(steps, self.size)
        return steps, after

    def arrange(
        self, documents: Sequence[PlannedDocument]
    ) -> tuple[list[list[PlannedDocument]], list[PlannedDocument]]:
        """The steps of a chapter, and what finds no room in them."""
        return _share_out(documents, self.steps_per_chapter, self.tokens_per_step)

    def size(self, step: Sequence[PlannedDocument]) -> tuple[int, int]:
        """Positions in all, and of the longest document."""
        lengths = [document.num_tokens for document in step]
        return sum(lengths), max(lengths)

    def shares_at(self, step: int) -> dict[str, float]:
        """Share of positions that each kind is to have at a step; they sum to 1."""
        weights = {
            kind: float(np.interp(step, *points)) ** (1 / self.temperature)
            for kind, points in self.weights.items()
        }
        total = sum(weights.values())
        if total <= 0:
            raise UserError(f"{self.name}: all are 0 at step {step}")
        return {kind: weight / total for kind, weight in weights.items()}

    def epoch_size(self, kind: str, looked_at: int) -> tuple[int, float]:
        """Documents and positions of an epoch of a kind, drawn out from a window and ``looked_at`` documents."""
        seed, num_windows = seed_of(self._seed, kind, 0, "order"), self._catalogue.num_windows(kind)
        groups = self._catalogue.groups(kind, 0, seed)
        lengths = [self._catalogue.num_tokens(kind, group, i) for i, group in enumerate(groups[:looked_at])]
        number = len(groups) * num_windows
        return number, number * sum(lengths) / max(1, len(lengths))

    def shares(self, num_steps: int) -> dict[str, float]:
        """Share of positions of each kind that the first ``num_steps`` really hold."""
        tokens = dict.fromkeys(self.kinds, 0)
        for step in range(num_steps):
            for document in self[step]:
                tokens[document.kind] += document.num_tokens
        return _normalised(tokens)

    def told(self, state: State) -> dict[str, float]:
        """Share of positions that each kind really had, documents that were too long, and later pieces of cut ones."""
        tokens = {kind: fields[5] for kind, fields in state["streams"].items()}
        shares = _normalised(tokens) if any(tokens.values()) else {}
        counts = {
            f"{name}/{kind}": fields[place]
            for place, name in ((3, "too_long"), (4, "pieces"))
            for kind, fields in state["streams"].items()
            if fields[place]
        }
        return {f"share/{kind}": share for kind, share in shares.items()} | counts


class _Remembered:
    """A catalogue that makes the groups of a window once: it serves many chapters."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.num_windows, self.num_tokens = catalogue.num_windows, catalogue.num_tokens
        self.goes_on, self._make = catalogue.goes_on, catalogue.groups
        self._known: dict[str, tuple[tuple[int, int], list[tuple[int, ...]]]] = {}

    def groups(self, kind: str, window: int, seed: int) -> list[tuple[int, ...]]:
        known = self._known.get(kind)
        if known is None or known[0] != (window, seed):
            known = self._known[kind] = (window, seed), self._make(kind, window, seed)
        return known[1]


class _Stream:
    """The documents of one kind, without end; its state is where it stands and what it has given.

    Args:
        window, place: of the next group.
        number: of the next document that is given.
        too_long: documents left out.
        pieces: documents given that go on with another.
        tokens: positions given.
        credit: positions that its share entitles it to beyond those given.
    """

    def __init__(
        self, catalogue: _Remembered, kind: str, seed: int, most: int,
        window: int, place: int, number: int, too_long: int, pieces: int, tokens: int, credit: float,
    ) -> None:  # fmt: skip
        self.catalogue, self.kind, self.seed, self.most = catalogue, kind, seed, most
        self.window, self.place, self.number, self.too_long = window, place, number, too_long
        self.pieces, self.tokens, self.credit = pieces, tokens, credit
        self._documents = self._give()

    def __next__(self) -> PlannedDocument:
        return next(self._documents)

    def state(self) -> list[Any]:
        return [self.window, self.place, self.number, self.too_long, self.pieces, self.tokens, self.credit]

    def _give(self) -> Iterator[PlannedDocument]:
        catalogue, kind = self.catalogue, self.kind
        num_windows, barren = catalogue.num_windows(kind), 0
        while True:
            before = self.number
            groups = catalogue.groups(kind, self.window, seed_of(self.seed, kind, 0, "order"))
            while self.place < len(groups):
                group = groups[self.place]
                self.place += 1
                seed = seed_of(self.seed, kind, self.number + self.too_long, "document")
                length = catalogue.num_tokens(kind, group, seed)
                if length > self.most:
                    self.too_long += 1
                    continue
                self.number += 1
                self.pieces += catalogue.goes_on(kind, group)
                self.tokens += length
                yield PlannedDocument(kind, tuple(group), seed, length)
            barren = 0 if self.number > before else barren + 1
            if barren > num_windows:
                raise UserError(
                    f"mixture: no document of kind {kind!r} with at most {self.most} positions "
                    f"({len(groups)} candidates); set mixture.weights.{kind}=0 or larger tokens_per_step and "
                    "max_positions"
                )
            self.window, self.place = self.window + 1, 0


def _draw(
    streams: Mapping[str, _Stream], shares: Mapping[str, float], wanted: float
) -> list[PlannedDocument]:
    """Documents of ``wanted`` positions; the kind that is furthest behind its share comes next."""
    drawn: list[PlannedDocument] = []
    able = [(streams[kind], share) for kind, share in shares.items() if share > 0]
    while wanted > 0:
        stream = max(able, key=lambda pair: pair[0].credit)[0]
        document = next(stream)
        drawn.append(document)
        wanted -= document.num_tokens
        for other, share in able:
            other.credit += share * document.num_tokens
        stream.credit -= document.num_tokens
    return drawn


def _share_out(
    documents: Sequence[PlannedDocument], num_steps: int, room: int
) -> tuple[list[list[PlannedDocument]], list[PlannedDocument]]:
    """Longest first to the step with the most room; also returns what finds none. No step is empty."""
    order = sorted(range(len(documents)), key=lambda i: (-documents[i].num_tokens, i))
    chosen: list[list[int]] = [[] for _ in range(num_steps)]
    heap = [(0, step) for step in range(num_steps)]  # positions in use
    late: list[int] = []
    for i in order:
        used, step = heap[0]
        if used + documents[i].num_tokens > room:
            late.append(i)
            continue
        chosen[step].append(i)
        heapq.heapreplace(heap, (used + documents[i].num_tokens, step))
    steps = [[documents[i] for i in sorted(step)] for step in chosen if step]
    return steps, [documents[i] for i in sorted(late)]


def deal(documents: Sequence[PlannedDocument], part: int, num_parts: int) -> list[PlannedDocument]:
    """One part's documents of a step: see ``deal_all``."""
    return deal_all(documents, num_parts)[part]


def deal_all(documents: Sequence[PlannedDocument], num_parts: int) -> list[list[PlannedDocument]]:
    """The documents of a step, longest first to the part with the fewest positions, so that parts cost alike.

    A part is a (micro-batch, rank) pair. Parts are never empty: where there are fewer documents than parts, some
    stand in two.
    """
    if not documents:
        raise UserError("a step of the plan has no samples")
    order = sorted(range(len(documents)), key=lambda i: (-documents[i].num_tokens, i))
    heap = [(0, number) for number in range(num_parts)]
    dealt: list[list[int]] = [[] for _ in range(num_parts)]
    for i in order:
        used, number = heap[0]
        heapq.heapreplace(heap, (used + documents[i].num_tokens, number))
        dealt[number].append(i)
    return [
        [documents[i] for i in sorted(mine)] or [documents[part % len(documents)]]
        for part, mine in enumerate(dealt)
    ]


def largest_part(tokens_per_step: int, longest: int, num_parts: int) -> int:
    """Most positions that ``deal`` may give one part of a step.

    A part that got a second document was the emptiest before it, and that document is no longer than half of it.
    """
    even = tokens_per_step / num_parts
    second = min(even + longest * (num_parts - 1) / num_parts, 2 * tokens_per_step / (num_parts + 1))
    return min(tokens_per_step, max(longest, math.ceil(second)))


def _points(kind: str, weight: Weight, name: str = MixturePlan.name) -> Points:
    """Steps and weights at them."""
    pairs = [[0.0, weight]] if isinstance(weight, int | float) else weight
    try:
        steps, values = ([float(pair[i]) for pair in pairs] for i in (0, 1))
        good = all(len(pair) == 2 for pair in pairs) and steps == sorted(set(steps))
        good = good and min(values) >= 0 and math.isfinite(max(values))
    except (TypeError, ValueError, IndexError):
        good = False
    if not good:
        raise UserError(
            f"{name}.{kind}: {weight} must be a share >= 0, or pairs [step, share >= 0] with rising steps"
        )
    return steps, values


def corpus_points(corpora: Any, name: str) -> dict[str, Points]:
    """Steps and shares at them, of every corpus that has a share at some step.

    Raises:
        UserError: not a mapping of names to shares >= 0 or pairs; all are 0.
    """
    if corpora is None:
        return {}
    if not isinstance(corpora, Mapping):
        raise UserError(f"{name}: {corpora} must be corpora with their shares, as {{first: 1, second: 3}}")
    points = {str(corpus): _points(str(corpus), share, name) for corpus, share in corpora.items()}
    found = {corpus: pair for corpus, pair in points.items() if max(pair[1]) > 0}
    if points and not found:
        raise UserError(f"{name}: {dict(corpora)} must be >= 0 and not all 0")
    return found


def _normalised(tokens: Mapping[str, float]) -> dict[str, float]:
    total = max(1, sum(tokens.values()))
    return {kind: count / total for kind, count in tokens.items()}


def seed_of(seed: int, kind: str, number: int, purpose: str) -> int:
    """A 63-bit seed for one use of randomness."""
    text = f"{seed}|{kind}|{number}|{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
