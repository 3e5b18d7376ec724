"""Plain texts for the language model: choices of the config group ``text_source``."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omniaudio.errors import UserError
from omniaudio.frontend.text import NOT_TEXT


@runtime_checkable
class TextSource(Protocol):
    """A list of documents, each one line."""

    def texts(self) -> list[str]:
        """The documents, in a fixed order."""
        ...

    def attribution(self) -> str:
        """Who made them and under which licence; empty for none."""
        ...


class NoTexts:
    """Only the transcripts."""

    def texts(self) -> list[str]:
        return []

    def attribution(self) -> str:
        return ""


class ChitchatTexts:
    """Written English conversations of the python package ``chitchat-dataset``, one conversation a document.

    Args:
        max_words: stop after so many words; null takes all (2.5 million).
    """

    def __init__(self, max_words: int | None = None) -> None:
        self.max_words = max_words

    def texts(self) -> list[str]:
        return limit_words(map(_document, chitchat_conversations()), self.max_words)

    def attribution(self) -> str:
        return chitchat_attribution()


class TextFile:
    """A user's own texts: a UTF-8 file, one document a line.

    Args:
        path: the file.
        max_words: stop after so many words; null takes all.
    """

    def __init__(self, path: str, max_words: int | None = None) -> None:
        self.path, self.max_words = Path(path), max_words

    def texts(self) -> list[str]:
        try:
            lines = self.path.read_text("utf-8-sig").split("\n")  # splitlines() cuts at more
        except OSError as error:
            raise UserError(f"text_source.path {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"text_source.path {self.path}: not UTF-8 at byte {error.start}") from error
        return limit_words(lines, self.max_words)

    def attribution(self) -> str:
        return f"Texts of {self.path.name}: the user's own."


def chitchat_conversations() -> list[dict[str, Any]]:
    """What the package ``chitchat-dataset`` holds, in a fixed order."""
    package = find_spec("chitchat_dataset")
    if package is None or package.origin is None:
        raise UserError("chitchat needs the package chitchat-dataset: pip install chitchat-dataset")
    path = Path(package.origin).with_name("dataset.json")
    conversations = json.loads(path.read_text("utf-8"))
    return [conversations[key] for key in sorted(conversations)]


def chitchat_attribution() -> str:
    return (
        "Chit-chat dataset (chitchat-dataset on PyPI, https://github.com/BYU-PCCL/chitchat-dataset), "
        "Copyright 2019 Perception, Control and Cognition Lab; MIT"
    )


def limit_words(texts: Iterable[str], max_words: int | None) -> list[str]:
    """Texts with single spaces, without control characters and empty ones, up to the one that passes ``max_words``."""
    kept: list[str] = []
    num_words = 0
    for text in texts:
        words = without_controls(text).split()
        if not words:
            continue
        if max_words is not None and num_words >= max_words:
            break
        num_words += len(words)
        kept.append(" ".join(words))
    return kept


def without_controls(text: str) -> str:
    """With a space for every control character, lone surrogate, or end of a line or paragraph."""
    return "".join(" " if unicodedata.category(char) in NOT_TEXT else char for char in text)


def _document(conversation: dict[str, Any]) -> str:
    """All messages of a conversation, in order, as one line; characters that are no text are left out."""
    messages = [part["text"] for turn in conversation["messages"] for part in turn]
    return "".join(char if char.isprintable() else " " for char in " ".join(messages))
