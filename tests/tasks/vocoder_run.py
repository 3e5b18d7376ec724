"""Vocoder training in two processes: in one go, and stopped and resumed.

python -m tests.tasks.vocoder_run FOLDER KIND      writes FOLDER/<run>-rank<n>.pt, and the metrics of each run
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

import omniaudio.init
from tests.tasks.test_vocoder import WITH_F0, SharedWaves, new_hift, new_task, run, watched
from tests.tasks.test_vocoder_finetune import SharedCodes, finetune

KINDS = {
    "istft": (new_task, SharedWaves),
    "spike": (watched, partial(SharedWaves, bad=2, peak=1e4)),
    "late hift": (  # its discriminators join in the first step after the resume
        partial(new_task, new_hift, loss_weights=WITH_F0, adversarial_from=0.5),
        SharedWaves,
    ),
    "finetune": (partial(finetune, crop_frames=None), SharedCodes),
}
"""Name -> what makes the task, and what both processes read."""


def main(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    omniaudio.init.BRANCH_GAIN = 1.0  # as in the process of the tests (conftest.py)
    make, source = KINDS[kind]
    for name, stops in (("unbroken", [4]), ("broken", [3, 4])):
        for stop in stops:
            task = make()
            run(folder / name, task, stop, resume=True, kind=source, devices=2)
        torch.save(task.state_dict(), folder / f"{name}-rank{task.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
