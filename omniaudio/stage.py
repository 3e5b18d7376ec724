"""One stage of a recipe: its folder, its inputs, and the stamp that says it is done.

A stage is done when its folder holds a stamp whose key is the hash of its config (without paths and
logging) and of its inputs. The same command again skips it. When config or inputs have changed, what the
folder held moves to ``<folder>.old1`` (2, 3, ...) and the stage begins anew; when they have not, it goes on
where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from omniaudio.errors import UserError
from omniaudio.files import user_os_errors, write_whole
from omniaudio.fingerprint import digest
from omniaudio.secrets import redacted
from omniaudio.training.artifacts import plain

STAMP, RUNNING = "stamp.json", "running.json"
NOT_IN_KEY = {
    "exp_dir", "data_dir", "tag", "tracker", "num_workers", "num_threads", "checkpoint_every_steps", "health",
    "attention", "recompute",
}  # fmt: skip
PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "hydra-core", "webdataset", "numpy")


class Stage:
    """What a running stage knows of itself.

    Attributes:
        folder: where it writes.
        done: an earlier run finished it; there is nothing to do.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        inputs: Sequence[str | Path],
        decisive: Mapping[str, Any] | None = None,
        keep_old: bool = True,
    ) -> None:
        self.folder, self.keep_old = folder, keep_old
        self.config = plain(config)
        self.inputs = {str(path): input_key(Path(path)) for path in inputs}
        decisive = plain(config if decisive is None else decisive)
        decisive = without_places(without(decisive, NOT_IN_KEY), self.config)
        self.key = digest([decisive, sorted(self.inputs.values())])
        self.done = _read(folder / STAMP).get("key") == self.key
        self._before = float(_read(folder / RUNNING).get("seconds", 0.0))
        self._began = time.monotonic()
        self._metrics: list[str] = []

    def metrics(self, values: Mapping[str, Any]) -> None:
        """One more line of ``metrics.jsonl``; those of an earlier start, which was stopped, are replaced."""
        self._metrics.append(json.dumps(values) + "\n")
        write_whole(self.folder / "metrics.jsonl", "".join(self._metrics))

    def log(self, message: str) -> None:
        """One line on screen and in ``log.txt``."""
        print(message, flush=True)
        self.note(message)

    def note(self, message: str) -> None:
        """One line in ``log.txt`` only."""
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} {message}\n")

    @property
    def seconds(self) -> float:
        """Time spent so far, over all starts."""
        return self._before + time.monotonic() - self._began

    def begin(self) -> None:
        """Make the folder; set aside what another config or other inputs left in it."""
        for record in (_read(self.folder / STAMP), _read(self.folder / RUNNING)):
            if record and record["key"] != self.key:
                self._set_aside(record)
                break
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(redacted(self.config), sort_keys=False, allow_unicode=True)
        )
        self.save_progress()

    def save_progress(self) -> None:
        """Remember the key and the time spent, for a later start."""
        write_whole(self.folder / RUNNING, json.dumps(self._record(), indent=1))

    def finish(self) -> None:
        write_whole(self.folder / STAMP, json.dumps({**self._record(), **environment()}, indent=1))
        (self.folder / RUNNING).unlink(missing_ok=True)

    def _record(self) -> dict[str, Any]:
        return {"key": self.key, "inputs": self.inputs, "seconds": round(self.seconds, 1)}

    def _set_aside(self, record: Mapping[str, Any]) -> None:
        changed = [p for p, key in self.inputs.items() if key not in record["inputs"].values()] or [
            "the config"
        ]
        names = (f"{self.folder.name}.old{number}" for number in range(1, 1000))
        old = next(path for name in names if not (path := self.folder.with_name(name)).exists())
        self._before = 0.0
        if not self.keep_old:
            shutil.rmtree(self.folder)
            return
        self.folder.rename(old)
        print(
            f"{self.folder}: {', '.join(changed)} changed since it was made; kept as {old.name}, made anew",
            flush=True,
        )


@contextmanager
def stage(
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    inputs: Sequence[str | Path] = (),
    decisive: Mapping[str, Any] | None = None,
    keep_old: bool = True,
) -> Iterator[Stage]:
    """Run a stage: ``with stage(...) as run: if not run.done: ...``; the stamp is written on success.

    Args:
        decisive: the part of the config that makes the result; by default all of it.
        keep_old: False removes what another config left instead of keeping it as ``<folder>.old1``.

    Raises:
        UserError: an input is missing (the message names the stage that makes it), or no write permission.
    """
    with user_os_errors(Path(folder)):
        run = Stage(Path(folder), config, inputs, decisive, keep_old)
    if run.done:
        print(f"{folder}: done before ({_read(Path(folder) / STAMP).get('date', '?')}), skipped", flush=True)
        yield run
        return
    if is_main_process():
        with user_os_errors(Path(folder)):
            run.begin()
    try:
        yield run
    except BaseException as error:
        if is_main_process():
            run.save_progress()
            run.note(f"stopped after {run.seconds:.0f} s: {type(error).__name__}: {error}")
        raise
    if is_main_process():
        run.finish()


def is_main_process() -> bool:
    """True in the process that may write shared files (ranks are named by their launcher)."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"


def input_key(path: Path) -> str:
    """Hash of an input: of a stage its stamp's key, of a folder of shards its listings, of a file its bytes."""
    if (path / STAMP).is_file():
        return str(_read(path / STAMP)["key"])
    if path.is_dir() and (listings := sorted(path.glob("*.shards.json"))):
        return digest([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in listings])
    if path.is_file():
        with path.open("rb") as file:  # it may be larger than the memory
            content = hashlib.sha256()
            while part := file.read(1 << 20):
                content.update(part)
        return content.hexdigest()[:16]
    state = "is not finished" if path.is_dir() else "is missing"
    raise UserError(f"{path} {state}; run the stage that makes it first")


def without(config: Any, names: set[str]) -> Any:
    """The config without some keys, at any depth."""
    if isinstance(config, Mapping):
        return {k: without(v, names) for k, v in config.items() if k not in names}
    return [without(v, names) for v in config] if isinstance(config, list) else config


def without_places(value: Any, config: Mapping[str, Any]) -> Any:
    """Strings below exp_dir and data_dir made relative to them: a moved folder is still done."""
    if isinstance(value, Mapping):
        return {k: without_places(v, config) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(v, config) for v in value]
    for name in ("exp_dir", "data_dir"):
        if isinstance(value, str) and config.get(name) and value.startswith(f"{config[name]}/"):
            return f"${{{name}}}/{value[len(str(config[name])) + 1 :]}"
    return value


def environment() -> dict[str, Any]:
    """Where and with what a result was made."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return head.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}
