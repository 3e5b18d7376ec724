"""The index of a split: where each sample lies, and its numbers in columns that planning reads without the rest.

Beside the tars of the split ``train``::

    train-000000.index.jsonl   a head line, then a line a sample: key, facts, place and crc32 of its members
    train.columns/NAME.bin     one number a sample in order, for every fact that is a number or a text; of a text that
                               may be asked for also its length (_NAME_chars)
    train.shards.json          the shards with their samples and bytes, the columns, the fingerprint; written last

Opening a split reads the last file alone; lines and columns are mapped, and read where they are asked for. So a
split of any size opens at once and needs no memory of its own.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from omniaudio.data.prompts import WRITTEN
from omniaudio.errors import UserError
from omniaudio.files import link, user_os_errors, write_whole
from omniaudio.fingerprint import Fingerprint, check_fingerprints

FORMAT_VERSION = 2
LINE = "_line"
"""Column with the place of a sample's line in its shard's index."""
DTYPES = {"number": "<f8", "text": "<u8", LINE: "<u8"}
MAX_OPEN = 128  # mapped files of one split


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the listing says of one shard."""

    name: str
    num_entries: int
    num_bytes: int
    index_bytes: int


class Member(msgspec.Struct, array_like=True, gc=False):
    """Place of a member's content in its tar, in bytes, and the crc32 that it must have."""

    offset: int
    size: int
    crc32: int


class Entry(msgspec.Struct, gc=False):
    """A sample: a line in the index of its shard."""

    key: str
    facts: dict[str, Any]
    members: dict[str, Member]
    shard: int = -1  # its number in the listing


ENTRIES = msgspec.json.Decoder(Entry)


def index_path(tar_path: Path) -> Path:
    return tar_path.with_suffix(".index.jsonl")


def link_shard(tar: Path, target: Path) -> None:
    """A shard with its index under another name, without a copy where the file system allows."""
    link(tar, target)
    link(index_path(tar), index_path(target))


def list_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.shards.json"


def listed_splits(folder: Path) -> list[str]:
    """Splits that a folder of shards has."""
    return sorted(path.name.removesuffix(".shards.json") for path in folder.glob("*.shards.json"))


def columns_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.columns"


def text_number(text: str) -> int:
    """A text in a column: equal texts have equal numbers, and no text is 0."""
    if not text:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def chars_column(name: str) -> str:
    """Column with the number of characters of a text that may be asked for; splits of earlier versions have none."""
    return f"_{name}_chars"


def write_index(
    tar_path: Path, num_bytes: int, fingerprint: Fingerprint, entries: Sequence[Mapping[str, Any]]
) -> None:
    """Write the index of a finished shard."""
    head = {
        "format": FORMAT_VERSION,
        "num_bytes": num_bytes,
        "num_entries": len(entries),
        "fingerprint": dict(fingerprint),
    }
    try:
        lines = [json.dumps(line, ensure_ascii=False, allow_nan=False) for line in (head, *entries)]
    except ValueError as error:
        raise UserError(f"{tar_path}: a fact of a sample is not finite (NaN or infinite)") from error
    write_whole(index_path(tar_path), "\n".join(lines) + "\n")


def write_listing(folder: Path, split: str, names: Sequence[str]) -> None:
    """Make the columns and the listing of a split from the indexes of its finished shards, in the order given.

    Raises:
        UserError: a shard without an index; a broken one; two layouts; a fact that is a number here and a text there.
    """
    columns = _ColumnWriter(columns_path(folder, split))
    shards: list[ShardFacts] = []
    fingerprint: Fingerprint = {}
    content = hashlib.sha256()
    with columns:
        for name in names:
            path = index_path(folder / f"{name}.tar")
            head, places, entries = read_index(path)
            if shards:
                check_fingerprints(fingerprint, head["fingerprint"], str(path))
            fingerprint.update(head["fingerprint"])
            columns.add(places, [entry.facts for entry in entries], path)
            content.update(path.read_bytes())
            size = path.stat().st_size
            shards.append(ShardFacts(name, len(entries), head["num_bytes"], size))
    listing = {
        "format": FORMAT_VERSION,
        "num_entries": sum(shard.num_entries for shard in shards),
        "content": content.hexdigest(),  # of all indexes, which hold the crc32 of all members
        "fingerprint": fingerprint,
        "columns": columns.kinds,
        "shards": [[s.name, s.num_entries, s.num_bytes, s.index_bytes] for s in shards],
    }
    write_whole(list_path(folder, split), json.dumps(listing, ensure_ascii=False))


