"""Character and word error rates of transcripts, after one fixed normalisation of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omniaudio.frontend.text import normalise_text

NORMALISER = "omniaudio.frontend.text.normalise_text"
"""Named beside every CER: rates under different normalisers do not compare."""


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Edits of all sentences over characters (or words) of all references."""

    num_edits: int
    num_units: int

    @property
    def rate(self) -> float:
        """May exceed 1: a hypothesis can be longer than its reference."""
        return self.num_edits / self.num_units


def character_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str]
) -> ErrorRate:
    """Character error rate over a set of sentences (edits are summed, not averaged by sentence).

    Args:
        references: what was said. Sentences that normalise to nothing are an error: leave them out before.
        hypotheses: what was heard, in the same order.
        languages: ISO 639-1 of each, for the normaliser.
    """
    import jiwer

    return _counted(jiwer.process_characters(*_normalised(references, hypotheses, languages)))


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str]
) -> ErrorRate:
    """Word error rate; everything else as in ``character_error_rate``."""
    import jiwer

    return _counted(jiwer.process_words(*_normalised(references, hypotheses, languages)))


def _normalised(
    references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str]
) -> tuple[list[str], list[str]]:
    expected = [normalise_text(text, language) for text, language in zip(references, languages, strict=True)]
    heard = [normalise_text(text, language) for text, language in zip(hypotheses, languages, strict=True)]
    empty = [text for text, normalised in zip(references, expected, strict=True) if not normalised]
    assert not empty, f"references without characters: {empty[:3]}"
    return expected, heard


def _counted(result: Any) -> ErrorRate:
    edits = result.substitutions + result.deletions + result.insertions
    return ErrorRate(num_edits=edits, num_units=result.hits + result.substitutions + result.deletions)
