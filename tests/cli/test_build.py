"""The command as a user gives it: killed with all its processes, given again, and read by what trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from omniaudio.cli.main import main
from omniaudio.data.shards import ShardReader
from omniaudio.sequence.vocab import TokenSpace
from tests.corpus.build.test_pipeline import contents

WITHOUT_MODELS = [
    f"~pipeline.steps.{name}" for name in ("voice", "same_voice", "recognise", "compare", "words")
]


def words(folder: Path, out: str, *more: str) -> list[str]:
    texts = folder / "texts.txt"
    if not texts.exists():
        lines = [
            f"This is number {i}, of many. It costs ${i}.50 in all! See www.{i}.org for more of it."
            for i in range(16)
        ]
        texts.write_text("\n".join(lines) + "\n")
    split = "split={train: 0.6, dev: 0.2, test: 0.2}"
    given = ["text_source=file", f"text_source.path={texts}", "recogniser=none", "sources_per_job=2", split]
    return ["build", *given, f"data_dir={folder / out}", *WITHOUT_MODELS, *more]


def test_texts_become_a_folder_that_trainings_read(tmp_path, capsys):
    main(words(tmp_path, "out", "executor.num_workers=0"))
    told = capsys.readouterr().out
    assert "8 jobs, 8 to do" in told and "text: a link 16" in told and "train:" in told
    reader = ShardReader(tmp_path / "out" / "shards", "train")
    assert reader.verify() == len(reader) > 0
    facts = next(e.facts for e in reader.entries if "costs" in e.facts["text"])
    assert (
        "point five" in facts["spoken"]
        and facts["passage"].startswith("text-0")
        and facts["speaker"].startswith("en")
    )
    report = json.loads((tmp_path / "out" / "build.json").read_text())
    assert report["steps"]["speakable"] == [48, 32] and report["num_jobs"] == 8
    main(words(tmp_path, "out", "executor.num_workers=0"))
    assert "is built already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(words(tmp_path, "out", "executor.num_workers=0", "pipeline.steps.split.max_chars=100"))
    assert "holds a build of another pipeline" in capsys.readouterr().err


def test_segments_become_interleaved_documents_of_their_passages(tmp_path):
    from omniaudio.data.compose import DocumentComposer
    from omniaudio.data.shards import ShardWriter, dump_npy

    main(words(tmp_path, "out", "executor.num_workers=0"))
    audio = ShardReader(tmp_path / "out" / "shards", "train")
    with ShardWriter(tmp_path / "codes", "train") as writer:  # as extract writes them
        for entry in audio.entries:
            codes = np.zeros((8, 2), np.uint16)
            writer.write(entry.key, {"codes.npy": dump_npy(codes)}, {**entry.facts, "num_frames": 8})
    composer = DocumentComposer(
        ShardReader(tmp_path / "codes", "train"), lambda t: list(t.encode()), TokenSpace(256, [4, 4])
    )
    groups = [group for seed in range(4) for group in composer.groups("itts", 0, seed) if len(group) > 1]
    assert groups
    for group in groups:
        facts = [audio.entries[i].facts for i in group]
        assert len({f["passage"] for f in facts}) == 1
        assert [f["place"] for f in facts] == list(range(facts[0]["place"], facts[0]["place"] + len(facts)))


@pytest.mark.slow
def test_kill_9_and_the_same_command_again_give_the_unbroken_folder(tmp_path):
    command = [sys.executable, "-m", "omniaudio.cli.main"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    silent = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(
        [*command, *words(tmp_path, "whole", "executor.num_workers=0")], check=True, timeout=120, **silent
    )
    broken = [*command, *words(tmp_path, "broken", "executor.num_workers=2")]
    for number in (1, 4):
        process = subprocess.Popen(broken, start_new_session=True, **silent)
        while len(list((tmp_path / "broken").glob("jobs/*/job.json"))) < number:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "broken" / "build.json").exists()
    subprocess.run(broken, check=True, timeout=120, **silent)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
