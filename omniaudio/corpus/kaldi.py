"""Kaldi data directories, both ways.

Read are ``wav.scp``, ``text``, ``segments``, ``utt2spk``, ``utt2lang``, and a file ``utt2<fact>`` for each further fact
of an utterance (response, continuation, translation, chat, built, corpus, sample_rate_hz, band_hz, channel). Written
is the same; a space in a speaker's name, which these tables cannot hold, stands there as ``%20``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key, unique_keys
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.types import Utterance

TEXT_FACTS = ("continuation", "translation", "corpus", "chat", "built")
"""Facts that are one text in a recording and in an utterance."""
NUMBERS = ("sample_rate_hz", "band_hz", "channel")
"""Facts that are whole numbers."""


class KaldiFolder:
    """The utterances of a Kaldi data directory, or of several that are its splits.

    Entries of ``wav.scp`` that are commands or lie in archives are no files: they are counted and left out.

    Args:
        folder: with ``wav.scp`` and ``text``; or with folders ``train``, ``dev``, ``test`` of which each has them.
        language: ISO 639-1, where there is no ``utt2lang``.
        name: of the prepared folder.
        licence: a line for ATTRIBUTION.
    """

    def __init__(
        self, folder: str, language: str, name: str = "kaldi", licence: str = "Licence not stated."
    ) -> None:
        self.folder, self.language, self.name, self.licence = Path(folder).resolve(), language, name, licence

    def fetch(self, folder: Path) -> None:
        if not self.folder.is_dir():
            raise UserError(f"corpus.folder {self.folder}: no such folder")

    def inventory(self, folder: Path) -> Inventory:
        self.fetch(folder)
        here = [""] if (self.folder / "wav.scp").is_file() else []
        parts = here or [
            name for name in ("train", "dev", "test") if (self.folder / name / "wav.scp").is_file()
        ]
        if not parts:
            raise UserError(
                f"corpus.folder {self.folder}: no wav.scp, neither here nor in train, dev or test"
            )
        found = [self._split(self.folder / name, name) for name in parts]
        items = [item for part in found for item in part.items]
        return Inventory(unique_keys(items), [entry for part in found for entry in part.left_out])

    def attribution(self) -> str:
        return f"{self.name}: {self.licence}"

    def _split(self, folder: Path, split: str) -> Inventory:
        recordings = dict(read_table(folder / "wav.scp"))
        if (folder / "segments").is_file():
            places = {utt: _segment(rest, folder, utt) for utt, rest in read_table(folder / "segments")}
        else:
            places = {name: (name, 0.0, None) for name in recordings}
        names = ("text", *(f"utt2{fact}" for fact in ("spk", "lang", "response", *NUMBERS, *TEXT_FACTS)))
        facts = {name: _optional(folder / name) for name in names}
        left_out = [
            LeftOut(name=utt, reason="text without a recording") for utt in facts["text"] if utt not in places
        ]
        items: list[RawItem] = []
        for utt, (recording, start_sec, duration_sec) in places.items():
            path, fault = _path(recordings.get(recording, ""), folder)
            more: dict[str, Any] = {fact: facts[f"utt2{fact}"].get(utt, "") for fact in TEXT_FACTS}
            more |= {fact: _number(facts[f"utt2{fact}"], utt, folder / f"utt2{fact}") for fact in NUMBERS}
            response = facts["utt2response"].get(utt)
            items.append(
                RawItem(
                    key=clean_key(utt),
                    path=path,
                    start_sec=start_sec,
                    duration_sec=duration_sec,
                    text=facts["text"].get(utt),
                    language=facts["utt2lang"].get(utt, self.language),
                    speaker=_name(facts["utt2spk"].get(utt, utt)),
                    fault=fault,
                    response=(response,) if response else (),
                    split=split,
                    **{**more, "band_hz": more["band_hz"] or 0},
                )
            )
        return Inventory(items, left_out)


def write_kaldi(utterances: Sequence[Utterance], home: Path, folder: Path) -> None:
    """Write a Kaldi data directory, sorted as Kaldi wants it; ``home`` is the folder of the manifest."""
    ordered = sorted(utterances, key=lambda u: u.key.encode())
    rows: dict[str, list[str]] = {"wav.scp": [], "segments": [], "text": [], "utt2spk": [], "utt2lang": []}
    recordings: dict[str, str] = {}
    for u in ordered:
        path = str((home / u.audio_path).resolve())
        recordings.setdefault(path, u.key)
        end = u.start_sec + u.num_samples / u.sample_rate_hz
        rows["segments"].append(f"{u.key} {recordings[path]} {u.start_sec!r} {end!r}")
        rows["text"].append(f"{u.key} {_line(u.text)}")
        rows["utt2spk"].append(f"{u.key} {_word(u.speaker)}")
        rows["utt2lang"].append(f"{u.key} {u.language}")
        more = {
            "response": u.response,
            "sample_rate_hz": u.sample_rate_hz,
            "band_hz": u.band_hz or "",
            "channel": u.channel if u.channel >= 0 else "",
        }
        for fact, value in {**more, **{name: getattr(u, name) for name in TEXT_FACTS}}.items():
            if value != "":
                rows.setdefault(f"utt2{fact}", []).append(f"{u.key} {_line(value)}")
    rows["wav.scp"] = sorted(f"{name} {path}" for path, name in recordings.items())
    speakers: dict[str, list[str]] = {}
    for u in ordered:
        speakers.setdefault(_word(u.speaker), []).append(u.key)
    rows["spk2utt"] = [f"{speaker} {' '.join(keys)}" for speaker, keys in sorted(speakers.items())]
    for name, lines in rows.items():
        write_whole(folder / name, "".join(f"{line}\n" for line in lines))


def _word(name: str) -> str:
    """A name as one word of a Kaldi table: white space, and the percent sign that marks it, by their bytes."""
    return "".join(quote(char) if char.isspace() or char == "%" else char for char in name)


def _name(word: str) -> str:
    """The name that ``_word`` made a word; any other word, such as '50%', as it stands."""
    name = unquote(word)
    return name if _word(name) == word else word


def _line(value: object) -> str:
    """A value in one line: Kaldi's tables have no others."""
    return (
        " ".join(str(value).split())
        if any(c in str(value) for c in "\r\n\t\v\f\x85\u2028\u2029")
        else str(value)
    )