def remove_listing(folder: Path, split: str) -> None:
    """A split whose shards are about to change is no split."""
    list_path(folder, split).unlink(missing_ok=True)
    shutil.rmtree(columns_path(folder, split), ignore_errors=True)


def read_index(path: Path) -> tuple[dict[str, Any], list[int], list[Entry]]:
    """Head, places of the lines in bytes, and entries of a whole index."""
    if not path.is_file():
        raise UserError(f"{path.parent}: shard has no index (no {path.name}); make the shards again")
    with user_os_errors(path):
        texts = path.read_bytes().splitlines(keepends=True)
    if not texts:
        raise UserError(f"{path}: empty; make the shards again")
    head = _head(texts[0], path)
    if head["num_entries"] != len(texts) - 1:
        raise UserError(
            f"{path}: should name {head['num_entries']} samples, names {len(texts) - 1}; make the shards again"
        )
    places = list(accumulate(map(len, texts)))[:-1]
    return head, places, [_entry(text, path) for text in texts[1:]]


def check_format(loaded: Any, path: Path) -> None:
    """Raise a UserError unless this version can read it."""
    found = loaded.get("format") if isinstance(loaded, dict) else type(loaded).__name__
    if found != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {found!r}, this version reads {FORMAT_VERSION}; make the shards again"
        )


