"""Archives from the web: fetched with resume, unpacked safely, and not fetched again once they are unpacked."""

from __future__ import annotations

import http.client
import lzma
import tarfile
import urllib.error
import urllib.request
import zlib
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from omniaudio.errors import UserError
from omniaudio.files import partial_path, put_in_place, user_os_errors, write_whole
from omniaudio.progress import Progress

BLOCK = 1 << 20
TIMEOUT_SEC = 60


def fetch_archive(url: str, folder: Path) -> None:
    """Unpack the tar at ``url`` into ``folder``; a note says that it is whole, so a second call does nothing.

    A download that was broken off goes on where it stopped. The archive is removed after unpacking.

    Raises:
        UserError: no network, another answer than the file, an archive that is cut or would write outside.
    """
    name = PurePosixPath(urlparse(url).path).name
    note = folder / ".archives" / name
    if note.exists():
        return
    archive = folder / name
    if not archive.is_file():
        download(url, archive)
    unpack(archive, folder)
    write_whole(note, f"{url}\n")
    archive.unlink()


def download(url: str, path: Path) -> None:
    """Fetch a file; the part that an earlier call left is not fetched again."""
    partial = partial_path(path)
    with user_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={known}-"} if known else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as answer:
            goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
            known = known if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = known + int(length) if length is not None else None
            megabytes = None if total is None else -(-total // BLOCK)
            progress = Progress(f"Fetching {path.name}", megabytes, start=known // BLOCK, unit=" MB")
            while block := answer.read(BLOCK):
                with user_os_errors(path), partial.open("ab" if goes_on else "wb") as file:
                    file.write(block)
                goes_on = True
                progress.advance()
            progress.close()
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # it was whole already
            total = known
        else:
            raise UserError(f"{url}: {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: {reason}; run the same command again, or give corpus.root=DIR") from error
    found = partial.stat().st_size
    if total is not None and found != total:
        raise UserError(f"{url}: {found} of {total} bytes came; the same command goes on from there")
    put_in_place(partial, path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar, compressed or not; members that lead out of ``folder``, and devices, are refused."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python cannot unpack archives safely; use 3.10.12, 3.11.4 or a later one")
    try:
        with user_os_errors(folder), tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused: {error}") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({error}); remove it and run the same command again"
        ) from error


def need_root(root: Path | None, name: str, how: str) -> Path:
    """The folder of a corpus that cannot be fetched without its owner's consent."""
    if root is None:
        raise UserError(f"{name} is given out to those who ask for it: {how}; then give corpus.root=DIR")
    if not root.is_dir():
        raise UserError(f"corpus.root {root}: no such folder")
    return root
