"""The whole recipe as a user starts it, on a folder of recordings, at tiny scale."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import omniaudio
from omniaudio.frontend.audio import write_wav
from tests.dialogue.tiny_experiment import speech

ROOT = Path(__file__).parents[2]
WORDS = "please hold the line while we connect your call to next agent press one for more".split()  # noqa: SIM905
TRAINED = ("text_lm", "tokenizer", "pretrain_stage1", "pretrain_stage2", "sft", "flow", "vocoder")
FOLDERS = ("fetch", "shards", *TRAINED, "codes", "export", "generate", "evaluate", "evaluate_curve", "report")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What run.sh reads of the repository, where it may write, and 80 recordings."""
    for name in ("conf", "recipes", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for i in range(80):
        write_wav(tmp_path / "recordings" / f"{i}.wav", speech(rng.uniform(1.6, 2.4), 16000, i % 5), 16000)
        (tmp_path / "recordings" / f"{i}.txt").write_text(f"{' '.join(rng.choice(WORDS, 4))} {i}")
    return tmp_path


def run(checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = dict(
        os.environ, VIRTUAL_ENV=sys.prefix, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    words = ["--audio_dir", "recordings", "--scale", "tiny", "--tag", "whole"]
    words += ["--overrides", "milestones=[1]", "--prepare_overrides", "text_source=none", *options]
    return subprocess.run(
        ["bash", "recipes/baichuan_audio/run.sh", *words],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


@pytest.mark.slow
def test_from_recordings_to_the_report_and_again_nothing(checkout: Path) -> None:
    done = run(checkout)
    assert done.returncode == 0, done.stderr[-3000:]
    exp_dir = checkout / "exp" / "whole"
    for name in FOLDERS:
        folder = exp_dir / name
        assert yaml.safe_load((folder / "config.yaml").read_text()), name
        assert (folder / "log.txt").read_text().strip(), name
        assert all(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()), name
        assert json.loads((folder / "stamp.json").read_text())["key"], name
    page = (exp_dir / "report" / "index.html").read_text()
    assert page.count("<audio") > 10 and "has not run" not in page
    assert page.count("<b>step 1</b>") == page.count("<b>step 2</b>") >= 2, "of flow and vocoder"
    model = omniaudio.load(exp_dir / "export" / "model")
    reply = model.answer(speech(1.0, 16000, 1), 16000, "transcribe")
    assert reply["wav"] is None or np.isfinite(reply["wav"]).all()

    before = {path: path.stat().st_mtime_ns for path in exp_dir.rglob("*.safetensors")}
    again = run(checkout, "--stage", "0", "--stop_stage", "3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("done before") == 3
    assert "is prepared already" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in exp_dir.rglob("*.safetensors")}
