"""Lists of recordings as json lines, both ways: Lhotse cuts, NeMo manifests; and Hugging Face audio folders.

Facts of an utterance that a format has no field for stand in its place for custom ones, so nothing is lost.
A line that cannot be used is counted as bad; a file of which no line can be used is an error.
"""

from __future__ import annotations

import csv
import functools
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omniaudio.corpus.from_shards import built_facts
from omniaudio.corpus.items import Inventory, LeftOut, RawItem, clean_key, unique_keys
from omniaudio.data.chats import chat_facts
from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.types import Utterance

MORE = ("corpus", "continuation", "translation", "chat", "built")
SLACK_SEC = 0.1  # by which a supervision may reach beyond its cut: times are rounded
TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript")
"""Names of the column with the words in a Hugging Face audio folder, in the order of preference."""
X = TypeVar("X")


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
            for entry in read_lines(
                self.lines(path), functools.partial(self.read, home=path.parent, split=split)
            )
        ]
        items = [entry for entry in found if isinstance(entry, RawItem)]
        return Inventory(unique_keys(items), [entry for entry in found if isinstance(entry, LeftOut)])

    def attribution(self) -> str:
        return f"{self.name}: {self.licence}"

    def lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any] | LineError]]:
        """Place and content of every line."""
        return read_json_lines(path)

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        """The recordings of a line; a LineError if it cannot be used."""
        raise NotImplementedError


class LhotseCuts(Listed):
    """Cuts of Lhotse (``cuts.jsonl`` or ``.jsonl.gz``): every supervision is a recording, the stretch that it names.

    Audio of files is read; features and commands are not, nor are cuts that Lhotse would mix or change on reading.
    See ``Listed`` for the arguments.
    """

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        field = Fields(line, where)
        name, kind = field("id", str), field("type", str, "cut")
        found = field("recording", dict, None)
        if found is None:
            yield LeftOut(name=name, reason=f"{kind} without a recording of its own")
            return
        recording = Fields(found, f"{where}: recording")
        sources = [Fields(source, f"{where}: source") for source in recording("sources", list)]
        if not sources or any(source("type", str) != "file" for source in sources):
            yield LeftOut(name=name, reason="cut whose recording is no file")
            return
        rate_hz, change = _file_rate(recording)
        if change:
            yield LeftOut(name=name, reason=f"cut whose recording is changed by {change}")
            return
        supervisions = field("supervisions", list, [])
        if not supervisions:
            yield LeftOut(name=name, reason="cut with no supervisions")
        for number, supervision in enumerate(supervisions):
            told = Fields(supervision, f"{where}: supervision {number}")
            stretch = _stretch(field, told)
            if stretch is None:
                yield LeftOut(name=name, reason="supervision that is not whole in its cut")
                continue
            path, channel = _source(sources, told("channel", int | list, field("channel", int | list, 0)))
            yield RawItem(
                key=clean_key(name if len(supervisions) == 1 else f"{name}/{number:04d}"),
                path=home / path,
                start_sec=stretch[0],
                duration_sec=stretch[1],
                channel=channel,
                text=told("text", str, None),
                language=language_code(told("language", str, None), self.language),
                speaker=told("speaker", str, None) or name,
                split=split,
                **{**_more(told("custom", dict, None) or {}, told.where), "sample_rate_hz": rate_hz},
            )


def _stretch(cut: Fields, supervision: Fields) -> tuple[float, float] | None:
    """Start and duration of a supervision in the recording; None if the cut holds only a part of it."""
    whole_sec = float(cut("duration", int | float))
    start_sec = float(supervision("start", int | float, 0.0))
    duration_sec = float(supervision("duration", int | float, whole_sec))
    if start_sec < -SLACK_SEC or start_sec + duration_sec > whole_sec + SLACK_SEC:
        return None
    return max(0.0, float(cut("start", int | float, 0.0)) + start_sec), duration_sec


def _source(sources: Sequence[Fields], channel: int | list[int]) -> tuple[str, int | None]:
    """The file with a channel, and which of its channels that is; None: its only one, or the mean of all."""
    one = channel[0] if isinstance(channel, list) and len(channel) == 1 else channel
    for source in sources:
        channels = source("channels", list, [0])
        if one in channels:
            return source("source", str), None if len(channels) == 1 else channels.index(one)
    if len(sources) > 1:
        raise LineError(
            sources[0].where,
            f"none of {len(sources)} files has the channel {channel}",
            "channel that no file has",
        )
    if isinstance(one, list) and set(one) != set(sources[0]("channels", list, [0])):
        what = f"channels {one} are neither one nor all of its file"
        raise LineError(sources[0].where, what, "channels that are neither one nor all of a file")
    return sources[0]("source", str), None if isinstance(one, list) else one


