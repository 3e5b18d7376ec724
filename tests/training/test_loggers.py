from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from omniaudio.errors import UserError
from omniaudio.training.loggers import NOTHING_OF_THE_MACHINE, JsonLinesLogger, make_trackers


def test_lines_after_a_step_are_cut_for_a_resumed_run(tmp_path):
    step = iter((1, 2, 3))
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl", lambda: next(step))
    for _ in range(3):
        logger.log_metrics({"train/loss": 0.5, "epoch": 0})
    with logger.path.open("a") as file:
        file.write('{"step": 3, "train/lo')  # a kill in the middle of a line
    logger.cut_after(2)
    assert logger.path.read_text() == '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.5}\n'


def test_a_line_does_not_tell_what_was_logged_first(tmp_path):
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl", lambda: 7)
    for names in (("train/loss", "train/adv/gen", "epoch"), ("train/adv/gen", "epoch", "train/loss")):
        logger.log_metrics(dict.fromkeys(names, 0.5))
    assert logger.path.read_text() == '{"step": 7, "train/adv/gen": 0.5, "train/loss": 0.5}\n' * 2


def test_trackers_by_name(tmp_path, monkeypatch):
    assert make_trackers("none", tmp_path, "run") == []
    assert len(make_trackers("tensorboard", tmp_path, "run")) == 1
    with pytest.raises(
        UserError, match="tracker='mlflow': allowed are none, tensorboard, wandb, wandb_offline"
    ):
        make_trackers("mlflow", tmp_path, "run")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(
        UserError, match="tracker=wandb_offline: the package is not installed; pip install wandb"
    ):
        make_trackers("wandb_offline", tmp_path, "run")


def test_tensorboard_holds_what_a_resumed_run_writes_again_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 2):
        (tracker,) = make_trackers("tensorboard", tmp_path, "run", first)
        for step in range(first, 4):
            tracker.log_metrics({"train/loss": first}, step)
        tracker.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(0, 0), (1, 0), (2, 2), (3, 2)]


@pytest.mark.parametrize("name", ["wandb", "wandb_offline"])
def test_wandb_gets_metrics_and_nothing_of_the_machine(tmp_path, monkeypatch, name):
    """By a stand-in for the library, which keeps what a run is begun with."""
    begun, logged = [], []
    run = SimpleNamespace(log=lambda values, **_: logged.append(values))
    parts = {"wandb": ModuleType("wandb"), "wandb.sdk": ModuleType("wandb.sdk")}
    parts |= {part: ModuleType(part) for part in ("wandb.sdk.lib", "wandb.wandb_run")}
    parts["wandb"].run, parts["wandb"].init = None, lambda **words: begun.append(words) or run
    parts["wandb.sdk.lib"].RunDisabled = parts["wandb.wandb_run"].Run = type("Run", (), {})
    for part, module in parts.items():
        monkeypatch.setitem(sys.modules, part, module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    for variable in (*NOTHING_OF_THE_MACHINE, "WANDB_MODE"):
        monkeypatch.setenv(variable, "")  # given back after the test
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")  # the user has the last word
    (tracker,) = make_trackers(name, tmp_path, "tag/stage")
    tracker.log_metrics({"train/loss": 0.5}, 3)
    assert logged == [{"train/loss": 0.5, "trainer/global_step": 3}]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["dir"]) == (
        "omniaudio",
        "tag/stage",
        str(tmp_path),
    )
    assert "a-secret" not in str(begun) and not begun[0].get("config")
    assert os.environ.get("WANDB_MODE") == ("dryrun" if name == "wandb_offline" else None)
    kept = {variable: os.environ[variable] for variable in NOTHING_OF_THE_MACHINE}
    assert kept == {**NOTHING_OF_THE_MACHINE, "WANDB_CONSOLE": "wrap"}
