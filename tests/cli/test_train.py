"""Training as a user runs it: killed and started again, on two processes, with wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from omniaudio.cli.main import main
from tests.conftest import STAGES, train_words

COMMAND = [sys.executable, "-m", "omniaudio.cli.main", "train"]


def link_earlier_stages(chain: Path, exp_dir: Path, stage: str) -> None:
    exp_dir.mkdir(parents=True, exist_ok=True)
    for done in STAGES[: STAGES.index(stage)]:
        (exp_dir / done).symlink_to(chain / done)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def last_step(metrics: Path) -> int:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except json.JSONDecodeError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "pretrain_stage2"])
def test_kill_9_and_the_same_command_again_give_the_unbroken_run(tiny_chain, tiny_data, tmp_path, stage):
    more = ["max_steps=60", "checkpoint_every_steps=7", "val_every_steps=20"]
    finals, metrics = [], []
    for name in ("unbroken", "killed"):
        exp_dir = tmp_path / name
        link_earlier_stages(tiny_chain, exp_dir, stage)
        words = train_words(stage, tiny_data, exp_dir, *more)
        if name == "killed":
            process = subprocess.Popen([*COMMAND, *words], env=environment(), stderr=subprocess.DEVNULL)
            while last_step(exp_dir / stage / "metrics.jsonl") < 17:
                assert process.poll() is None, "ended before it could be killed"
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (exp_dir / stage / "stamp.json").exists()
        done = subprocess.run([*COMMAND, *words], env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("going on from step" in done.stdout) == (name == "killed")
        metrics.append((exp_dir / stage / "metrics.jsonl").read_text())
        (final,) = (exp_dir / stage / "final").glob("*/model.safetensors")
        finals.append(load_file(final))
    assert metrics[0] == metrics[1]
    assert all(finals[0][name].equal(finals[1][name]) for name in finals[0])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_processes_train_like_one(tiny_chain, tiny_data, tmp_path, strategy):
    """Same global steps; losses agree within what sums in another order may differ."""
    stage, losses = "pretrain_stage2", {}
    for name, words in (("single", ["devices=1"]), (strategy, [f"strategy={strategy}", "devices=2"])):
        exp_dir = tmp_path / name
        link_earlier_stages(tiny_chain, exp_dir, stage)
        done = subprocess.run(
            [*COMMAND, *train_words(stage, tiny_data, exp_dir, *words)],
            env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        lines = map(json.loads, (exp_dir / stage / "metrics.jsonl").read_text().splitlines())
        losses[name] = [line["train/loss"] for line in lines if "train/loss" in line]
        weights = load_file(exp_dir / stage / "final" / "lm" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
        proof = json.loads((exp_dir / stage / "freeze.json").read_text())["frozen"]
        assert proof and all(before == after for before, after in proof.values())
    assert losses[strategy] == pytest.approx(losses["single"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["strategy=zero9"], "strategy='zero9': allowed are single, ddp, zero1, zero2, zero3"),
        (["tracker=nothing"], "tracker='nothing'"),
        (["data_dir=nowhere"], "nowhere"),
        (["task.trainable=[lm.nothing.*]"], "'lm.nothing.*' matches no parameter"),
        (["quantizer.codebook_sizes=[16,8,8,4,4,4,4,8]"], "codebook_sizes"),
        (["mixture.pretrain.weights.poems=1"], "poems"),
        (["schedule.pretrain_stage1.tokens_per_step=8"], "8 positions"),
    ],
)
def test_a_mistake_is_one_line(tiny_chain, tiny_data, tmp_path, capsys, words, expected):
    link_earlier_stages(tiny_chain, tmp_path / "exp", "pretrain_stage1")
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_words("pretrain_stage1", tiny_data, tmp_path / "exp", *words)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and expected in error and error.startswith("omniaudio: error:")


def test_no_write_permission_is_one_line(tiny_chain, tiny_data, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_words("text_lm", tiny_data, tmp_path / "file")])
    assert stop.value.code in (2, 3) and len(capsys.readouterr().err.strip().splitlines()) == 1
