"""Check this machine before a long run: one line a check, OK or what to do.

Looks at Python, the packages, memory, disk space and write permission where data and results go, apt (which
fetches the default corpus), devices, a free port for several processes, and the audio libraries. Exit code 2
if something that every run needs is wrong; what only some runs need is a remark.

    omniaudio doctor
    omniaudio doctor data_dir=/big/data exp_dir=/big/exp min_free_gb=50
    omniaudio doctor shards=data/asterisk/shards       # is every byte as it was written?
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from omniaudio.errors import UserError

PACKAGES = {
    "torch": "torch", "lightning": "lightning", "hydra-core": "hydra", "omegaconf": "omegaconf",
    "transformers": "transformers", "tokenizers": "tokenizers", "safetensors": "safetensors",
    "webdataset": "webdataset", "einops": "einops", "av": "av", "soundfile": "soundfile", "soxr": "soxr",
    "jiwer": "jiwer", "matplotlib": "matplotlib", "rich": "rich", "tensorboard": "tensorboard",
    "vector-quantize-pytorch": "vector_quantize_pytorch",
}  # fmt: skip
"""Distribution -> module; imported, because a package may be installed and still not load."""
BAD_VERSIONS = {"lightning": ("2.6.2", "2.6.3")}
OPTIONAL = {"deepspeed": "strategy=zero1, zero2, zero3", "wandb": "tracker=wandb, wandb_offline"}
MIN_PYTHON = (3, 10)


@dataclass(frozen=True)
class Finding:
    """One line: ``level`` is "OK", "note" (some runs need it) or "WRONG" (every run needs it)."""

    level: str
    what: str
    told: str


def main(config: dict[str, Any]) -> None:
    """Print all findings.

    Raises:
        UserError: something that every run needs is wrong.
    """
    findings = []
    for check in CHECKS:
        for finding in check(config):
            print(f"{finding.level:<5}  {finding.what}: {finding.told}", flush=True)
            findings.append(finding)
    wrong = [finding.what for finding in findings if finding.level == "WRONG"]
    if wrong:
        raise UserError(
            f"doctor: {len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}; see the lines above"
        )
    print(f"all {len(findings)} checks passed", flush=True)


def check_python(config: dict[str, Any]) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= MIN_PYTHON
    wanted = ".".join(map(str, MIN_PYTHON))
    yield Finding(
        "OK" if good else "WRONG", "python", version if good else f"{version}; {wanted} or newer is needed"
    )


def check_packages(config: dict[str, Any]) -> Iterator[Finding]:
    mend = "run: bash tools/setup_env.sh"
    problems, num_good = [], 0
    for name, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            version = metadata.version(name)
        except (ImportError, OSError, metadata.PackageNotFoundError) as error:
            problems.append(f"{name} does not load ({str(error).splitlines()[0]})")
            continue
        if version in BAD_VERSIONS.get(name, ()):
            problems.append(f"{name} {version} must not be used")
            continue
        num_good += 1
    told = (
        "; ".join(problems) + f"; {mend}"
        if problems
        else f"{num_good} load, torch {metadata.version('torch')}"
    )
    yield Finding("WRONG" if problems else "OK", "packages", told)
    for name, use in OPTIONAL.items():
        try:
            yield Finding("OK", name, f"{metadata.version(name)}, for {use}")
        except metadata.PackageNotFoundError:
            yield Finding("note", name, f"not installed; only {use} needs it: pip install {name}")


def memory_gb() -> float | None:
    """Memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return None


def check_memory(config: dict[str, Any]) -> Iterator[Finding]:
    total_gb = memory_gb()
    if total_gb is None:
        yield Finding("note", "memory", "this system does not say how much it has")
        return
    needed = config["min_memory_gb"]
    told = f"{total_gb:.1f} GB, {os.cpu_count()} cores"
    good = total_gb >= needed
    yield Finding(
        "OK" if good else "note",
        "memory",
        told if good else f"{told}; the mini recipe was sized for {needed} GB",
    )


