"""Train, dev and test by the words: a text stands in one split only, in whichever voice and language.

(A corpus with splits of its own keeps them.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from omniaudio.errors import UserError
from omniaudio.frontend.text import normalise_text

SPLITS = ("train", "dev", "test")


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise a UserError unless there is a share for each split and they sum to 1."""
    if (
        set(fractions) != set(SPLITS)
        or abs(sum(fractions.values()) - 1) > 1e-6
        or min(fractions.values()) < 0
    ):
        raise UserError(
            f"split: {dict(fractions)}; give a share >= 0 for each of {', '.join(SPLITS)}, 1 in all"
        )


def split_of(text: str, language: str, fractions: Mapping[str, float]) -> str:
    """The split of a text, by the hash of its normalised form: stable when texts are added or removed."""
    words = normalise_text(text, language)
    place = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") / 2**64
    for split in ("test", "dev"):
        if place < fractions[split]:
            return split
        place -= fractions[split]
    return "train"
