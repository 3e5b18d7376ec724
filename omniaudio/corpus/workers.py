"""Offline work in processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from omniaudio.errors import UserError

WINDOW = 256  # items in flight between the workers and the reader of their results
X = TypeVar("X")
Y = TypeVar("Y")


class Workers:
    """``map`` in order with a progress bar; use as a context manager.

    Args:
        num_workers: processes; 0 does the work in this one.
        begin, arguments: called once in every process.
    """

    def __init__(
        self, num_workers: int, begin: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = (
            ProcessPoolExecutor(num_workers, mp_context=context, initializer=begin, initargs=arguments)
            if num_workers > 0
            else None
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[X], Y], items: Sequence[X], description: str, chunk: int = 8
    ) -> Iterator[Y]:
        """``function`` of each item, in order, ``chunk`` at a time; it and the items must pickle."""
        from omniaudio.progress import track

        try:
            yield from track(self._results(function, items, chunk), description, len(items))
        except BrokenProcessPool as error:
            raise UserError(
                f"{description}: a worker process was killed (no memory?); try num_workers=0"
            ) from error

    def _results(self, function: Callable[[X], Y], items: Sequence[X], chunk: int) -> Iterator[Y]:
        if self.pool is None:
            yield from map(function, items)
            return
        for begin in range(0, len(items), WINDOW):
            yield from self.pool.map(function, items[begin : begin + WINDOW], chunksize=chunk)
