"""Write the codes of every utterance, once, with the trained tokenizer.

Reads audio shards and the tokenizer of ${exp_dir}/tokenizer; writes ${exp_dir}/codes/<split>-*.tar with
``codes.npy`` (frames x books, uint16) and the transcript of every utterance, and an index that carries the
fingerprint of the token layout. Later stages compose their sequences from these shards and never tokenize again.

A shard of audio is a job; one that is done stays done, whoever is killed. Jobs are done in this process, in several
(executor=local executor.num_workers=8), or on a Ray cluster (executor=ray device=cuda executor.gpus=1): the same bytes
from processors of one kind with as many threads.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omniaudio.stage import stage, without


def main(config: dict[str, Any]) -> None:
    """Extract the codes of all splits, unless it is done."""
    inputs = [config["shards_dir"], Path(config["tokenizer"]).parent.parent]
    decisive = without(config, {"executor", "batch_size", "device"})  # another machine may go on
    with stage(Path(config["exp_dir"]) / "codes", config=config, inputs=inputs, decisive=decisive) as run:
        if run.done:
            return
        for split, told in extract(config, run.folder).items():
            run.metrics({"split": split, **told, "damaged": len(told["damaged"])})
            run.log(f"{split}: {told['clips']} clips, {told['frames']} code frames")
            for line in told["damaged"]:
                run.log(f"left out: {line}")
    shutil.rmtree(
        Path(config["exp_dir"]) / "codes" / "jobs", ignore_errors=True
    )  # its shards have other names now


def extract(config: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Codes of all splits into ``folder``; clips, frames and damaged clips by split."""
    from omniaudio.config import build
    from omniaudio.corpus.build.pipeline import DONE
    from omniaudio.data.extraction import jobs_of, join_codes

    jobs = jobs_of(config["shards_dir"], config["splits"])
    todo = [job for job in jobs if not (folder / "jobs" / job.name / DONE).is_file()]
    node = {
        "_target_": "omniaudio.data.extraction.CodeExtraction",
        "tokenizer": str(Path(config["tokenizer"]).resolve()),
        "shards_dir": str(Path(config["shards_dir"]).resolve()),
        **{name: config[name] for name in ("batch_size", "device", "num_threads")},
    }
    if todo:
        build(config["executor"], "executor").run(node, folder.resolve(), todo)
    return join_codes(folder, jobs, config["splits"])
