"""Real DeepSpeed: bad steps, frozen weights, accumulation, offload, and other processes on the way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ZERO = ("zero1", "zero2", "zero3")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What zero_run leaves."""
    folder = tmp_path_factory.mktemp("zero")
    words = [sys.executable, "-m", "tests.tasks.zero_run", str(folder)]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


def record(folder: Path, start: str, name: str, rank: int = 0) -> Any:
    return json.loads((folder / f"{start}-rank{rank}.json").read_text())[name]


def close(ours: dict[str, Any], theirs: dict[str, Any], *names: str, steps: slice = slice(None)) -> None:
    """The same numbers after the same steps, within what sums in another order may differ."""
    for name in names:
        assert len(theirs[name][steps]) == len(ours[name]) > 0
        for one, other in zip(ours[name], theirs[name][steps], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6), name


def same_weights(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, value in ours["weights"].items():
        for one, other in zip(value, theirs["weights"][name], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("strategy", ZERO)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(folder: Path, strategy: str) -> None:
    records = [record(folder, "whole", strategy, rank)["bad"] for rank in range(2)]
    for found in records:
        assert found["finite"] and found["bad"] == 1
        assert [math.isfinite(norm) for norm in found["norms"]] == [True] * 3 + [False] + [True] * 2
        assert [line.split(";")[0] for line in found["told"]] == ["step 4: non-finite gradient, step skipped"]
    assert records[0]["norms"] == records[1]["norms"]
    assert "samples: point-3" in records[1]["told"][0], "the rank that had it names it"


@pytest.mark.parametrize("strategy", [*ZERO, "ddp"])
def test_what_was_frozen_and_moved_on_one_rank_alone_is_named(folder: Path, strategy: str) -> None:
    proofs = [
        json.loads((folder / f"{name}-freeze.json").read_text())["frozen"] for name in (strategy, "ddp")
    ]
    assert proofs[0].keys() == {"frozen.0.weight", "frozen.0.bias"}
    before = [{name: hashes[0] for name, hashes in proof.items()} for proof in proofs]
    assert before[0] == before[1], "the hash does not depend on how the weights are spread"
    moved = record(folder, "whole", strategy)["bad"]["moved"]
    assert "frozen tensors moved during training: frozen.0.weight (1 in all)" in moved


@pytest.mark.parametrize("strategy", [name + more for more in ("", "-offload") for name in ZERO])
def test_accumulated_and_clipped_steps_are_those_of_one_process(folder: Path, strategy: str) -> None:
    """Norms of all and of each part before clipping, learning rates, weights; some steps are clipped, not all."""
    ours, single = record(folder, "whole", strategy), record(folder, "fewer", "single")
    close(ours, single, "norms", "parts", "rates")
    same_weights(ours, single)
    assert single["parts"][0].keys() == {"grad_norm/part/net.0", "grad_norm/part/net.2"}
    assert min(single["norms"]) < 1.0 < max(single["norms"]), (
        "those that are divided twice are clipped differently"
    )


@pytest.mark.parametrize("strategy", ZERO)
def test_other_processes_go_on_to_the_weights_of_an_unbroken_run(folder: Path, strategy: str) -> None:
    """Two processes until step 2, one until step 4, two until step 6: there ZeRO 1 and 2 change places."""
    single = record(folder, "fewer", "single")
    close(record(folder, "fewer", strategy), single, "norms", "parts", "rates", steps=slice(2, 5))
    last = record(folder, "more", strategy)
    close(last, single, "norms", "parts", "rates", steps=slice(4, 6))
    same_weights(last, single)
    assert record(folder, "more", strategy, rank=1)["weights"] == last["weights"]
