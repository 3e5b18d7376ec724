"""Vocoder training in two processes: in one go, and stopped and resumed.

python -m tests.tasks.vocoder_run FOLDER      writes FOLDER/<run>-rank<n>.pt, and the metrics of each run
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.tasks.test_vocoder import SharedWaves, new_task, run


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, stops in (("unbroken", [4]), ("broken", [3, 4])):
        for stop in stops:
            task = new_task()
            run(folder / name, task, stop, resume=True, kind=SharedWaves, devices=2)
        torch.save(task.state_dict(), folder / f"{name}-rank{task.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
