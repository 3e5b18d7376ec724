"""Steps that go wrong are skipped and named; after many in a row the run goes back and on, on all ranks alike."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.training.recovery import StepWatch, watch_engine
from tests.tasks.test_base import PointTask, make_task, run

ROOT = Path(__file__).parents[2]
NAN = float("nan")


def watched(max_steps: int, told: list[str] | None = None, **settings: object) -> PointTask:
    task = make_task(max_steps)
    limits: dict[str, object] = {"window": 3, "patience": 3, "max_returns": 1}
    task.watch = StepWatch(**{**limits, **settings})  # type: ignore[arg-type]
    task.tell = (told if told is not None else []).append
    return task


def test_high_is_measured_by_the_median_of_good_steps() -> None:
    watch = StepWatch(norm_factor=10, loss_factor=5, window=3)
    seen = [
        ({"gradient": 1.0, "loss": 2.0}, ""),
        ({"gradient": 900.0, "loss": 2.0}, ""),  # nothing to compare with yet
        ({"gradient": 3.0, "loss": 2.0}, ""),
        ({"gradient": 29.0, "loss": 2.0}, ""),  # the level is 3, not the mean
        ({"gradient": 300.0, "loss": 2.0}, "gradient of 300, 10.3 times its level"),  # of 29
        ({"gradient": 300.0, "loss": 2.0}, "gradient of 300, 10.3 times its level"),  # a bad step is no level
        ({"gradient": 1.0, "loss": 11.0}, "loss of 11, 5.5 times its level"),
        ({"gradient": 1.0, "loss": math.inf}, "non-finite loss"),
        ({"gradient": NAN, "loss": NAN}, "non-finite gradient"),
    ]
    for values, expected in seen:
        assert watch.fault(values) == expected
        watch.count(values, expected)
    assert watch.bad_steps == watch.total_bad_steps == 5
    again = StepWatch(norm_factor=10, loss_factor=5, window=3)
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert again.fault({"gradient": 300.0}) and again.total_bad_steps == 5
    assert not StepWatch().fault({"gradient": 1e30, "loss": 1e30})
    with pytest.raises(UserError, match=r"norm_factor 0\.5 .*above 1 or null"):
        StepWatch(norm_factor=0.5)


@pytest.mark.parametrize("factor", ["norm_factor", "loss_factor"])
def test_a_spike_is_skipped_and_its_samples_named(tmp_path: Path, factor: str) -> None:
    """The run is the one in which the same step was skipped for a NaN."""
    weights = {}
    for value in (1e4, NAN):
        told: list[str] = []
        task = watched(6, told, **{factor: 50})
        lines = run(tmp_path / str(value), task, stop=6, bad={4: value})
        weights[value] = [p.clone() for p in task.parameters()]
        assert len(told) == 1 and told[0].startswith("step 5: ") and "point-4" in told[0]
        assert [json.loads(line).get("train/bad_steps") for line in lines if "grad_norm/" in line] == [
            *[None] * 4, 1, 1,
        ]  # fmt: skip
        spiked = "gradient of" if factor == "norm_factor" else "loss of"
        assert (spiked if math.isfinite(value) else "non-finite gradient") in told[0]
    assert all(torch.equal(*pair) for pair in zip(*weights.values(), strict=True))


BAD = {5: NAN, 6: 1e4, 7: NAN}
"""Steps 6, 7 and 8; checkpoints are of even steps, the last good one of step 4."""


def test_a_bad_stretch_ends_in_a_return_and_the_data_behind_it(tmp_path: Path) -> None:
    told: list[str] = []
    task = watched(12, told, norm_factor=50)
    lines = [json.loads(line) for line in run(tmp_path, task, stop=12, bad=BAD)]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13)), (
        "no step is made twice"
    )
    assert told[-1] == (
        "step 8: 3 bad steps in a row; back to the weights of step 4, the 4 samples of the steps since are left out, "
        f"see {tmp_path / 'left_out.jsonl'} (return 1 of 1)"
    )
    left_out = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert left_out == [{"step": step, "keys": [f"point-{step - 1}"]} for step in (5, 6, 7, 8)]
    assert all(torch.isfinite(p).all() for p in task.parameters())
    assert task.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001), (
        "the schedule has gone on"
    )


def test_a_run_killed_on_the_way_back_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    def settings() -> PointTask:
        return watched(12, norm_factor=50)

    whole_task = settings()
    whole = run(tmp_path / "whole", whole_task, stop=12, bad=BAD)
    for stop in (7, 9, 11):  # in the stretch, after the return (saved with step 8), later
        folder = tmp_path / str(stop)
        run(folder, settings(), stop=stop, bad=BAD)
        again_task = settings()
        assert run(folder, again_task, stop=12, bad=BAD, resume=True) == whole
        assert again_task.watch.state_dict() == whole_task.watch.state_dict()
        for ours, theirs in zip(again_task.parameters(), whole_task.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        left_out = [(path / "left_out.jsonl").read_text() for path in (folder, tmp_path / "whole")]
        assert left_out[0] == left_out[1]


def test_too_many_returns_end_the_run_and_so_does_none_to_return_to(tmp_path: Path) -> None:
    bad = dict.fromkeys(range(5, 12), NAN)
    with pytest.raises(
        UserError, match=r"step 11: 3 bad steps in a row, returned 1 times already .*lower optim.lr"
    ):
        run(tmp_path / "often", watched(12), stop=12, bad=bad)
    lines = (tmp_path / "often/left_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 6, 7, 8]
    with pytest.raises(UserError, match="step 3: 3 bad steps in a row, no checkpoint to return to"):
        run(tmp_path / "early", watched(12), stop=12, bad=dict.fromkeys(range(3), NAN))


@pytest.mark.parametrize("name", ["scaled_global_norm", "_get_norm_groups"])
def test_deepspeed_skips_what_has_a_fault(name: str) -> None:
    asked: list[float] = []

    def fault(norm: float) -> str:
        asked.append(norm)
        return "high" if norm > 5 else ""

    several = name == "_get_norm_groups"
    for norms, bad in [([3.0, 4.0], False), ([6.0, 8.0], True), ([-1.0, 1.0], True), ([NAN, 1.0], True)]:
        found = norms if several else math.hypot(*norms) if norms[0] > 0 else norms[0]
        optimizer = SimpleNamespace(**{name: lambda found=found: found})
        assert watch_engine(optimizer, fault)
        expected = ([math.inf] if several else math.inf) if bad else found
        assert getattr(optimizer, name)() == expected
    assert asked == [5.0, 10.0], "what is not finite is no question"
    assert not watch_engine(SimpleNamespace(), fault)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_two_processes_skip_a_spike_and_return_alike(tmp_path: Path, strategy: str) -> None:
    words = [sys.executable, "-m", "tests.training.recovery_run", strategy, str(tmp_path)]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert records[0]["watch"] == records[1]["watch"] and records[0]["weights"] == records[1]["weights"]
    told, weights, watch = records[1]["told"], records[1]["weights"], records[1]["watch"]
    assert told[0].startswith("step 5: gradient of") and "point-4" in told[0]
    assert [line.split(";")[0] for line in told[1:]] == [
        f"step {step}: non-finite gradient, step skipped" for step in (9, 10)
    ]
    assert "back to the weights of step 6" in records[0]["told"][-1]
    assert (watch["total_bad_steps"], watch["returns"], records[1]["finite"]) == (3, 1, True)
    assert weights[4] == weights[3], "the spike moved nothing"
    assert weights[9] == weights[5] and weights[9] != weights[8], "the weights of step 6 after step 10"
    assert len(set(weights)) == 14 - 3, "all other steps moved them"
    lines = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "keys": [f"point-{step - 1}"]} for step in (7, 8, 9, 10)]


def test_limits_that_are_no_numbers_are_one_line() -> None:
    for settings in ({"window": None}, {"patience": 0}, {"max_returns": "often"}, {"norm_factor": "high"}):
        with pytest.raises(UserError, match="recovery: window .* must be at least 1"):
            StepWatch(**settings)  # type: ignore[arg-type]
