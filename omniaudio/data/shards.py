"""Shards: tar files that plain webdataset reads, with an index for planning, random access and checks.

In a folder, for the split ``train``::

    train-000000.tar           samples one after the other, the members of a sample adjacent and sorted
    train-000000.index.jsonl   where each member lies, its size and crc32; the sample's facts (omniaudio.data.index)
    train.shards.json          the list of all shards; written last

The same samples give the same bytes. Members are audio, json, text and arrays; nothing that runs code on
loading (pickle) is written or read.
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from isal.isal_zlib import crc32

from omniaudio.data.index import (
    Entry,
    Listing,
    Member,
    index_path,
    read_index,
    remove_listing,
    write_index,
    write_listing,
)
from omniaudio.errors import DamagedSampleError, UserError
from omniaudio.files import PARTIAL_ENDING, partial_path, put_in_place, user_os_errors
from omniaudio.fingerprint import Fingerprint

MEMBER_TYPES = ("flac", "wav", "ogg", "mp3", "json", "npy", "txt")
"""What may end a member's name: data only."""

KNOWN_TYPES = {*MEMBER_TYPES, "codes.npy"}
KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_is_key = KEY.fullmatch
MAX_NAME_BYTES = 100  # of a plain tar header
BLOCK = tarfile.BLOCKSIZE


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


NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<|][uif][1248])', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
"""The head of the plain arrays that ``dump_npy`` writes."""


@functools.lru_cache(maxsize=4096)
def _npy_head(start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int, int] | None:
    """Type, shape, offset and end of a plain array by its first bytes; numpy's own reader is ten times slower."""
    head = NPY.match(start)
    if head is None or int.from_bytes(head[1], "little") != head.end() - 10:
        return None
    try:
        shape = tuple(int(size) for size in head[3].split(b",") if size.strip())
        dtype = np.dtype(head[2].decode())
        return dtype, shape, head.end(), head.end() + math.prod(shape) * dtype.itemsize
    except (TypeError, ValueError):  # numpy's own reader says what is wrong with it
        return None


