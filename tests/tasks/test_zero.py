"""Real DeepSpeed, two processes: a step that is not finite on one of them, and the proof of what was frozen."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path: Path, stage: int) -> None:
    words = [sys.executable, "-m", "tests.tasks.zero_run", str(stage), str(tmp_path)]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    records = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for record in records:
        assert record["finite"] and record["bad"] == 1
        assert [math.isfinite(norm) for norm in record["norms"]] == [True] * 3 + [False] + [True] * 2
        assert [line.split(";")[0] for line in record["told"]] == [
            "step 4: non-finite gradient, step skipped"
        ]
    assert records[0]["norms"] == records[1]["norms"]
    assert "samples: point-3" in records[1]["told"][0], "the rank that had it names it"
    frozen = json.loads((tmp_path / "freeze.json").read_text())["frozen"]
    assert set(frozen) == {"frozen.0.weight", "frozen.0.bias"}
    if stage == 3:  # of the others each process has the whole, and the first is asked
        assert "frozen tensors moved during training: frozen.0.weight (1 in all)" in records[0]["moved"]
