"""Who does jobs (of a build, of an extraction): processes of this machine, or a Ray cluster. Both do the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omniaudio.config import build
from omniaudio.corpus.build.pipeline import Job
from omniaudio.corpus.workers import Workers
from omniaudio.errors import UserError
from omniaudio.progress import track


class Executor(Protocol):
    """Does jobs."""

    def run(self, node: Mapping[str, Any], folder: Path, jobs: Sequence[Job]) -> None:
        """Do all of ``jobs``.

        Args:
            node: config of what has a method ``run(job, folder)``, as a Pipeline has; every worker builds
                its own, with its models, once.
            folder: of the build; all workers reach it under this path.
        """
        ...


class Worker:
    """A pipeline built when the first job comes; what a process keeps from job to job."""

    def __init__(self, node: Mapping[str, Any], folder: str, threads: int | None = 1) -> None:
        self.node, self.folder, self.threads = dict(node), Path(folder), threads
        self._pipeline: Any = None

    def __call__(self, job: Job) -> int:
        if self._pipeline is None:
            import torch

            if self.threads:
                torch.set_num_threads(self.threads)  # sums in another order are other sums
            self._pipeline = build(self.node, "pipeline")
        self._pipeline.run(job, self.folder)
        return job.number


class LocalProcesses:
    """Processes of this machine.

    Args:
        num_workers: processes; 0 does the jobs in this one.
        threads: of torch in each; null leaves torch its choice.
    """

    def __init__(self, num_workers: int = 0, threads: int | None = 1) -> None:
        self.num_workers, self.threads = num_workers, threads

    def run(self, node: Mapping[str, Any], folder: Path, jobs: Sequence[Job]) -> None:
        worker = Worker(node, str(folder), self.threads)
        if self.num_workers == 0:
            for _ in track(map(worker, jobs), "Jobs", len(jobs)):
                pass
            return
        with Workers(self.num_workers, begin=_begin, arguments=(worker,)) as workers:
            for _ in workers.map(_do, jobs, "Jobs", chunk=1):
                pass


class RayCluster:
    """Actors of Ray, through Ray Data: each builds its pipeline once; a job whose actor dies is done again elsewhere.

    Args:
        address: of a running cluster; ``auto`` finds the one of this machine; null starts one here.
        num_workers: actors.
        cpus, gpus: of each.
    """

    def __init__(
        self, address: str | None = None, num_workers: int = 2, cpus: float = 1.0, gpus: float = 0.0
    ) -> None:
        self.address, self.num_workers, self.cpus, self.gpus = address, num_workers, cpus, gpus

    def run(self, node: Mapping[str, Any], folder: Path, jobs: Sequence[Job]) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError("executor=ray needs Ray: pip install 'ray[data]'") from error
        try:
            ray.init(
                address=self.address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False
            )
        except (ConnectionError, RuntimeError) as error:
            if self.address is None:
                raise
            told = str(error).partition("\n")[0]
            raise UserError(
                f"config executor.address={self.address}: no Ray cluster answers ({told}); start one "
                f"(ray start --head), give its address, or null: then one starts on this machine"
            ) from error
        try:
            actor: Any = _RayWorker
            done = ray.data.from_items(_as_rows(jobs), override_num_blocks=len(jobs)).map(
                actor,
                fn_constructor_args=(dict(node), str(folder)),
                compute=ray.data.ActorPoolStrategy(size=min(self.num_workers, len(jobs))),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
            for row in track(_rows(done), "Jobs", len(jobs)):
                if row["mistake"]:
                    raise UserError(row["mistake"])
        finally:
            ray.shutdown()


class _RayWorker:
    def __init__(self, node: Mapping[str, Any], folder: str) -> None:
        self.worker = Worker(node, folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self.worker(Job(int(row["number"]), tuple(json.loads(row["sources"]))))
        except UserError as error:  # Ray would hand on its text among its own
            return {"number": row["number"], "mistake": str(error)}
        return {"number": row["number"], "mistake": ""}


def _as_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return [{"number": job.number, "sources": json.dumps(job.sources)} for job in jobs]


def _rows(dataset: Any) -> Iterator[Any]:
    yield from dataset.iter_rows()


_worker: Worker | None = None  # of a process of LocalProcesses: set once when it begins


def _begin(worker: Worker) -> None:
    global _worker
    _worker = worker


def _do(job: Job) -> int:
    assert _worker is not None
    return _worker(job)
