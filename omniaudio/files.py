"""Files that are whole or not there: written beside their final name, then renamed over it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omniaudio.errors import UserError

PARTIAL_ENDING = ".partial"


def partial_path(path: Path) -> Path:
    """Where the content of ``path`` stands until it is complete; the same name in every attempt."""
    return path.with_name(f".{path.name}{PARTIAL_ENDING}")


@contextmanager
def user_os_errors(path: Path) -> Iterator[None]:
    """Turn the machine's refusals (no space, no right to write, ...) into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from error


def put_in_place(partial: Path, path: Path) -> None:
    """Rename the finished ``partial`` to ``path``; its bytes are on the disk first."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there are none."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise  # a copy would write into what the name stands for
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file, with its folder, so that a kill at any moment leaves the old one or the new one."""
    path = Path(path)
    partial = partial_path(path)
    with user_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        put_in_place(partial, path)