def load_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file; one that holds objects (pickles) is refused."""
    head = _npy_head(content[:128])
    if head is not None:
        dtype, shape, offset, end = head
        if len(content) == end:
            return np.ndarray(shape, dtype, bytearray(content), offset)
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
            remove_listing(self.folder, self.split)
            numbered = re.compile(
                rf"\.?{re.escape(self.split)}-\d{{6}}\.(tar|index\.jsonl?)({PARTIAL_ENDING})?"
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
        return [tar.offset - _padded(len(content)), len(content), crc32(content)]

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
        write_index(path, num_bytes, self.fingerprint, self._entries)
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
            write_listing(self.folder, self.split, self._shards)


class ShardReader:
    """The samples of one split, in the order of writing, by position.

    Opening reads the listing and checks that every tar is there in full length; ``entries`` and ``column`` read
    of the indexes what is asked for; ``read`` checks the header and the crc32 of what it returns; ``verify`` reads
    everything.

    Raises:
        UserError: naming shard and member, what was expected and what was found.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.listing = Listing(self.folder, split)
        self.shards: list[Path] = [self.folder / f"{shard.name}.tar" for shard in self.listing.shards]
        self._paths = [str(path) for path in self.shards]
        self.fingerprint: Fingerprint = self.listing.fingerprint
        for path, shard in zip(self.shards, self.listing.shards, strict=True):
            if not path.is_file():
                raise UserError(f"{path}: shard is missing; its index names {shard.num_entries} samples")
            if path.stat().st_size != shard.num_bytes:
                raise _cut_tar(path, shard.num_bytes)
        self.entries: Sequence[Entry] = _Entries(self.listing)

    def __len__(self) -> int:
        return self.listing.num_entries

    def column(self, name: str) -> np.ndarray:
        """A fact of all samples in order, mapped: see ``Listing.column``."""
        return self.listing.column(name)

    def read(self, position: int) -> dict[str, bytes]:
        """The members of a sample by type, checked against size and crc32: a DamagedSampleError if they differ."""
        return {kind: self.member(position, kind) for kind in self.entries[position].members}

    def member(self, position: int, kind: str) -> bytes:
        """One member of a sample, checked like all."""
        entry = self.entries[position]
        member = entry.members.get(kind)
        if member is None:
            raise UserError(
                f"{self.shards[entry.shard]}: sample {entry.key!r} has no {kind!r}, only {', '.join(entry.members)}"
            )
        # What stands at the place that the index names; headers and links are never followed.
        path, offset, size = self._paths[entry.shard], member.offset, member.size
        content = self.listing.maps[path][offset : offset + size]
        if crc32(content) != member.crc32 or len(content) != size:
            raise DamagedSampleError(
                f"{path}: member '{entry.key}.{kind}': expected {size} bytes with crc32 {member.crc32:08x}, "
                f"found {len(content)} with {crc32(content):08x}; make the shard again"
            )
        return content

    def verify(self) -> int:
        """Read all: each member and its header is as its index says, and there are no others."""
        ends = [0] * len(self.shards)
        self.listing.verify()
        for position, entry in enumerate(self.entries):
            for kind, member in entry.members.items():
                self._check_header(entry, kind, member)
                self.member(position, kind)
                if member.offset - BLOCK != ends[entry.shard]:
                    raise UserError(
                        f"{self.shards[entry.shard]}: member '{entry.key}.{kind}': expected at byte "
                        f"{ends[entry.shard] + BLOCK}, its index says {member.offset}; make the shard again"
                    )
                ends[entry.shard] = member.offset + _padded(member.size)
        for number, end in enumerate(ends):
            if any(self.listing.maps[str(self.shards[number])][end:]):
                raise UserError(f"{self.shards[number]}: more members than its index names; make it again")
        return len(self)

    def _check_header(self, entry: Entry, kind: str, member: Member) -> None:
        path, name = self.shards[entry.shard], f"{entry.key}.{kind}"
        block = self.listing.maps[str(path)][member.offset - BLOCK : member.offset]
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: member {name!r}: damaged tar header ({error}); make the shard again"
            ) from error
        if not header.isreg() or (header.name, header.size) != (name, member.size):
            raise UserError(
                f"{path}: member {name!r}: expected a file of {member.size} bytes, found {header.name!r} of "
                f"{header.size} bytes{'' if header.isreg() else ' that is no regular file'}"
            )


class _Entries(Sequence[Entry]):
    """The samples of a listing, each read when it is asked for."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._last: tuple[int, Entry] | None = None  # a sample's facts and its members are asked for in turn

    def __len__(self) -> int:
        return self._listing.num_entries

    @overload
    def __getitem__(self, position: int) -> Entry: ...
    @overload
    def __getitem__(self, position: slice) -> list[Entry]: ...
    def __getitem__(self, position: int | slice) -> Entry | list[Entry]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        last = self._last
        if last is not None and last[0] == position:
            return last[1]
        listing = self._listing
        if not 0 <= position < listing.num_entries:
            if not -listing.num_entries <= position < 0:
                raise IndexError(position)
            position += listing.num_entries
        entry = listing.entry(position)
        if not (_is_key(entry.key) and KNOWN_TYPES.issuperset(entry.members)):
            for kind in entry.members:
                shard = self._listing.shards[entry.shard].name
                check_member_name(f"{entry.key}.{kind}", f"{self._listing.folder}/{shard}.tar")
        self._last = position, entry
        return entry


def _padded(size: int) -> int:
    """Bytes that content of ``size`` takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def _cut_tar(path: Path, num_bytes: int) -> UserError:
    """What is known of a tar that is not as long as it should be."""
    _, _, lines = read_index(index_path(path))
    ends = [(f"{e.key}.{kind}", m.offset + m.size) for e in lines for kind, m in e.members.items()]
    found = path.stat().st_size
    cut = [name for name, end in ends if end > found]
    whole = sum(all(m.offset + m.size <= found for m in e.members.values()) for e in lines)
    first = f", the first member that is not whole is {cut[0]!r}" if cut else ""
    return UserError(
        f"{path}: expected {num_bytes} bytes with {len(lines)} samples, found {found} bytes with {whole} "
        f"whole samples{first}; make the shard again"
    )