def _file_rate(recording: Fields) -> tuple[int | None, str]:
    """Sample rate of a recording's file in Hz, and the transform that changes its sound, if there is one."""
    rate_hz = recording("sampling_rate", int, None)
    for transform in reversed(recording("transforms", list, [])):
        told = Fields(transform, f"{recording.where}: transform")
        if (name := told("name", str)) != "Resample":
            return None, name
        rate_hz = Fields(told("kwargs", dict), told.where)("source_sampling_rate", int)
    return rate_hz, ""


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
        files: dict[str, Path] = {}
        for split, folders in names.items():
            kinds = ("metadata.csv", "metadata.jsonl")
            found = [
                path for where in folders for kind in kinds if (path := self.folder / where / kind).is_file()
            ]
            if len(found) > 1:
                listed = " and ".join(path.relative_to(self.folder).as_posix() for path in found)
                raise UserError(
                    f"corpus.folder {self.folder}: {listed} list the same split; put all lines into one of them"
                )
            if found:
                files[split] = found[0]
        if not files:
            raise UserError(
                f"corpus.folder {self.folder}: no metadata.csv or metadata.jsonl, here or in train, validation, test"
            )
        super().__init__({split: str(path) for split, path in files.items()}, language, name, licence)

    def lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any] | LineError]]:
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
            wanted, there = column or " or ".join(TEXT_COLUMNS), ", ".join(map(str, line))
            raise LineError(where, f"no column {wanted!r}, only {there}; set corpus.text_column")
        name = field("file_name", str)
        path = (home / name).resolve()
        outside = not path.is_relative_to(self.folder)
        speaker = (
            field("speaker", str | int, None) or field("speaker_id", str | int, None) or path.parent.name
        )
        yield RawItem(
            key=clean_key(f"{split}/{Path(name).with_suffix('').as_posix().lstrip('./')}".lstrip("/")),
            path=path,
            text=None if line[column] is None else str(line[column]),
            language=language_code(field("language", str, None), self.language),
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
        mean = u.channel < 0 and num_channels > 1
        channel = list(range(num_channels)) if mean else max(0, u.channel)
        lines.append(
            {
                "id": u.key, "start": u.start_sec, "duration": duration, "channel": channel,
                "supervisions": [
                    {
                        "id": u.key, "recording_id": str(path), "start": 0.0, "duration": duration,
                        "channel": channel, "text": u.text, "language": u.language, "speaker": u.speaker,
                        "custom": _facts(u),
                    }
                ],
                "recording": {
                    "id": str(path), "sampling_rate": rate_hz, "num_samples": num_samples,
                    "duration": num_samples / rate_hz, "channel_ids": list(range(num_channels)),
                    "sources": [{"type": "file", "channels": list(range(num_channels)), "source": str(path)}],
                },
                "type": "MultiCut" if mean else "MonoCut",
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
            "sample_rate_hz": u.sample_rate_hz,
        }  # fmt: skip
        lines.append({**line, **({"channel": u.channel} if u.channel >= 0 else {}), **_facts(u)})
    write_whole(folder / "manifest.json", _json_lines(lines))


class LineError(UserError):
    """A line of a list, or a part of it, that cannot be used; ``reason`` is ``what`` without the line's own values."""

    def __init__(self, where: str, what: str, reason: str = "") -> None:
        super().__init__(f"{where}: {what}")
        self.where, self.what, self.reason = where, what, reason or what

    def left_out(self) -> LeftOut:
        return LeftOut(name=self.where, reason=self.reason, detail=self.what, bad=True)


def read_lines(
    lines: Iterable[tuple[str, dict[str, Any] | LineError]],
    read: Callable[[dict[str, Any], str], Iterable[X]],
) -> list[X | LeftOut]:
    """What ``read`` makes of every line; one that it cannot use is left out as bad.

    Raises:
        UserError: no line can be used.
    """
    found: list[X | LeftOut] = []
    bad: list[LineError] = []
    for where, line in lines:
        try:
            if isinstance(line, LineError):
                raise line
            found += list(read(line, where))  # all of a line or nothing
        except LineError as error:
            bad.append(error)
            found.append(error.left_out())
        except (ValueError, OverflowError) as error:  # a path with a zero byte, an offset that is no number
            if isinstance(error, UserError):
                raise
            bad.append(LineError(where, str(error), "value that cannot be used"))
            found.append(bad[-1].left_out())
    if bad and len(bad) == len(found):
        others = " (nor can any other line of it be used)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{others}")
    return found


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | LineError]]:
    """Place and content of every line of a file of json objects, gzipped or not; a line that is none as an error."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _json_object(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _json_object(line: str, where: str) -> dict[str, Any] | LineError:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return LineError(where, f"not valid json ({error})", "not valid json")
    return (
        found
        if isinstance(found, dict)
        else LineError(where, f"a {type(found).__name__}, expected an object")
    )


REQUIRED = object()


class Fields:
    """Fields of an object by name, of the type that is expected."""

    def __init__(self, found: Any, where: str) -> None:
        self.found, self.where = found, where
        if not isinstance(found, dict):
            raise LineError(where, f"a {type(found).__name__}, expected an object")

    def __call__(self, name: str, kind: Any, default: Any = REQUIRED) -> Any:
        value = self.found.get(name)
        if value is None and default is not REQUIRED:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = getattr(kind, "__name__", str(kind))
            raise LineError(
                self.where, f"{name} is {_short(value)}, expected {wanted}", f"{name} is no {wanted}"
            )
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            what = "which is no text (half a character)"
            raise LineError(self.where, f"{name} is {value[:80]!a}, {what}", f"{name} holds half a character")
        return value


def _short(value: Any) -> str:
    """A value for a message: a sound may stand in it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _more(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Facts beyond those that the format has a field for."""
    field = Fields(dict(found), where)
    facts = {name: field(name, str, "") for name in MORE}
    for name, facts_of in (("chat", chat_facts), ("built", built_facts)):
        try:
            if facts[name]:
                facts_of(facts[name], where)
        except UserError as error:
            what = str(error).removeprefix(f"{where}: ")
            raise LineError(where, what, f"{name} is not as expected") from error
    response = field("response", str, "")
    numbers: dict[str, int] = {}
    for name in ("band_hz", "sample_rate_hz"):
        given = str(field(name, int | float | str, 0) or 0)
        if not given.replace(".", "", 1).isdecimal():
            raise LineError(
                where, f"{name} is {given!r}, expected a frequency in Hz", f"{name} is no frequency"
            )
        numbers[name] = int(float(given))
    rate_hz = numbers["sample_rate_hz"] or None
    return {**facts, **numbers, "sample_rate_hz": rate_hz, "response": (response,) if response else ()}


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
