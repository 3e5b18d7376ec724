"""Text to ids and back, and the normal form in which texts are compared."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from omniaudio.errors import UserError
from omniaudio.files import write_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "km"})
"""Languages written without spaces between words."""

APOSTROPHES = frozenset("'\u2018\u2019\u02bc`\u00b4")
NUM_BYTES = 256
NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that no text has: control, surrogate, and what ends a line or paragraph."""


def normalise_text(text: str, language: str) -> str:
    """The form in which two transcripts are compared: for splits and for character error rates.

    Unicode NFKC, casefold, apostrophes dropped, every other punctuation mark, symbol or control character
    read as a space, spaces folded to one (removed in languages that write none). Letters keep their accents,
    numbers stay digits. Applying it twice changes nothing.

    Args:
        text: as written.
        language: ISO 639-1.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(
        "" if char in APOSTROPHES else " " if unicodedata.category(char)[0] in "PSCZ" else char
        for char in folded
    )
    spaced = ("" if language in UNSPACED_LANGUAGES else " ").join(kept.split())
    return unicodedata.normalize("NFKC", spaced)  # what was dropped may have parted a letter and its accent


class TextTokenizer:
    """Byte-level BPE: any text has ids, and no text has the id of a special token.

    The special tokens of the audio layout are not in this vocabulary: TokenSpace appends them. Special tokens
    that a pretrained tokenizer brings are never matched in a text; it is split into ordinary pieces instead.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Read a ``tokenizer.json``, or the one in a folder."""
        from tokenizers import Tokenizer

        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(Tokenizer.from_str(path.read_text("utf-8")))
        except OSError as error:
            raise UserError(f"{path}: cannot read the text tokenizer ({error.strerror})") from error
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{path}: not a text tokenizer ({str(error).splitlines()[0]})") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, path: str | Path | None = None) -> TextTokenizer:
        """Learn a vocabulary of at most ``vocab_size`` entries (256 bytes and merges), kept in ``path``."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < NUM_BYTES:
            raise UserError(
                f"text vocabulary of {vocab_size} is too small: {NUM_BYTES} bytes must have an entry"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(texts, trainer)
        trained = cls(tokenizer)
        if path is not None:
            trained.save(path)
        return trained

    def save(self, path: str | Path) -> None:
        """Write the ``tokenizer.json``, whole or not at all."""
        write_whole(path, self._tokenizer.to_str(pretty=True))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def digest(self) -> str:
        """Hash of all that decides ids."""
        content = json.loads(self._tokenizer.to_str())
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Text to ids. A text without anything to say, or that is not valid Unicode, is a UserError."""
        if not text.strip():
            raise UserError(f"text {text[:20]!r} is empty: there is nothing to encode")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"text is not valid Unicode at character {error.start}") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; special tokens of a pretrained vocabulary are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