def _head(text: bytes, path: Path) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid json ({error}); make the shards again") from error
    check_format(head, path)
    kinds = {"num_entries": int, "num_bytes": int, "fingerprint": dict}
    if not all(isinstance(head.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path}: broken head line, it needs {', '.join(kinds)}; make the shards again")
    return dict(head)


def _entry(text: bytes, path: str | Path) -> Entry:
    try:
        return ENTRIES.decode(text)
    except msgspec.DecodeError as error:
        raise _broken(path, error) from error


def _broken(path: str | Path, error: msgspec.DecodeError) -> UserError:
    return UserError(f"{path}: broken index ({error}); make the shards again")


class Listing:
    """A split as its listing tells it; columns and lines on demand.

    Raises:
        UserError: there is no listing, or it is broken.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        path = list_path(folder, split)
        if not path.is_file():
            raise UserError(
                f"{folder}: split {split!r} is not there or was not finished (no {path.name}); make the shards again"
            )
        try:
            loaded = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not valid json ({error}); make the shards again") from error
        check_format(loaded, path)
        try:
            self.shards = [ShardFacts(str(n), int(e), int(b), int(i)) for n, e, b, i in loaded["shards"]]
            self.fingerprint: Fingerprint = dict(loaded["fingerprint"])
            self.kinds: dict[str, str] = {name: str(kind) for name, kind in loaded["columns"].items()}
            self.num_entries = int(loaded["num_entries"])
            self.content = str(loaded.get("content", ""))  # splits of earlier versions have none
            self.dtypes = {name: DTYPES[kind] for name, kind in self.kinds.items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: broken listing ({error!r}); make the shards again") from error
        self._ends = list(accumulate(shard.num_entries for shard in self.shards))
        named = self._ends[-1] if self._ends else 0
        if self.num_entries != named:
            raise UserError(
                f"{path}: should hold {self.num_entries} samples, its shards name {named}; make the shards again"
            )
        if bad := [s.name for s in self.shards if not re.fullmatch(rf"{re.escape(split)}-\d{{6}}", s.name)]:
            raise UserError(f"{path}: shard {bad[0]!r} is refused: its name must be {split}-000000 and so on")
        self._columns: dict[str, np.ndarray] = {}
        self._places: memoryview | None = None  # the column LINE
        self._index_paths: dict[int, str] = {}  # of shards whose head was checked
        self.maps = Maps()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_columns": {},
            "_places": None,
            "maps": Maps(),
        }  # opened again in a worker process

    def column(self, name: str) -> np.ndarray:
        """A fact of all samples in order, mapped: a number (0 where it is not given), or ``text_number`` of a text."""
        if name not in self._columns:
            self._columns[name] = self._open_column(name)
        return self._columns[name]

    def _open_column(self, name: str) -> np.ndarray:
        if name not in self.dtypes:  # no sample has it
            return np.broadcast_to(np.zeros(1), (self.num_entries,))
        path, dtype = columns_path(self.folder, self.split) / f"{name}.bin", np.dtype(self.dtypes[name])
        found, expected = path.stat().st_size if path.is_file() else -1, self.num_entries * dtype.itemsize
        if found != expected:
            raise UserError(
                f"{path}: expected {expected} bytes, found {max(0, found)}; make the shards again"
            )
        if not self.num_entries:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, mode="r").view(np.ndarray)

    def verify(self) -> None:
        """Read all: the indexes are those of the listing, and the columns say what the indexes say."""
        content, start = hashlib.sha256(), 0
        for shard in self.shards:
            path = index_path(self.folder / f"{shard.name}.tar")
            _, places, lines = read_index(path)
            content.update(path.read_bytes())
            found = _values(places, [line.facts for line in lines])
            for name in {**self.kinds, **{name: None for name in found if not name.startswith("_")}}:
                column = self.column(name)[start : start + len(lines)]
                expected = found[name][1] if name in found else np.zeros(len(lines))
                if name not in self.kinds or not np.array_equal(column, expected):
                    raise UserError(
                        f"{columns_path(self.folder, self.split) / name}.bin: not what {path.name} says; "
                        "make the shards again"
                    )
            start += len(lines)
        if self.content and content.hexdigest() != self.content:
            listed = list_path(self.folder, self.split).name
            raise UserError(
                f"{self.folder}: the indexes of {self.split!r} are not those of {listed}; make the shards again"
            )

    def entry(self, position: int) -> Entry:
        """A sample, read from the index of its shard."""
        number = bisect_right(self._ends, position)
        path = self._index_paths.get(number) or self._checked_index(number)
        text = self.maps[path]
        places = self._places
        if places is None:
            places = self._places = np.ascontiguousarray(self.column(LINE)).data
        place = places[position]
        try:
            entry = ENTRIES.decode(text[place : text.find(b"\n", place)])
        except msgspec.DecodeError as error:  # of its form, too
            raise _broken(path, error) from error
        entry.shard = number
        return entry

    def _checked_index(self, number: int) -> str:
        """The path of a shard's index, once it is known to be that of the listing."""
        shard = self.shards[number]
        path = index_path(self.folder / f"{shard.name}.tar")
        if not path.is_file() or path.stat().st_size != shard.index_bytes:
            read_index(path)  # says more, if it is broken
            raise UserError(f"{path}: changed since the split was made; make the shards again")
        text = self.maps[str(path)]
        head = _head(text[: text.find(b"\n") + 1], path)
        check_fingerprints(self.fingerprint, head["fingerprint"], str(path))
        self._index_paths[number] = str(path)
        return self._index_paths[number]


class Maps(dict[str, mmap.mmap]):
    """Files mapped for reading, by path; when there are too many, the one that was opened first is closed."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        super().__init__()
        self.max_open = max_open

    def __missing__(self, path: str) -> mmap.mmap:
        with user_os_errors(Path(path)), open(path, "rb") as file:
            opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self) >= self.max_open:
            self.pop(next(iter(self))).close()
        self[path] = opened
        return opened


class _ColumnWriter:
    """Appends to the columns of a split, shard by shard; a column that begins late is 0 before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, str] = {LINE: LINE}
        self.num_entries = 0
        self._files: dict[str, Any] = {}

    def __enter__(self) -> _ColumnWriter:
        with user_os_errors(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, places: Sequence[int], facts: Sequence[Mapping[str, Any]], path: Path) -> None:
        """The samples of one shard."""
        try:
            values = _values(places, facts)
            for name, (kind, _) in values.items():
                if self.kinds.setdefault(name, kind) != kind:
                    raise UserError(f"fact {name!r} is a {kind} here and a {self.kinds[name]} elsewhere")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        with user_os_errors(self.folder):
            for name, kind in self.kinds.items():
                column = values[name][1] if name in values else np.zeros(len(facts), DTYPES[kind])
                self._file(name, kind).write(column.tobytes())
        self.num_entries += len(facts)

    def _file(self, name: str, kind: str) -> Any:
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
            self._files[name].write(np.zeros(self.num_entries, DTYPES[kind]).tobytes())
        return self._files[name]


def _values(places: Sequence[int], facts: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, np.ndarray]]:
    """Kind and column of everything that the samples of a shard have."""
    values = {LINE: (LINE, np.asarray(places, DTYPES[LINE]))}
    for i, mapping in enumerate(facts):
        for name, kind, number in _numbers(mapping):
            if name not in values:
                values[name] = kind, np.zeros(len(facts), DTYPES[kind])
            if values[name][0] != kind:
                raise UserError(f"fact {name!r} is a {kind} here and a {values[name][0]} elsewhere")
            values[name][1][i] = number
    return values


def _numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for name, value in facts.items():
        if not name.isidentifier() or name.startswith("_"):
            continue
        if isinstance(value, str):
            yield name, "text", text_number(value)
            if name in WRITTEN.values():
                yield chars_column(name), "number", len(value)
        elif isinstance(value, int | float):
            yield name, "number", value
