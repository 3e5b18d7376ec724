"""A training as a job of a SLURM cluster: one script, written beside the results and handed to sbatch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omniaudio.errors import REQUEUE, UserError
from omniaudio.files import user_os_errors, write_whole
from omniaudio.secrets import holds_secret


class Slurm:
    """Writes the script and submits it.

    Args:
        partition, account: of the cluster; None leaves the choice to it.
        time: longest run, ``HH:MM:SS``; a training that needs more is put into the queue again.
        cpus_per_device: cores of each process.
        memory: of a node, as sbatch writes it.
        gpus: whether each process has a GPU.
        more: further options of sbatch, each with its dashes.
    """

    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        time: str = "24:00:00",
        cpus_per_device: int = 8,
        memory: str | None = None,
        gpus: bool = True,
        more: Sequence[str] = (),
    ) -> None:
        if wrong := [line for line in more if not re.fullmatch(r"--?[^\n]+", line)]:
            raise UserError(
                f"trainer.launcher.more: {wrong[0]!r} is no option of sbatch; it must begin with '-'"
            )
        self.partition, self.account, self.time, self.memory = partition, account, time, memory
        self.cpus_per_device, self.gpus, self.more = cpus_per_device, gpus, list(more)

    def script(self, words: Sequence[str], config: Mapping[str, Any], folder: Path) -> str:
        """The job: as many processes on each node as the config has devices, all with the words of the user.

        Raises:
            UserError: a word holds a secret, which would stand in the script.
        """
        if secret := next(filter(holds_secret, [*words, *self.more]), None):
            name = secret.partition("=")[0]
            raise UserError(
                f"{name}=***: a secret, and job.sh would keep it; put it into the environment, which the job gets, "
                "and name it there: '${oc.env:NAME}'"
            )
        options = {
            "--job-name": f"{config['tag']}/{config['stage']}",
            "--nodes": config["num_nodes"],
            "--ntasks-per-node": config["devices"],
            "--gpus-per-node": config["devices"] if self.gpus else None,
            "--cpus-per-task": self.cpus_per_device,
            "--mem": self.memory,
            "--time": self.time,
            "--partition": self.partition,
            "--account": self.account,
            "--output": folder / "slurm-%j.log",
            "--open-mode": "append",
            "--signal": "USR1@120",
        }
        lines = [f"{name}={value}" for name, value in options.items() if value is not None]
        command = shlex.join(["omniaudio", "train", *in_the_job(words, self.gpus)])
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                *(f"#SBATCH {line}" for line in (*lines, "--requeue", *self.more)),
                "set -u",
                "code=0",
                # srun ends the others ten minutes after one has: the first rank may be writing results meanwhile.
                f"srun --cpus-per-task={self.cpus_per_device} --kill-on-bad-exit=0 --wait=600 {command} || code=$?",
                f"# {REQUEUE}: the step is saved and the time is over; the same job goes on from there.",
                f'if [[ $code -eq {REQUEUE} ]]; then scontrol requeue "$SLURM_JOB_ID"; fi',
                'exit "$code"',
                "",
            ]
        )

    def submit(self, words: Sequence[str], config: Mapping[str, Any]) -> str:
        """Write the script below exp_dir (a stage's own folder may be set aside), hand it to sbatch, and return what
        that says."""
        folder = Path(config["exp_dir"]) / "launch" / config["stage"]
        path = folder / "job.sh"
        with user_os_errors(folder):
            write_whole(path, self.script(words, config, folder))
        if shutil.which("sbatch") is None:
            raise UserError(
                f"trainer=slurm: there is no sbatch here; {path} is written, submit it where there is"
            )
        # The job finds this environment's command by its name, so that the script names no place.
        where = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, env=where, check=False)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise UserError(f"sbatch refuses {path}: {said}")
        return done.stdout.strip()


def in_the_job(words: Sequence[str], gpus: bool = True) -> list[str]:
    """The words of the command as the job's processes get them: they are those that train."""
    kept = [word for word in words if not word.startswith("trainer.launcher.")]
    trainer = f"trainer={'gpu' if gpus else 'cpu'}"
    return [trainer if word == "trainer=slurm" else word for word in kept]
