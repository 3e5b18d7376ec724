from __future__ import annotations

import pytest

from omniaudio.errors import UserError
from omniaudio.training.loggers import JsonLinesLogger, make_trackers


def test_lines_after_a_step_are_cut_for_a_resumed_run(tmp_path):
    step = iter((1, 2, 3))
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl", lambda: next(step))
    for _ in range(3):
        logger.log_metrics({"train/loss": 0.5, "epoch": 0})
    with logger.path.open("a") as file:
        file.write('{"step": 3, "train/lo')  # a kill in the middle of a line
    logger.cut_after(2)
    assert logger.path.read_text() == '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.5}\n'


def test_trackers_by_name(tmp_path, monkeypatch):
    assert make_trackers("none", tmp_path, "run") == []
    assert len(make_trackers("tensorboard", tmp_path, "run")) == 1
    with pytest.raises(UserError, match="tracker='mlflow': allowed are none, tensorboard, wandb"):
        make_trackers("mlflow", tmp_path, "run")
