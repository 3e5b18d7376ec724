"""Lists of recordings as json lines, both ways: Lhotse cuts, NeMo manifests; and Hugging Face audio folders.

Facts of an utterance that a format has no field for stand in its place for custom ones, so nothing is lost.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key, unique_keys
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.types import Utterance

MORE = ("corpus", "continuation", "translation", "chat")
TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript")
"""Names of the column with the words in a Hugging Face audio folder, in the order of preference."""


class Listed:
    """Recordings that one or several files list.

    Args:
        path: the file; or a mapping of train, dev and test to files.
        language: ISO 639-1, for those that name none.
        name: of the prepared folder.
        licence: a line for ATTRIBUTION.
    """

    def __init__(
        self, path: str | Mapping[str, str], language: str, name: str, licence: str = "Licence not stated."
    ) -> None:
        paths = {"": path} if isinstance(path, str) else dict(path)
        if unknown := sorted(set(paths) - {"", "train", "dev", "test"}):
            raise UserError(f"corpus.path: {', '.join(unknown)} is no split; one of train, dev, test")
        self.paths = {split: Path(file).resolve() for split, file in paths.items()}
        self.language, self.name, self.licence = language, name, licence

    def fetch(self, folder: Path) -> None:
        for path in self.paths.values():
            if not path.is_file():
                raise UserError(f"corpus.path {path}: no such file")

    def inventory(self, folder: Path) -> Inventory:
        self.fetch(folder)
        found = [
            entry
            for split, path in self.paths.items()
            for where, line in self.lines(path)
            for entry in self.read(line, where, path.parent, split)
        ]
        items = [entry for entry in found if isinstance(entry, RawItem)]
        return Inventory(unique_keys(items), [entry for entry in found if isinstance(entry, LeftOut)])

    def attribution(self) -> str:
        return f"{self.name}: {self.licence}"

    def lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and content of every line."""
        return read_json_lines(path)

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        """The recordings of a line."""
        raise NotImplementedError


class LhotseCuts(Listed):
    """Cuts of Lhotse (``cuts.jsonl`` or ``.jsonl.gz``), each with one supervision that covers it.

    Audio of files is read; features and commands are not. See ``Listed`` for the arguments.
    """

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        field = Fields(line, where)
        name = field("id", str)
        recording = Fields(field("recording", dict), f"{where}: recording")
        sources = recording("sources", list)
        if not sources or not isinstance(sources[0], dict) or sources[0].get("type") != "file":
            yield LeftOut(name=name, reason="cut whose recording is no file")
            return
        supervisions = field("supervisions", list, [])
        if len(supervisions) != 1:
            yield LeftOut(
                name=name, reason=f"cut with {'no' if not supervisions else 'several'} supervisions"
            )
            return
        told = Fields(supervisions[0], f"{where}: supervision")
        custom = told("custom", dict, None) or {}
        channel = field("channel", int | list, 0)
        whole = len(sources) == 1 and len(sources[0].get("channels", [0])) == 1
        yield RawItem(
            key=clean_key(name),
            path=home / str(sources[0].get("source", "")),
            start_sec=float(field("start", int | float, 0.0)),
            duration_sec=float(field("duration", int | float)),
            channel=None if whole or isinstance(channel, list) else channel,
            text=told("text", str, None),
            language=language_code(told("language", str, None), self.language),
            speaker=told("speaker", str, None) or name,
            split=split,
            **_more(custom, where),
        )


class NemoManifest(Listed):
    """A manifest of NeMo: ``audio_filepath``, ``duration``, ``text``, ``offset``. See ``Listed`` for the arguments."""

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        field = Fields(line, where)
        path = field("audio_filepath", str)
        offset = float(field("offset", int | float, 0.0))
        duration = field("duration", int | float, None)
        name = field("id", str, None) or Path(path).with_suffix("").as_posix().lstrip("./") + (
            f"_{round(1000 * offset)}" if offset else ""
        )
        channel = field("channel", int, None)
        yield RawItem(
            key=clean_key(name),
            path=home / path,
            start_sec=offset,
            duration_sec=None if duration is None else float(duration),
            channel=channel,
            text=field("text", str, None),
            language=language_code(field("lang", str, None) or field("language", str, None), self.language),
            speaker=str(field("speaker", str | int, None) or name),
            split=split,
            **_more(line, where),
        )


