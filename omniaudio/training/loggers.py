"""Where metrics go: always a local file of JSON lines, and optionally a tracker."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from omniaudio.errors import UserError
from omniaudio.files import write_whole


class JsonLinesLogger(Logger):
    """``metrics.jsonl``: one line a logged step, ``{"step": 40, "train/loss": 1.2}``.

    Names are sorted: Lightning has them in the order in which this process first met them, which a resumed run did not
    meet in the same steps.

    Args:
        path: the file.
        current_step: the step that the next line belongs to.
    """

    def __init__(self, path: Path, current_step: Callable[[], int]) -> None:
        super().__init__()
        self.path, self.current_step = path, current_step

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The stage writes the config; nothing to do."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: round(metrics[name], 6) for name in sorted(metrics) if name != "epoch"}
        if values:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": self.current_step(), **values}) + "\n")

    def cut_after(self, step: int) -> None:
        """Forget lines after ``step``: a resumed run writes them again."""
        if not self.path.exists():
            return
        lines = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        write_whole(self.path, "".join(line + "\n" for line in lines))


TRACKERS = ("none", "tensorboard", "wandb", "wandb_offline")

NOTHING_OF_THE_MACHINE = {
    "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true", "WANDB_DISABLE_GIT": "true", "WANDB_HOST": "host",
    "WANDB__DISABLE_META": "true",
}  # fmt: skip
"""What wandb would keep beside the metrics: screen, source, remote, host, and paths and words of the command."""


def make_trackers(name: str, folder: Path, run_name: str, step: int = 0) -> list[Logger]:
    """Loggers beside the local file.

    Args:
        name: of TRACKERS. ``wandb`` takes its key from WANDB_API_KEY or ``wandb login``, never from a config;
            ``wandb_offline`` needs neither key nor network, ``wandb sync`` sends it later.
        folder: of the stage; they write below it.
        run_name: what wandb calls the run.
        step: from which the run goes on: what TensorBoard holds of later steps is written again.

    Raises:
        UserError: another name, or its package is not installed.
    """
    if name not in TRACKERS:
        raise UserError(f"tracker={name!r}: allowed are {', '.join(TRACKERS)}")
    if name == "none":
        return []
    package = name.partition("_")[0]
    try:
        if package == "tensorboard":
            return [TensorBoardLogger(folder, name="tensorboard", version="", purge_step=step or None)]
        for variable, value in NOTHING_OF_THE_MACHINE.items():
            os.environ.setdefault(variable, value)
        offline = name == "wandb_offline"
        return [WandbLogger(name=run_name, save_dir=folder, project="omniaudio", offline=offline)]
    except ModuleNotFoundError as error:
        raise UserError(f"tracker={name}: the package is not installed; pip install {package}") from error


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):  # a line cut by a kill
        return float("inf")
