"""The voice prompts of the Asterisk telephone exchange: five studio voices, one sentence or word a file.

Recordings are G.722 at 16 kHz; the transcripts are ``id: text`` lines in the documentation of the packages.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omniaudio.corpus.debian import fetch_packages
from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key
from omniaudio.errors import UserError

NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
"""Remarks of the transcript that are not spoken: [of a sound], (to the reader), <of a tone>."""

NOT_SPEECH = re.compile(r"silence/.*|beep.*|(ascending|descending)-2tone|confbridge-(join|leave)|tt-monkeys")


@dataclass(frozen=True)
class Voice:
    """Where a language's recordings lie, who speaks, and under which licence."""

    folder: str
    speaker: str
    credit: str
    licence: str


VOICES = {
    "en": Voice(
        "en_US_f_Allison", "allison-en", "Allison Smith (http://www.theivrvoice.com)", "CC-BY-SA-3.0"
    ),
    "es": Voice(
        "es_MX_f_Allison", "allison-es", "Allison Smith (http://www.theivrvoice.com)", "CC-BY-SA-3.0"
    ),
    "fr": Voice("fr_CA_f_June", "june", "June Wallack (http://www.junewallack.com)", "CC-BY-SA-3.0"),
    "it": Voice("it_IT_m_Carlo", "carlo", "Carlo Flora (http://www.carloflora.com)", "CC-BY-3.0"),
    "ru": Voice("ru_RU_f_IvrvoiceRU", "maxim", "Maxim Topal (http://www.ivrvoice.ru)", "CC-BY-3.0"),
}


class AsteriskSounds:
    """Core sounds by language.

    Args:
        languages: some of en, es, fr, it, ru.
        name: of the prepared folder.
        root: a folder with the packages unpacked (holds ``usr/share/asterisk``); null fetches them with apt.
    """

    def __init__(
        self, languages: Sequence[str] = tuple(VOICES), name: str = "asterisk", root: str | None = None
    ) -> None:
        unknown = sorted(set(languages) - set(VOICES))
        if unknown or not languages:
            raise UserError(f"corpus.languages: {unknown or 'none given'}; allowed are {', '.join(VOICES)}")
        self.languages = tuple(languages)
        self.name = name
        self.root = Path(root) if root else None

    @property
    def packages(self) -> list[str]:
        """The Debian packages that hold recordings and transcripts."""
        return [f"asterisk-core-sounds-{lang}{kind}" for lang in self.languages for kind in ("", "-g722")]

    def fetch(self, folder: Path) -> None:
        if self.root is None:
            fetch_packages(self.packages, folder)

    def inventory(self, folder: Path) -> Inventory:
        items: list[RawItem] = []
        left_out: list[LeftOut] = []
        for language in self.languages:
            self._add_language(language, (self.root or folder) / "usr" / "share", items, left_out)
        english = {item.key.partition("/")[2]: item.text for item in items if item.language == "en"}
        return Inventory([_translated(item, english) for item in items], left_out)

    def attribution(self) -> str:
        lines = [
            "Asterisk core sounds 1.6.1 (https://www.asterisk.org), Copyright their speakers; Digium, Inc."
        ]
        for language in self.languages:
            voice = VOICES[language]
            lines.append(f"  {language}: recorded by {voice.credit}; {voice.licence}")
        lines.append(
            "  Changed here: decoded from G.722, stored as FLAC, remarks removed from the transcripts."
        )
        return "\n".join(lines)

    def _add_language(
        self, language: str, share: Path, items: list[RawItem], left_out: list[LeftOut]
    ) -> None:
        voice = VOICES[language]
        sounds = share / "asterisk" / "sounds" / voice.folder
        if not sounds.is_dir():
            raise UserError(
                f"{sounds}: the recordings of language {language!r} are not there; run step=fetch first"
            )
        texts = read_transcripts(
            share / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
        )
        names = {path.relative_to(sounds).with_suffix("").as_posix(): path for path in sounds.rglob("*.g722")}
        for name in sorted(names.keys() | texts.keys()):
            full = f"{language}/{name}"
            text = strip_notes(texts.get(name, ""))
            if NOT_SPEECH.fullmatch(name):
                left_out.append(LeftOut(name=full, reason="silence, tone or noise"))
            elif name not in names:
                left_out.append(LeftOut(name=full, reason="transcript without a recording"))
            elif name not in texts:
                left_out.append(LeftOut(name=full, reason="recording without a transcript"))
            elif not any(char.isalnum() for char in text):
                left_out.append(LeftOut(name=full, reason="no words in the transcript"))
            else:
                items.append(
                    RawItem(
                        key=clean_key(full),
                        path=names[name],
                        text=text,
                        language=language,
                        speaker=voice.speaker,
                    )
                )


def _translated(item: RawItem, english: Mapping[str, str | None]) -> RawItem:
    """A prompt of another language with what the English prompt of the same name says."""
    text = english.get(item.key.partition("/")[2]) if item.language != "en" else None
    return replace(item, translation=text) if text else item


def strip_notes(text: str) -> str:
    """A transcript without remarks in brackets, with single spaces."""
    return " ".join(NOTES.sub(" ", text).split())


def read_transcripts(path: Path) -> dict[str, str]:
    """Read ``id: text`` lines (gzip, UTF-8 with or without BOM).

    ';' begins a comment; of two lines with one id the first wins.
    """
    try:
        content = gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the transcripts ({error})") from error
    texts: dict[str, str] = {}
    for line in content.splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts.setdefault(name.strip(), text.strip())
    return texts