class HuggingFaceFolder(Listed):
    """An audio folder of Hugging Face: recordings with ``metadata.csv`` or ``metadata.jsonl``, in splits or not.

    Args:
        folder: with the metadata; or with folders ``train``, ``validation`` and ``test`` of which each has them.
        text_column: with the words; null takes the first of transcription, text, sentence, transcript.
        language, name, licence: see ``Listed``.
    """

    def __init__(
        self,
        folder: str,
        language: str,
        text_column: str | None = None,
        name: str = "huggingface",
        licence: str = "Licence not stated.",
    ) -> None:
        self.folder, self.text_column = Path(folder).resolve(), text_column
        names = {"": ("",), "train": ("train",), "dev": ("validation", "dev", "valid"), "test": ("test",)}
        files = {
            split: path
            for split, folders in names.items()
            for where in folders
            for kind in ("metadata.csv", "metadata.jsonl")
            if (path := self.folder / where / kind).is_file()
        }
        if not files:
            raise UserError(
                f"corpus.folder {self.folder}: no metadata.csv or metadata.jsonl, here or in train, validation, test"
            )
        super().__init__({split: str(path) for split, path in files.items()}, language, name, licence)

    def lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        if path.suffix == ".jsonl":
            yield from read_json_lines(path)
            return
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in (reader := csv.DictReader(file)):
                    yield f"{path}:{reader.line_num}", row
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        field = Fields(line, where)
        column = self.text_column or next((name for name in TEXT_COLUMNS if name in line), None)
        if column is None or column not in line:
            raise UserError(
                f"{where}: no column {column or ' or '.join(TEXT_COLUMNS)!r}, only {', '.join(map(str, line))}; "
                f"set corpus.text_column"
            )
        name = field("file_name", str)
        path = (home / name).resolve()
        outside = not path.is_relative_to(self.folder)
        speaker = line.get("speaker") or line.get("speaker_id") or path.parent.name
        yield RawItem(
            key=clean_key(f"{split}/{Path(name).with_suffix('').as_posix().lstrip('./')}".lstrip("/")),
            path=path,
            text=None if line[column] is None else str(line[column]),
            language=language_code(line.get("language"), self.language),
            speaker=str(speaker),
            fault="path outside the folder" if outside else None,
            split=split,
            **_more(line, where),
        )


def write_lhotse(utterances: Sequence[Utterance], home: Path, folder: Path) -> None:
    """Write ``cuts.jsonl.gz``: one cut with one supervision an utterance. ``home`` is the folder of the manifest."""
    from omniaudio.frontend.audio import audio_facts

    lines, known = [], {}
    for u in utterances:
        path = (home / u.audio_path).resolve()
        if path not in known:
            known[path] = audio_facts(path)
        num_channels, num_samples, rate_hz = known[path]
        duration = u.num_samples / u.sample_rate_hz
        lines.append(
            {
                "id": u.key, "start": u.start_sec, "duration": duration, "channel": max(0, u.channel),
                "supervisions": [
                    {
                        "id": u.key, "recording_id": str(path), "start": 0.0, "duration": duration,
                        "channel": max(0, u.channel), "text": u.text, "language": u.language, "speaker": u.speaker,
                        "custom": _facts(u),
                    }
                ],
                "recording": {
                    "id": str(path), "sampling_rate": rate_hz, "num_samples": num_samples,
                    "duration": num_samples / rate_hz, "channel_ids": list(range(num_channels)),
                    "sources": [{"type": "file", "channels": list(range(num_channels)), "source": str(path)}],
                },
                "type": "MonoCut",
            }
        )  # fmt: skip
    write_whole(folder / "cuts.jsonl.gz", gzip.compress(_json_lines(lines).encode(), mtime=0))


def write_nemo(utterances: Sequence[Utterance], home: Path, folder: Path) -> None:
    """Write ``manifest.json``, one object a line as NeMo has it."""
    lines = []
    for u in utterances:
        line = {
            "id": u.key, "audio_filepath": str((home / u.audio_path).resolve()), "offset": u.start_sec,
            "duration": u.num_samples / u.sample_rate_hz, "text": u.text, "lang": u.language, "speaker": u.speaker,
        }  # fmt: skip
        lines.append({**line, **({"channel": u.channel} if u.channel >= 0 else {}), **_facts(u)})
    write_whole(folder / "manifest.json", _json_lines(lines))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of every line of a file of json objects, gzipped or not."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not valid json ({error})") from error
                if not isinstance(found, dict):
                    raise UserError(f"{path}:{number}: a {type(found).__name__}, expected an object")
                yield f"{path}:{number}", found
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


REQUIRED = object()


class Fields:
    """Fields of an object by name, of the type that is expected."""

    def __init__(self, found: Any, where: str) -> None:
        self.found, self.where = found, where
        if not isinstance(found, dict):
            raise UserError(f"{where}: a {type(found).__name__}, expected an object")

    def __call__(self, name: str, kind: Any, default: Any = REQUIRED) -> Any:
        value = self.found.get(name)
        if value is None and default is not REQUIRED:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = getattr(kind, "__name__", str(kind))
            raise UserError(f"{self.where}: {name} is {value!r}, expected {wanted}")
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            raise UserError(f"{self.where}: {name} is {value[:80]!a}, which is no text (half a character)")
        return value


def _more(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Facts beyond those that the format has a field for."""
    field = Fields(dict(found), where)
    facts = {name: field(name, str, "") for name in MORE}
    response = field("response", str, "")
    band = str(field("band_hz", int | float | str, 0) or 0)
    if not band.replace(".", "", 1).isdecimal():
        raise UserError(f"{where}: band_hz is {band!r}, expected a frequency in Hz")
    return {**facts, "band_hz": int(float(band)), "response": (response,) if response else ()}


def _facts(u: Utterance) -> dict[str, Any]:
    return {name: getattr(u, name) for name in (*MORE, "response", "band_hz") if getattr(u, name)}


def language_code(given: str | None, default: str) -> str:
    """An ISO 639-1 code from a code or a BCP 47 tag or Lhotse's English name; the default where nothing is given."""
    if not given:
        return default
    names = {
        "english": "en",
        "chinese": "zh",
        "mandarin": "zh",
        "german": "de",
        "french": "fr",
        "spanish": "es",
    }
    lowered = given.strip().lower()
    return names.get(lowered, lowered.split("-")[0].split("_")[0])


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
