"""Debian packages as a source of data: fetched with apt, unpacked with dpkg, nothing installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omniaudio.errors import UserError
from omniaudio.files import user_os_errors
from omniaudio.progress import Progress

INSTEAD = "give your own recordings instead: corpus=folder corpus.folder=DIR (run.sh: --audio_dir DIR)"


def fetch_packages(packages: Sequence[str], folder: Path) -> None:
    """Unpack packages into ``folder`` (its ``usr/...``), without root rights.

    A package that is there already (by the note that is left when it is whole) is not fetched again.

    Raises:
        UserError: no apt on this system, a package that apt does not know, no network, no space.
    """
    notes = folder / ".packages"
    missing = [name for name in packages if not (notes / name).exists()]
    if not missing:
        return
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not on this system, so {missing[0]} cannot be fetched; {INSTEAD}")
    with user_os_errors(folder):
        notes.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            _download(missing, Path(scratch).resolve())
            for name in missing:
                _unpack(name, Path(scratch).resolve(), folder)
                (notes / name).touch()


def _download(packages: Sequence[str], scratch: Path) -> None:
    as_root = os.geteuid() == 0
    # root's downloads would otherwise be done by a user who may not write to the scratch folder
    sandbox = ["-o", "APT::Sandbox::User=root"] if as_root else []
    command = ["apt-get", *sandbox, "download", *packages]
    sizes = _run([*command, "--print-uris"], scratch)
    done = _run(command, scratch, Progress("fetch", _megabytes(sizes.stdout), unit=" MB"))
    if done.returncode != 0 and as_root:  # its lists may be old: names and addresses of packages change
        _run(["apt-get", *sandbox, "update"], scratch)
        sizes = _run([*command, "--print-uris"], scratch)
        done = _run(command, scratch, Progress("fetch", _megabytes(sizes.stdout), unit=" MB"))
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        reason = lines[0].removeprefix("E:").strip() if lines else f"exit code {done.returncode}"
        retry = "" if as_root else " (an administrator's `apt-get update` may help)"
        raise UserError(f"apt-get download failed: {reason}{retry}; or {INSTEAD}")


def _unpack(name: str, scratch: Path, folder: Path) -> None:
    archives = sorted(scratch.glob(f"{name}_*.deb"))
    if len(archives) != 1:
        raise UserError(f"apt-get left {len(archives)} files for package {name}, expected 1; {INSTEAD}")
    done = _run(["dpkg", "-x", str(archives[0]), str(folder.resolve())], scratch)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"package {name} cannot be unpacked: {reason}")


def _megabytes(uris: str) -> int | None:
    """Sum of the sizes in ``'address' file size checksum`` lines."""
    sizes = [
        int(words[2]) for line in uris.splitlines() if len(words := line.split()) > 2 and words[2].isdigit()
    ]
    return sum(sizes) // 10**6 or None


def _run(command: list[str], cwd: Path, progress: Progress | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end; ``progress`` shows the megabytes in ``cwd``."""
    environment = {**os.environ, "LC_ALL": "C"}
    with (
        subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        ThreadPoolExecutor(1) as reader,
    ):
        output = reader.submit(process.communicate)
        while progress is not None and not output.done():
            time.sleep(0.2)
            there = sum(_size(path) for path in cwd.rglob("*")) // 10**6
            progress.advance(steps=there - progress.done)
        stdout, stderr = output.result()
    if progress is not None:
        progress.close()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # apt renames what is whole
        return 0
