"""Real DeepSpeed: bad steps, frozen weights, accumulation, offload, bfloat16, and other processes on the way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omniaudio.training.freeze import frozen_digests
from tests.tasks.zero_run import even_task

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


ROUNDED = [name + more for more in ("-bf16", "-offload-bf16") for name in ZERO]


def masters(folder: Path, name: str, number: int) -> dict[str, Any]:
    """The float32 weights of a checkpoint, as DeepSpeed's own tool finds them."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found = get_fp32_state_dict_from_zero_checkpoint(
        str(folder / name / f"step-{number:08d}.ckpt"), "checkpoint"
    )
    return {key: value.tolist() for key, value in found.items() if not key.startswith("frozen")}


def of_net(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith("frozen")}


@pytest.mark.parametrize("name", ROUNDED)
def test_in_bfloat16_what_is_written_are_the_float32_masters(folder: Path, name: str) -> None:
    ours, other = record(folder, "whole", name), record(folder, "whole", name, rank=1)
    assert set(ours["computed_with"].values()) == {"torch.bfloat16"}
    assert set(ours["written"].values()) == {"torch.float32"}
    assert of_net(ours["end"]) == masters(folder, name, 6) and ours["end"] == other["end"]
    single = record(folder, "fewer", "single")["weights"]
    for key, value in of_net(ours["end"]).items():
        for row, start, expected in zip(value, ours["start"][key], single[key], strict=True):
            assert row != start and row == pytest.approx(expected, abs=3e-3), "it has learned the same"


@pytest.mark.parametrize("name", ROUNDED)
def test_in_bfloat16_nothing_is_rounded_at_the_start_and_frozen_weights_stay_bit_equal(
    folder: Path, name: str
) -> None:
    task = even_task()
    task.configure_model()
    loaded = {key: value.tolist() for key, value in task.state_dict().items()}
    ours = record(folder, "whole", name)
    assert ours["start"] == loaded, "what learns too starts from what was loaded"
    assert {key: ours["end"][key] for key in loaded if key.startswith("frozen")} == {
        key: value for key, value in loaded.items() if key.startswith("frozen")
    }
    before = json.loads((folder / name / "freeze-2.json").read_text())["frozen"]
    assert {key: hashes[0] for key, hashes in before.items()} == frozen_digests(task)
    assert "frozen tensors moved during training: frozen.weight (1 in all)" in ours["moved"]


@pytest.mark.parametrize("strategy", ZERO)
def test_in_bfloat16_one_process_goes_on_with_the_masters_of_two(folder: Path, strategy: str) -> None:
    name = f"{strategy}-bf16"
    went_on, unbroken = record(folder, "fewer", name), record(folder, "whole", name)
    assert of_net(went_on["start"]) == masters(folder, name, 2)
    assert of_net(went_on["start"]) != of_net(unbroken["start"])
    for key, value in unbroken["end"].items():
        for one, other in zip(went_on["end"][key], value, strict=True):
            assert one == pytest.approx(other, abs=1e-3), key


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "zero3-offload"])
def test_gradients_of_a_step_in_bfloat16_are_summed_in_float32(folder: Path, strategy: str) -> None:
    assert record(folder, "fewer", "summed")[strategy] == (1 + 2**-9) / 2
