"""Shards: tar files that plain webdataset reads, each with an index for planning, random access and checks.

In a folder, for the split ``train``::

    train-000000.tar          samples one after the other, the members of a sample adjacent and sorted
    train-000000.index.json   where each member lies, its size and crc32; the sample's facts; the fingerprint
    train.shards.json         names of all shards and the number of samples; written last

The same samples give the same bytes. Members are audio, json, text and arrays; nothing that runs code on
loading (pickle) is written or read.
"""

from __future__ import annotations

import io
import json
import mmap
import re
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from omniaudio.errors import UserError
from omniaudio.files import PARTIAL_ENDING, partial_path, put_in_place, user_os_errors, write_whole
from omniaudio.fingerprint import Fingerprint, check_fingerprints

FORMAT_VERSION = 1
MEMBER_TYPES = ("flac", "wav", "ogg", "mp3", "json", "npy", "txt")
"""What may end a member's name: data only."""

KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
MAX_NAME_BYTES = 100  # of a plain tar header
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """Place of a member's content in its tar, in bytes, and the crc32 that it must have."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of the index."""

    key: str
    facts: dict[str, Any]
    shard: int  # position in ShardReader.shards
    members: dict[str, Member] = field(repr=False)


def check_member_name(name: str, where: str) -> tuple[str, str]:
    """Split ``key.type`` and refuse what is neither a clean key nor a known type of data.

    Raises:
        UserError: pickles and other unknown types, paths that leave the folder, names that are too long.
    """
    key, _, kind = name.partition(".")
    if not KEY.fullmatch(key):
        raise UserError(
            f"{where}: member {name!r} is refused: a key is letters, digits, '-', '_' and '/', "
            f"relative, without '..'"
        )
    if kind.rpartition(".")[2] not in MEMBER_TYPES:
        raise UserError(
            f"{where}: member {name!r} is refused: its type must be one of {', '.join(MEMBER_TYPES)} "
            f"(no pickle: it can run code)"
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(f"{where}: member name {name!r} is longer than {MAX_NAME_BYTES} bytes")
    return key, kind


def dump_npy(array: np.ndarray) -> bytes:
    """An array without objects as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file; one that holds objects (pickles) is refused."""
    try:
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise UserError(f"array refused: {error}") from error
    return array


class ShardWriter:
    """Write the samples of one split; use as a context manager.

    Shards of an earlier run of this split are removed at the start. A run that ends by an error or a kill
    leaves no ``<split>.shards.json``, and a reader says so.

    Args:
        folder: made if it is not there.
        split: letters, digits, '-' and '_'.
        max_bytes: a new tar begins before the current one would grow past this size.
        fingerprint: facts of the token layout, kept in every index.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        max_bytes: int = 256 << 20,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        if not KEY.fullmatch(split) or "/" in split:
            raise UserError(f"split {split!r}: letters, digits, '-' and '_' are allowed")
        self.folder, self.split, self.max_bytes = Path(folder), split, max_bytes
        self.fingerprint = dict(fingerprint or {})
        self._tar: tarfile.TarFile | None = None
        self._entries: list[dict[str, Any]] = []
        self._shards: list[str] = []
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        with user_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _list_path(self.folder, self.split).unlink(missing_ok=True)
            numbered = re.compile(
                rf"\.?{re.escape(self.split)}-\d{{6}}\.(tar|index\.json)({PARTIAL_ENDING})?"
            )
            for path in sorted(self.folder.iterdir()):
                if numbered.fullmatch(path.name):
                    path.unlink()
        return self

    def write(self, key: str, members: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Add a sample: ``members`` by type; the member ``json`` is made of ``facts`` unless given."""
        if key in self._keys:
            raise UserError(f"{self.folder}: key {key!r} is written twice; keys must be unique")
        self._keys.add(key)
        contents = {"json": json.dumps(facts, ensure_ascii=False, sort_keys=True).encode(), **members}
        names = {kind: f"{key}.{kind}" for kind in sorted(contents)}
        for name in names.values():
            check_member_name(name, str(self.folder))
        size = sum(BLOCK + _padded(len(content)) for content in contents.values())
        with user_os_errors(self.folder):
            if self._tar is not None and self._tar.offset + size > self.max_bytes:
                self._close_shard()
            tar = self._tar or self._open_shard()
            places = {kind: self._add(tar, name, contents[kind]) for kind, name in names.items()}
        self._entries.append({"key": key, "facts": dict(facts), "members": places})

    @staticmethod
    def _add(tar: tarfile.TarFile, name: str, content: bytes) -> list[int]:
        info = tarfile.TarInfo(name)  # time, owner and group are 0: equal samples, equal bytes
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        return [tar.offset - _padded(len(content)), len(content), zlib.crc32(content)]

    def _open_shard(self) -> tarfile.TarFile:
        self._shards.append(f"{self.split}-{len(self._shards):06d}")
        path = partial_path(self.folder / f"{self._shards[-1]}.tar")
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  closed by _close_shard
        return self._tar

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        path = self.folder / f"{self._shards[-1]}.tar"
        num_bytes = partial_path(path).stat().st_size
        put_in_place(partial_path(path), path)
        index = {
            "format": FORMAT_VERSION,
            "num_bytes": num_bytes,
            "fingerprint": self.fingerprint,
            "entries": self._entries,
        }
        write_whole(_index_path(path), json.dumps(index, ensure_ascii=False))
        self._entries = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._tar is not None:
                with suppress(OSError):  # a full disk again
                    self._tar.fileobj.close()  # type: ignore[union-attr]
                partial_path(self.folder / f"{self._shards[-1]}.tar").unlink(missing_ok=True)
            return
        with user_os_errors(self.folder):
            self._close_shard()
        listing = {"format": FORMAT_VERSION, "num_entries": len(self._keys), "shards": self._shards}
        write_whole(_list_path(self.folder, self.split), json.dumps(listing))


class ShardReader:
    """The samples of one split, in the order of writing, by position.

    Opening reads the indexes and checks that every tar is there in full length; ``read`` checks the header
    and the crc32 of what it returns; ``verify`` reads everything.

    Raises:
        UserError: naming shard and member, what was expected and what was found.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        listing = _load_json(
            _list_path(self.folder, split), f"split {split!r} is not there or was not finished"
        )
        self.shards: list[Path] = [self.folder / f"{name}.tar" for name in listing["shards"]]
        self.entries: list[Entry] = []
        self.fingerprint: Fingerprint = {}
        for number, path in enumerate(self.shards):
            self._add_index(number, path)
        if len(self.entries) != listing["num_entries"]:
            raise UserError(
                f"{self.folder}: split {split!r} should hold {listing['num_entries']} samples, "
                f"its indexes name {len(self.entries)}"
            )
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # maps are opened again in a worker process

    def read(self, position: int) -> dict[str, bytes]:
        """The members of a sample by type, checked."""
        entry = self.entries[position]
        return {kind: self._member(entry, kind, member) for kind, member in entry.members.items()}

    def verify(self) -> int:
        """Read all: each member is as its index says, and there are no others."""
        ends = [0] * len(self.shards)
        for position, entry in enumerate(self.entries):
            self.read(position)
            for kind, member in entry.members.items():
                if member.offset - BLOCK != ends[entry.shard]:
                    raise UserError(
                        f"{self.shards[entry.shard]}: member '{entry.key}.{kind}': expected at byte "
                        f"{ends[entry.shard] + BLOCK}, its index says {member.offset}; make the shard again"
                    )
                ends[entry.shard] = member.offset + _padded(member.size)
        for number, end in enumerate(ends):
            if any(self._map(number)[end:]):
                raise UserError(f"{self.shards[number]}: more members than its index names; make it again")
        return len(self)

    def _add_index(self, number: int, path: Path) -> None:
        index = _load_json(_index_path(path), f"shard {path.name} has no index")
        try:
            entries = [
                Entry(e["key"], e["facts"], number, {k: Member(*m) for k, m in e["members"].items()})
                for e in index["entries"]
            ]
            num_bytes, fingerprint = int(index["num_bytes"]), dict(index["fingerprint"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{_index_path(path)}: broken index ({error!r}); make the shards again"
            ) from error
        for entry in entries:
            for kind in entry.members:
                check_member_name(f"{entry.key}.{kind}", str(path))
        if number:
            check_fingerprints(self.fingerprint, fingerprint, str(path))
        self.fingerprint.update(fingerprint)
        _check_length(path, num_bytes, entries)
        self.entries += entries

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            path = self.shards[shard]
            with user_os_errors(path), path.open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]

    def _member(self, entry: Entry, kind: str, member: Member) -> bytes:
        path, name = self.shards[entry.shard], f"{entry.key}.{kind}"
        tar = self._map(entry.shard)
        try:
            header = tarfile.TarInfo.frombuf(tar[member.offset - BLOCK : member.offset], "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: member {name!r}: damaged tar header ({error}); make the shard again"
            ) from error
        if not header.isreg() or (header.name, header.size) != (name, member.size):
            raise UserError(
                f"{path}: member {name!r}: expected a file of {member.size} bytes, found {header.name!r} of "
                f"{header.size} bytes{'' if header.isreg() else ' that is no regular file'}"
            )
        content = tar[member.offset : member.offset + member.size]
        found = zlib.crc32(content)
        if len(content) != member.size or found != member.crc32:
            raise UserError(
                f"{path}: member {name!r}: expected {member.size} bytes with crc32 {member.crc32:08x}, found "
                f"{len(content)} with {found:08x}; make the shard again"
            )
        return content


def _padded(size: int) -> int:
    """Bytes that content of ``size`` takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def _index_path(tar_path: Path) -> Path:
    return tar_path.with_suffix(".index.json")


def _list_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.shards.json"


def _load_json(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: {missing} (no {path.name}); make the shards again")
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid json ({error}); make the shards again") from error
    if not isinstance(loaded, dict) or loaded.get("format") != FORMAT_VERSION:
        found = loaded.get("format") if isinstance(loaded, dict) else type(loaded).__name__
        raise UserError(f"{path}: format {found!r}, this version reads {FORMAT_VERSION}")
    return loaded


def _check_length(path: Path, num_bytes: int, entries: list[Entry]) -> None:
    if not path.is_file():
        raise UserError(f"{path}: shard is missing; its index names {len(entries)} samples")
    found = path.stat().st_size
    if found == num_bytes:
        return
    cut = [f"{e.key}.{k}" for e in entries for k, m in e.members.items() if m.offset + m.size > found]
    whole = sum(all(m.offset + m.size <= found for m in e.members.values()) for e in entries)
    first = f", the first member that is not whole is {cut[0]!r}" if cut else ""
    raise UserError(
        f"{path}: expected {num_bytes} bytes with {len(entries)} samples, found {found} bytes with {whole} "
        f"whole samples{first}; make the shard again"
    )
