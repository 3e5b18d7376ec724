"""Texts of a file with one document a line, read where they are asked for: a file of any size needs no memory.

Where documents lie in ``train.txt`` is found once, line by line, and kept in ``train.txt.index/`` beside it (where
nobody may write there, in the user's cache), in mapped files of which all processes share the pages. An index is whole
or not there; processes that start together wait for the one that makes it. It is one of the file's size and time: a
changed file gets a new one.

Finding the texts takes 2 us of a processor and 12 bytes of disk a line; encoding them, for trainings on text alone,
40 us a short line and 4 bytes an id.
"""

from __future__ import annotations

import os
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.errors import UserError
from omniaudio.files import user_os_errors
from omniaudio.fingerprint import digest
from omniaudio.frontend.text import TextTokenizer
from omniaudio.progress import track

FORMAT_VERSION = 1


class _Indexed:
    """A file of texts with its index; nothing is read before it is asked for.

    Args:
        path: UTF-8, one document a line; empty lines are none.
        key: what the index follows from beside the file.
    """

    dtypes: dict[str, Any] = {}  # arrays of the index

    def __init__(self, path: str | Path, key: Any) -> None:
        self.path, self._key = Path(path), key
        self._arrays: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}  # mapped again in a worker process

    def array(self, name: str) -> np.ndarray:
        """An array of the index, or ``bytes``, the file's; all are mapped at one time."""
        if not self._arrays:
            home = self._made()
            self._arrays = {key: _mapped(home / f"{key}.bin", dtype) for key, dtype in self.dtypes.items()}
            self._arrays["bytes"] = _mapped(self.path, np.uint8)
        return self._arrays[name]

    def write(self, folder: Path) -> None:
        """Write the arrays of the index, with memory for one document."""
        raise NotImplementedError

    def _made(self) -> Path:
        """The folder of the index; made unless it is there."""
        try:
            state = self.path.stat()
        except OSError as error:
            raise UserError(f"{self.path}: cannot read the texts ({error.strerror})") from error
        of_file = digest([FORMAT_VERSION, state.st_size, state.st_mtime_ns])
        name = f"{of_file}-{digest([type(self).__name__, self._key])}"
        home = self.path.with_name(f"{self.path.name}.index")
        if not (home / name).is_dir() and not os.access(home if home.is_dir() else home.parent, os.W_OK):
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            home = cache / "omniaudio" / digest(str(self.path.resolve()))
        if not (home / name).is_dir():
            with user_os_errors(home):
                home.mkdir(parents=True, exist_ok=True)
                with _alone(home) as locked:
                    if not (home / name).is_dir():
                        _remove_old(home, of_file if locked else "")
                        self._make(home / name)
        return home / name

    def _make(self, folder: Path) -> None:
        partial = folder.with_name(f".{uuid.uuid4().hex}")
        partial.mkdir()
        try:
            self.write(partial)
            partial.rename(folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not (isinstance(error, OSError) and folder.is_dir()):  # another process was first
                raise


class MappedTexts(_Indexed):
    """Documents of a file as texts of at most so many bytes; longer ones are cut (``cut_texts``)."""

    dtypes = {"places": np.dtype([("begin", "<u8"), ("size", "<u4")])}

    def __init__(self, path: str | Path, most_bytes: int) -> None:
        super().__init__(path, most_bytes)
        self.most_bytes = most_bytes

    def __len__(self) -> int:
        return len(self.array("places"))

    def __getitem__(self, item: int) -> str:
        begin, size = self.array("places")[item].tolist()
        return self.array("bytes")[begin : begin + size].tobytes().decode("utf-8")

    def write(self, folder: Path) -> None:
        with _whole(folder / "places.bin") as places:
            for begin, document in track(_documents(self.path), f"{self.path}: texts found"):
                content, place = document.encode(), 0
                for piece in cut_texts([document], self.most_bytes):
                    piece_bytes = piece.encode()
                    place = content.index(piece_bytes, place)  # behind the spaces where it was cut
                    places.write(struct.pack("<QI", begin + place, len(piece_bytes)))
                    place += len(piece_bytes)


class MappedIds(_Indexed):
    """Documents of a file as ids, encoded once, in pieces of at most so many."""

    dtypes = {"ids": "<u4", "ends": "<u8"}

    def __init__(self, path: str | Path, tokenizer: TextTokenizer, most_ids: int) -> None:
        super().__init__(path, [tokenizer.digest, most_ids])
        self.tokenizer, self.most_ids = tokenizer, most_ids

    def __len__(self) -> int:
        return len(self.array("ends"))

    def __getitem__(self, item: int) -> list[int]:
        ends = self.array("ends")
        begin = int(ends[item - 1]) if item else 0
        ids: list[int] = self.array("ids")[begin : int(ends[item])].tolist()
        return ids

    def write(self, folder: Path) -> None:
        with _whole(folder / "ids.bin") as file, _whole(folder / "ends.bin") as ends:
            before = 0
            for _, document in track(_documents(self.path), f"{self.path}: texts encoded"):
                ids = self.tokenizer.encode(document)
                file.write(np.asarray(ids, self.dtypes["ids"]).tobytes())
                for end in (*range(self.most_ids, len(ids), self.most_ids), *[len(ids)] * bool(ids)):
                    ends.write(struct.pack("<Q", before + end))
                before += len(ids)


def cut_texts(texts: Iterable[str], most_bytes: int) -> Iterator[str]:
    """Texts of at most so many bytes, hence of no more pieces: longer ones are cut at spaces, if they have any."""
    for text in texts:
        while len(text) > most_bytes or len(text.encode()) > most_bytes:
            fits = text[:most_bytes].encode()[:most_bytes].decode("utf-8", "ignore")
            end = (fits + text[len(fits)]).rfind(" ")
            end = end if end > 0 else max(1, len(fits))
            yield text[:end]
            text = text[end:].lstrip(" ")
        if text:
            yield text


def _documents(path: Path) -> Iterator[tuple[int, str]]:
    """Documents of a file and the bytes before each."""
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            begin = place
            for part in line.split(b"\r"):  # it ends a line too
                try:
                    text = part.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}: cannot read the texts (line {number} is not UTF-8: {error})"
                    ) from error
                if document := text.strip():
                    blank = text[: len(text) - len(text.lstrip())]
                    yield begin + len(blank.encode()), document
                begin += len(part) + 1
            place += len(line)


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    """A file as an array, mapped for reading."""
    with user_os_errors(path):
        if not path.stat().st_size:  # there is no map of nothing
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, mode="r").view(np.ndarray)


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file to write whose bytes are on the disk afterwards."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _alone(home: Path) -> Iterator[bool]:
    """One process at a time, where the file system has locks; whether it has. (Without, the first to end wins.)"""
    import fcntl

    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked


def _remove_old(home: Path, kept: str) -> None:
    """Indexes of earlier states of the file, and what a killed process left; none if ``kept`` is empty."""
    for folder in home.iterdir():
        if kept and folder.is_dir() and not folder.name.startswith(kept):
            shutil.rmtree(folder, ignore_errors=True)
