"""Which documents a training step holds: a pure function of (seed, step), whoever asks.

No rank, worker or restart enters the plan, so a run goes on from any step under another number of ranks with
the same documents in the same order. Only lengths are read, never a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from omniaudio.errors import UserError


class Catalogue(Protocol):
    """What the plan must know of the documents that can be made."""

    def items(self, kind: str, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """One epoch of a kind: groups of item ids, one group a document, in the order to visit."""

    def num_tokens(self, kind: str, item_ids: Sequence[int], seed: int) -> int:
        """LLM positions of the document."""


@dataclass(frozen=True)
class PlannedDocument:
    """A document to compose: its kind, its items, and the seed of its random choices."""

    kind: str
    item_ids: tuple[int, ...]
    seed: int
    num_tokens: int


class MixturePlan:
    """``plan[step]`` -> the documents of that step, at most ``tokens_per_step`` positions.

    The kind that is furthest behind its share comes next; within a kind every item is visited before any
    comes again. What does not fit opens the next step: nothing is lost.

    Args:
        catalogue: items and lengths.
        weights: share of LLM positions of each kind; divided by their sum; 0 leaves the kind out.
        tokens_per_step: LLM positions of a global batch.
        seed: of the order.
    """

    def __init__(
        self, catalogue: Catalogue, weights: Mapping[str, float], tokens_per_step: int, seed: int = 0
    ) -> None:
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise UserError(f"mixture.weights: {dict(weights)} must be >= 0 and not all 0")
        total = sum(weights.values())
        self.weights = {kind: weight / total for kind, weight in weights.items() if weight > 0}
        self.tokens_per_step = tokens_per_step
        self.too_long = dict.fromkeys(self.weights, 0)  # documents left out so far, by kind
        self._catalogue, self._seed = catalogue, seed
        self._steps: list[list[PlannedDocument]] = []
        self._tokens = dict.fromkeys(self.weights, 0)
        self._documents = {kind: self._stream(kind) for kind in self.weights}
        self._waiting: PlannedDocument | None = None

    def __getitem__(self, step: int) -> list[PlannedDocument]:
        while len(self._steps) <= step:
            self._steps.append(self._next_step())
        return self._steps[step]

    def shares(self, num_steps: int) -> dict[str, float]:
        """Share of positions of each kind that the first ``num_steps`` really hold."""
        tokens = dict.fromkeys(self.weights, 0)
        for step in range(num_steps):
            for document in self[step]:
                tokens[document.kind] += document.num_tokens
        total = max(1, sum(tokens.values()))
        return {kind: count / total for kind, count in tokens.items()}

    def _next_step(self) -> list[PlannedDocument]:
        documents: list[PlannedDocument] = []
        room = self.tokens_per_step
        while True:
            document = self._waiting if self._waiting is not None else self._draw()
            if document.num_tokens > room:
                self._waiting = document
                return documents
            self._waiting = None
            room -= document.num_tokens
            documents.append(document)

    def _draw(self) -> PlannedDocument:
        kind = min(self.weights, key=lambda name: (self._tokens[name] / self.weights[name], name))
        document = next(self._documents[kind])
        self._tokens[kind] += document.num_tokens
        return document

    def _stream(self, kind: str) -> Iterator[PlannedDocument]:
        epoch = number = 0
        while True:
            rng = np.random.default_rng(seed_of(self._seed, kind, epoch, "order"))
            groups, first_number = self._catalogue.items(kind, rng), number
            for group in groups:
                seed = seed_of(self._seed, kind, number + self.too_long[kind], "document")
                length = self._catalogue.num_tokens(kind, group, seed)
                if length > self.tokens_per_step:
                    self.too_long[kind] += 1
                    continue
                yield PlannedDocument(kind, tuple(group), seed, length)
                number += 1
            if number == first_number:
                raise UserError(
                    f"mixture: no document of kind {kind!r} with at most {self.tokens_per_step} positions "
                    f"({len(groups)} candidates); set mixture.weights.{kind}=0 or a larger tokens_per_step"
                )
            epoch += 1


def seed_of(seed: int, kind: str, number: int, purpose: str) -> int:
    """A 63-bit seed for one use of randomness."""
    text = f"{seed}|{kind}|{number}|{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
