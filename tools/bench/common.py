"""Ours and a named peer in turn, in one process: the ratio of medians is what counts.

Absolute times depend on the machine and its hour. Each row runs A B A B ... after a warm-up of both, takes process
CPU time and wall time, checks that both computed the same thing, and prints one line; it ends with exit code 1 if the
results differ, never because it is slow.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

PAIRS = 5
THREADS = 1


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    same: Callable[[Any, Any], str],
    peer_name: str,
    target: float,
    limit: str = "",
    pairs: int = PAIRS,
) -> None:
    """Time both and print ``name  ours  peer  ratio  target  limit``.

    Args:
        ours, peer: one run; both return their result.
        same: results to '' or to what differs.
        target: ratio that is promised (peer's time over ours).
        limit: what bounds the ratio, in words.
        pairs: runs of each; the line says it where they are not PAIRS.
    """
    torch.set_num_threads(THREADS)
    wrong = same(ours(), peer())
    if wrong:
        print(f"{name}: the results differ: {wrong}")
        sys.exit(1)
    cpu: dict[str, list[float]] = {"ours": [], "peer": []}
    wall: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(pairs):
        for side, run in (("ours", ours), ("peer", peer)):
            began, began_cpu = time.perf_counter(), time.process_time()
            run()
            cpu[side].append(time.process_time() - began_cpu)
            wall[side].append(time.perf_counter() - began)
    times = {side: statistics.median(values) for side, values in cpu.items()}
    ratio, ratio_wall = (statistics.median(t["peer"]) / statistics.median(t["ours"]) for t in (cpu, wall))
    name += "" if pairs == PAIRS else f" ({pairs} pairs)"
    print(
        f"| {name} | {times['ours']:.3f} s | {peer_name}: {times['peer']:.3f} s | {ratio:.2f} (wall {ratio_wall:.2f}) "
        f"| {target:.3g} | {limit} | {THREADS} of {os.cpu_count()} |",
        flush=True,
    )


def need(package: str) -> None:
    """End with one line if a peer is not installed."""
    try:
        __import__(package)
    except ModuleNotFoundError:
        sys.exit(f"{package} is not installed: bash tools/bench/all.sh installs it")


def close(ours: torch.Tensor, peer: torch.Tensor, tolerance: float) -> str:
    """'' if two tensors agree."""
    if ours.shape != peer.shape:
        return f"shapes {tuple(ours.shape)} and {tuple(peer.shape)}"
    worst = float((ours - peer).abs().max())
    return "" if worst <= tolerance else f"largest difference {worst:.2g}, allowed {tolerance:g}"


def speech_like(num_items: int, mean_sec: float, seed: int = 0, rate_hz: int = 16000) -> list[torch.Tensor]:
    """Noise with lengths between a quarter and twice the mean."""
    draws = torch.Generator().manual_seed(seed)
    seconds = mean_sec * (0.25 + 1.5 * torch.rand(num_items, generator=draws))
    return [torch.randn(int(s * rate_hz), generator=draws) * 0.1 for s in seconds]
