"""Write the page of an experiment: ${exp_dir}/report/index.html, with its pictures and sound beside it.

Made of what the other stages left in exp_dir; what has not run is named on the page. It needs no network and
no server: open it from the disk, or copy the folder elsewhere.

    omniaudio report system=NAME scale=mini
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omniaudio.errors import UserError
from omniaudio.stage import STAMP, stage


def main(config: dict[str, Any]) -> None:
    """Write the page, unless nothing is new since it was written."""
    exp_dir = Path(config["exp_dir"])
    if not exp_dir.is_dir():
        raise UserError(f"{exp_dir} does not exist; check tag= (or exp_dir=), or run the recipe first")
    more = {name: what for name, what in config["more_stages"].items() if (exp_dir / name / STAMP).is_file()}
    config = {**config, "stages": {**config["stages"], **more}, "recipe": list(config["stages"])}
    inputs = [exp_dir / name for name in config["stages"] if (exp_dir / name / STAMP).is_file()]
    with stage(exp_dir / "report", config=config, inputs=inputs, keep_old=False) as run:
        if run.done:
            return
        from omniaudio.dialogue.report import read_experiment, write_page

        experiment = read_experiment(config, run.folder)
        path = write_page(experiment)
        if experiment.missing:
            run.log(f"not finished: {', '.join(experiment.missing)}; the page says so")
        files = [file for file in path.parent.rglob("*") if file.is_file()]
        num_bytes = sum(file.stat().st_size for file in files)
        run.metrics({"seconds": round(run.seconds, 1), "files": len(files), "bytes": num_bytes})
        run.log(f"{path}: open it in a browser")
