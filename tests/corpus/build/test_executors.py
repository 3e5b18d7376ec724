import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from omniaudio.config import build
from omniaudio.corpus.build.executors import LocalProcesses, RayCluster, Worker
from omniaudio.corpus.build.pipeline import join, make_jobs
from omniaudio.errors import UserError
from tests.corpus.build.test_pipeline import contents

BUILD = "omniaudio.corpus.build"
NODE = {
    "_target_": f"{BUILD}.pipeline.Pipeline",
    "source": {
        "_target_": f"{BUILD}.sources.Texts",
        "texts": {"_target_": "omniaudio.corpus.texts.NoTexts"},
        "language": "en",
    },
    "steps": {
        "split": {"_target_": f"{BUILD}.text_steps.SplitText", "min_chars": 5},
        "speakable": {"_target_": f"{BUILD}.text_steps.Speakable"},
        "synthesise": {
            "_target_": f"{BUILD}.synthesis.Synthesise", "engine": {"_target_": f"{BUILD}.synthesis.EspeakNg"},
        },
    },
    "fractions": {"train": 0.6, "dev": 0.2, "test": 0.2},
    "corpus": "c",
}  # fmt: skip
"""Real steps without a model."""


def make_sources(number=12):
    text = "This is passage number {}. It has a second sentence. And see www.here.org for a link."
    return [{"key": f"text-{i:03d}", "text": text.format(i)} for i in range(number)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return done_by(LocalProcesses(0), folder)


def done_by(executor, folder, jobs=None):
    every = make_jobs(make_sources(), 2)
    executor.run(NODE, folder, every if jobs is None else jobs)
    join(folder, every, build(NODE, "pipeline"))
    return contents(folder)


def test_a_worker_builds_its_pipeline_once(tmp_path):
    worker = Worker(NODE, str(tmp_path))
    jobs = make_jobs(make_sources(4), 2)
    assert [worker(job) for job in jobs] == [0, 1]
    first = worker._pipeline
    worker(jobs[0])
    assert worker._pipeline is first


def killed_in(seconds, find):
    """Kill -9 the first process that ``find`` names, once there is one."""

    def wait():
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            for pid in find():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.005)

    killed = []
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return killed, thread


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(tmp_path, whole):
    jobs, folder = make_jobs(make_sources(), 2), tmp_path / "two"

    def workers():
        if not list(folder.glob("jobs/*/job.json")):
            return []
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    killed, thread = killed_in(60, workers)
    with pytest.raises(UserError, match="a worker process was killed"):
        LocalProcesses(2).run(NODE, folder, jobs)
    thread.join()
    assert killed
    rest = [job for job in jobs if not (folder / "jobs" / job.name / "job.json").is_file()]
    assert 0 < len(rest) < len(jobs)
    assert done_by(LocalProcesses(2), folder, rest) == whole


@pytest.mark.slow
def test_ray_does_the_jobs_of_a_killed_actor_again(tmp_path, whole):
    pytest.importorskip("ray")
    import psutil

    folder = tmp_path / "ray"

    def actors():
        if not list(folder.glob("jobs/*/job.json")):
            return []
        below = psutil.Process().children(recursive=True)
        return [p.pid for p in below if p.is_running() and "_RayWorker" in " ".join(p.cmdline())]

    killed, thread = killed_in(120, actors)
    found = done_by(RayCluster(num_workers=2, cpus=0.5), folder)
    thread.join(1)
    assert killed and found == whole


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, error):
    def init(address, **settings):
        raise error(f"Could not find {address}\nand more lines of it")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(UserError) as told:
        RayCluster(address="auto").run(NODE, tmp_path, [])
    assert str(told.value) == (
        "config executor.address=auto: no Ray cluster answers (Could not find auto); start one (ray start --head), "
        "give its address, or null: then one starts on this machine"
    )
    with pytest.raises(error):
        RayCluster().run(NODE, tmp_path, [])


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_mistake_is_one_line_from_any_worker(tmp_path, executor):
    if executor == "ray":
        pytest.importorskip("ray")
    gate = {"_target_": f"{BUILD}.segment.Gate", "score": "nothing", "least": 0.5}
    node = {**NODE, "steps": {**NODE["steps"], "gate": gate}}
    with pytest.raises(UserError) as error:
        (LocalProcesses(2) if executor == "local" else RayCluster(num_workers=1, cpus=0.5)).run(
            node, tmp_path, make_jobs(make_sources(4), 2)
        )
    assert str(error.value) == "gate of 'nothing': no step before it gives this score (there are: none)"
