"""Steps on text: into sentences, out with what cannot be spoken, numbers into words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from omniaudio.corpus.build.segment import Segment
from omniaudio.errors import UserError
from omniaudio.frontend.text import UNSPACED_LANGUAGES

SENTENCE_ENDS = ".!?…。！？"
CLAUSE_ENDS = ",;:—，；：、"
CLOSING = "\"'”’)]）」』"


class SplitText:
    """Natural segmentation: at the ends of sentences; a long one at its clauses, then at a space; short ones joined.

    Line ends and tabs become spaces in ``text``; ``laid_out`` keeps them for who judges by them.

    Args:
        min_chars: shorter segments join the next.
        max_chars: none is longer.
    """

    def __init__(self, min_chars: int = 12, max_chars: int = 200) -> None:
        if not 0 <= min_chars < max_chars:
            raise UserError(f"min_chars {min_chars} and max_chars {max_chars}: 0 <= min < max is expected")
        self.min_chars, self.max_chars = min_chars, max_chars

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        found: list[Segment] = []
        for segment in segments:
            texts = self.split(segment.text, segment.language)
            for i, text in enumerate(texts):
                place = len(found)
                part = replace(
                    segment, key=f"{segment.passage}/{place:04d}", place=place,
                    text=" ".join(text.split()), laid_out=text,
                )  # fmt: skip
                before, after = segment.before if i == 0 else (), segment.after if i == len(texts) - 1 else ()
                found.append(replace(part, before=before, after=after))
        return found

    def split(self, text: str, language: str) -> list[str]:
        """The parts of a text, in order, with its line ends and tabs; joined with spaces they are the text."""
        text = re.sub(r"\s+", _folded, text.strip())
        space = "" if language in UNSPACED_LANGUAGES else " "
        joined: list[str] = []
        for sentence in _cut(text, SENTENCE_ENDS):
            for part in self._short(sentence, space):
                last = joined[-1] if joined else ""
                short = len(last) < self.min_chars or len(part) < self.min_chars
                if joined and short and len(last) + len(space) + len(part) <= self.max_chars:
                    joined[-1] = f"{last}{space}{part}"
                else:
                    joined.append(part)
        return joined

    def _short(self, sentence: str, space: str) -> list[str]:
        if len(sentence) <= self.max_chars:
            return [sentence]
        parts: list[str] = []
        for clause in _cut(sentence, CLAUSE_ENDS):
            while len(clause) > self.max_chars:
                at = max(clause.rfind(space, 1, self.max_chars + 1) for space in " \n\t")
                at = at if at > 0 else self.max_chars
                parts.append(clause[:at].strip())
                clause = clause[at:].strip()
            if parts and len(parts[-1]) + len(space) + len(clause) <= self.max_chars:
                parts[-1] = f"{parts[-1]}{space}{clause}"
            else:
                parts.append(clause)
        return [part for part in parts if part]


def _folded(spaces: re.Match[str]) -> str:
    """A run of spaces as one: a line end if there is one in it, else a tab, else a space."""
    return next((char for char in "\n\t" if char in spaces[0]), " ")


def _cut(text: str, ends: str) -> list[str]:
    """Behind every run of ``ends`` that closes something: not inside a number or a word."""
    pieces, begin, i = [], 0, 0
    while i < len(text):
        if text[i] not in ends:
            i += 1
            continue
        while i < len(text) and text[i] in ends + CLOSING:
            i += 1
        wide = unicodedata.east_asian_width(text[i - 1]) in "WF"
        if i == len(text) or text[i].isspace() or wide:
            pieces.append(text[begin:i].strip())
            begin = i
    pieces.append(text[begin:].strip())
    return [piece for piece in pieces if piece]


CODE = (
    r"[{}`]|::|=>|->|==|\w\(\)",
    r"\w\([^()]*\)\s*;\s*$|=[^=;]*;\s*$|^\s*(return|let|const|var|int)\b[^;]*;\s*$",
    r"^\s*def\s+\w+\s*\(|^\s*class\s+\w+\s*(\(\w*[,)]|:\s*$)|^\s*#include\s*[<\"]|^\s*SELECT\b.*\bFROM\b",
    r"^\s*(from\s+[\w.]+\s+)?import\s+\w+(\.\w+)*(\s+as\s+\w+)?;?\s*$",
)
UNSPEAKABLE = (
    ("a link", re.compile(r"https?://|www\.|\S+@\S+\.\w+|\b\w+\.(com|org|net|io|html?)\b", re.IGNORECASE)),
    ("code", re.compile("|".join(CODE), re.MULTILINE)),
    ("a table", re.compile(r"\|.*\||\t|[-=_]{4,}|\+-+\+")),
    (
        "a formula",
        re.compile(r"\$[^$]*[\\^_={}][^$]*\$|\$[a-zA-Z]\$|\\[a-zA-Z]+|[∑∫√∂∞≤≥≠±×÷∈∀∃]|\w\^\w|\b\w\s*=\s*\S"),
    ),
)


class Speakable:
    """Refuses what nobody reads aloud: links, code, tables, formulas, and texts of few letters.

    Args:
        min_letters: share of letters among the characters that are no space.
    """

    def __init__(self, min_letters: float = 0.6) -> None:
        self.min_letters = min_letters

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        faults = [self.fault(segment.laid_out or segment.text) for segment in segments]
        return [s.refused(fault) if fault else s for s, fault in zip(segments, faults, strict=True)]

    def fault(self, text: str) -> str:
        """Why a text cannot be spoken; empty if it can."""
        for what, pattern in UNSPEAKABLE:
            if pattern.search(text):
                return f"text: {what}"
        characters = [char for char in text if not char.isspace()]
        if not any(char.isalnum() for char in characters):
            return "text: no words"
        letters = sum(
            char.isalpha() or char.isdecimal() or unicodedata.combining(char) > 0 for char in characters
        )
        return "text: few letters" if letters < self.min_letters * len(characters) else ""


class Normalise:
    """Numbers, dates, prices and signs as words, in English and Chinese (wetext); other languages stay as they are, and
    so does a word that wetext has no reading for (``#8``, ``20+``)."""

    def __init__(self) -> None:
        self._normalisers: dict[str, Any] = {}

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [replace(segment, spoken=self.spoken(segment.text, segment.language)) for segment in segments]

    def spoken(self, text: str, language: str) -> str:
        """How a text is read aloud."""
        if language not in ("en", "zh"):
            return text
        if language not in self._normalisers:
            self._normalisers[language] = _normaliser(language)
        normalise = self._normalisers[language].normalize
        whole = _read_by(normalise, text)
        return (
            " ".join(_read_by(normalise, word) or word for word in text.split()) if whole is None else whole
        )


def _read_by(normalise: Callable[[str], str], text: str) -> str | None:
    """None where the library has no reading: it says so by an assertion, or by an empty text."""
    try:
        return str(normalise(text)).strip() or None
    except AssertionError:
        return None


def _normaliser(language: str) -> Any:
    try:
        from wetext import Normalizer
    except ModuleNotFoundError as error:
        raise UserError("texts are normalised with wetext: pip install -e .[corpora]") from error
    return Normalizer(lang=language, operator="tn")
