"""What a corpus hands to the checks: recordings with what is said of them, and what it left out itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

MAX_KEY = (
    90  # characters: with an ending such as .codes.npy the key is still a name that a tar's head can hold
)
MAX_SHOWN = 48  # characters of a name that its short key keeps


@dataclass(frozen=True, kw_only=True)
class RawItem:
    """A recording before any check."""

    key: str  # letters, digits, '-', '_' and '/'
    path: Path
    start_sec: float = 0.0  # where it lies in the file
    duration_sec: float | None = None  # None: up to the file's end
    channel: int | None = None  # None: the file has one, or the mean of all is taken
    text: str | None  # None: the corpus has no transcript for it
    language: str  # ISO 639-1
    speaker: str
    fault: str | None = None  # the reason to refuse it, where the corpus itself knows one
    sample_rate_hz: int | None = None  # of the whole corpus, where it is known not to be that of the shards
    band_hz: int = 0  # highest frequency with sound, where it is known to lie below half the sample rate
    split: str = ""  # train, dev or test, where the corpus itself says so
    corpus: str = ""  # where it came from, in a collection of several
    response: tuple[str, ...] = ()  # what was said to it, clip by clip
    continuation: str = ""  # the text of the clip that follows in the same passage
    translation: str = ""  # in English
    order: tuple[int, ...] = ()  # when it is said in its dialogue, where the corpus knows; else keys decide
    chat: str = ""  # its place in a chat, as json: omniaudio.data.chats
    built: str = ""  # what else a build knows of it, as json: omniaudio.corpus.from_shards

    @property
    def wordless(self) -> bool:
        """Something heard in a chat, of which nobody wrote down the words."""
        return bool(self.chat) and self.text == ""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something that the corpus holds and that is not speech with a text by its own account; or that is ``bad``: it
    should be, and cannot be used."""

    name: str
    reason: str  # one for many: they are counted by it
    detail: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Inventory:
    """All that a corpus holds."""

    items: list[RawItem]
    left_out: list[LeftOut] = field(default_factory=list)


@runtime_checkable
class Corpus(Protocol):
    """A source of recordings: choices of the config group ``corpus``."""

    name: str

    def fetch(self, folder: Path) -> None:
        """Bring the raw files into ``folder``; nothing to do where they are there already."""
        ...

    def inventory(self, folder: Path) -> Inventory:
        """List what was fetched, in a fixed order."""
        ...

    def attribution(self) -> str:
        """Who made it and under which licence: lines for the prepared folder."""
        ...


def clean_key(name: str, max_chars: int = MAX_KEY) -> str:
    """A relative path without its ending as a key: other characters than letters, digits, '-' become '_'.

    Names that are long, or that lose letters of other scripts by this, get a short key of their own.
    """
    plain = _plain(name)
    return plain if name.isascii() and len(plain) <= max_chars else short_key(name, num_digits=16)


def short_key(name: str, num_digits: int = 8) -> str:
    """A name as one part of a key: short, the same every time, and another one for every other name.

    Args:
        name: any text.
        num_digits: hexadecimal digits of the name's hash; 8 serve for thousands of names, 16 for billions.
    """
    plain = _plain(name).replace("/", "-")
    if plain == name and len(plain) <= MAX_SHOWN:
        return plain
    content = name.encode("utf-8", "surrogatepass")  # names of files may hold bytes that are no text
    return f"{plain[:MAX_SHOWN]}-{hashlib.sha256(content).hexdigest()[:num_digits]}"


def _plain(name: str) -> str:
    return "/".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in name.split("/"))


def unique_keys(items: Sequence[RawItem]) -> list[RawItem]:
    """Items in order; a key that came before gets a number and is marked as a fault."""
    seen: dict[str, int] = {}
    kept = []
    for item in items:
        seen[item.key] = count = seen.get(item.key, 0) + 1
        if count > 1:
            item = RawItem(**{**vars(item), "key": f"{item.key}__{count}", "fault": "duplicate key"})
        kept.append(item)
    return kept