def check_disk(config: dict[str, Any]) -> Iterator[Finding]:
    for key in ("data_dir", "exp_dir"):
        folder = _nearest(Path(config[key]))
        problem = _write_problem(folder)
        if problem:
            yield Finding("WRONG", key, f"{config[key]}: {problem}; choose another {key}=")
            continue
        free_gb = shutil.disk_usage(folder).free / 1e9
        enough = free_gb >= config["min_free_gb"]
        told = f"{config[key]}: writable, {free_gb:.1f} GB free"
        need = f"; {config['min_free_gb']} GB are needed: free some, or choose another {key}="
        yield Finding("OK" if enough else "WRONG", key, told if enough else told + need)


def check_apt(config: dict[str, Any]) -> Iterator[Finding]:
    tools = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if not tools:
        yield Finding("OK", "apt", "can fetch the default corpus")
        return
    told = f"{' and '.join(tools)} not found; use your own recordings: run.sh --audio_dir FOLDER (wav + transcripts)"
    yield Finding("note", "apt", told)


def check_device(config: dict[str, Any]) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("OK", "device", f"{len(names)} GPU: {', '.join(names)}; use trainer=gpu")
    elif config["device"] != "cpu":
        yield Finding(
            "WRONG",
            "device",
            f"device={config['device']} but torch {torch.__version__} sees no GPU; use device=cpu",
        )
    else:
        yield Finding("OK", "device", f"cpu with {torch.get_num_threads()} threads; no GPU seen")


def check_port(config: dict[str, Any]) -> Iterator[Finding]:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
    except OSError as error:
        yield Finding(
            "note", "port", f"no local port can be opened ({error.strerror}); devices=2 and more need one"
        )
        return
    yield Finding("OK", "port", f"local processes can meet (tried {port})")


def check_audio(config: dict[str, Any]) -> Iterator[Finding]:
    import numpy as np

    from omniaudio.frontend.audio import encode_audio, read_audio, resample

    wav_N = np.sin(np.arange(1600) / 10).astype(np.float32) / 2
    try:
        back_N = resample(read_audio(encode_audio(wav_N, 16000), sample_rate_hz=16000), 16000, 24000)
    except (UserError, OSError, RuntimeError) as error:
        yield Finding(
            "WRONG", "audio", f"flac cannot be written and read ({error}); run: bash tools/setup_env.sh"
        )
        return
    yield Finding("OK", "audio", f"flac and resampling work ({len(wav_N)} -> {len(back_N)} samples)")


def check_shards(config: dict[str, Any]) -> Iterator[Finding]:
    from omniaudio.data.index import listed_splits
    from omniaudio.data.shards import ShardReader

    if config["shards"] is None:
        return
    folder = Path(config["shards"])
    splits = listed_splits(folder)
    if not splits:
        yield Finding("WRONG", "shards", f"{folder}: no splits here; name a folder like data/asterisk/shards")
    for split in splits:
        try:
            yield Finding(
                "OK", "shards", f"{folder}, {split}: {ShardReader(folder, split).verify():,} samples, whole"
            )
        except UserError as error:
            yield Finding("WRONG", "shards", str(error))


CHECKS: tuple[Callable[[dict[str, Any]], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_memory,
    check_disk,
    check_apt,
    check_device,
    check_port,
    check_audio,
    check_shards,
)


def _nearest(path: Path) -> Path:
    """The path itself, or the first of its parents that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _write_problem(folder: Path) -> str | None:
    """Why nothing can be written there, or None; a file is really written and removed."""
    if not folder.is_dir():
        return f"{folder} is a file, not a folder"
    probe = folder / f".omniaudio_doctor_{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        return f"cannot write ({error.strerror})"
    finally:
        if probe.exists():
            probe.unlink()
    return None