def read_table(path: Path) -> Iterator[tuple[str, str]]:
    """First word and rest of every line of a Kaldi table; one that comes twice is a UserError."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=1)
        if not words:
            continue
        if words[0] in seen:
            raise UserError(f"{path}:{number}: {words[0]!r} comes twice")
        seen.add(words[0])
        yield words[0], words[1].strip() if len(words) > 1 else ""


def _optional(path: Path) -> dict[str, str]:
    return dict(read_table(path)) if path.is_file() else {}


def _number(table: dict[str, str], utt: str, path: Path) -> int | None:
    if utt not in table:
        return None
    if not table[utt].isdecimal():
        raise UserError(f"{path}: {utt} {table[utt]!r}: a whole number is expected")
    return int(table[utt])


def _segment(rest: str, folder: Path, utt: str) -> tuple[str, float, float | None]:
    """Recording, start and duration; an end of -1 is the recording's."""
    words = rest.split()
    try:
        recording, start, end = words[0], float(words[1]), float(words[2])
    except (IndexError, ValueError) as error:
        raise UserError(
            f"{folder / 'segments'}: {utt} {rest!r}: expected recording, start and end"
        ) from error
    if end == -1:
        return recording, start, None
    if not 0 <= start < end:
        raise UserError(f"{folder / 'segments'}: {utt}: start {start} and end {end} are no stretch of time")
    return recording, start, end - start


def _path(entry: str, folder: Path) -> tuple[Path, str | None]:
    """Path of an entry of wav.scp, relative to the directory; and why it is none."""
    if not entry:
        return folder, "no recording of this name in wav.scp"
    if entry.endswith("|"):
        return folder, "a command in wav.scp (commands are not run)"
    if ".ark:" in entry:
        return folder, "an archive in wav.scp"
    return folder / entry, None
