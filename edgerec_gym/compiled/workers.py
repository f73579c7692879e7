"""Worker threads for kernels that release the interpreter's lock, with less overhead than an executor.

A step of a small batch takes a tenth of a millisecond; queues and futures would take a good part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

HEAD_START = 24  # rows that the calling thread finishes before the others have woken up


class _Worker:
    """A thread that runs one call at a time."""

    def __init__(self) -> None:
        self._start, self._done = threading.Lock(), threading.Lock()
        self._start.acquire()
        self._done.acquire()
        self._call: tuple[Callable[..., None], tuple[Any, ...]] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            self._start.acquire()
            if self._call is None:
                return
            try:
                self._call[0](*self._call[1])
            except BaseException as error:  # raised again in `wait`
                self._error = error
            self._done.release()

    def submit(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._call = function, arguments
        self._start.release()

    def wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        self._call = None
        self._start.release()
        self._thread.join()


class Workers:
    """Runs a kernel on chunks of the rows of a batch, one of them in the calling thread.

    Args:
        n_rows: B.
        n_workers: number of threads, the caller's included.
    """

    def __init__(self, n_rows: int, n_workers: int) -> None:
        shared = n_rows - HEAD_START if n_workers > 1 else n_rows
        edges = [0] + [n_rows - shared * (n_workers - k) // n_workers for k in range(1, n_workers + 1)]
        self._chunks = [(edges[k], edges[k + 1], k) for k in range(n_workers)]
        self._others = [_Worker() for _ in range(n_workers - 1)]
        self._n_rows = n_rows

    def run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Call kernel(*arguments, first row, last row + 1, worker) on all chunks and wait for them."""
        if not self._others:
            kernel(*arguments, 0, self._n_rows, 0)
            return
        for worker, chunk in zip(self._others, self._chunks[1:], strict=True):
            worker.submit(kernel, arguments + chunk)
        try:
            kernel(*arguments, *self._chunks[0])
        finally:
            for worker in self._others:
                worker.wait()

    def each(self, function: Callable[[Any, int], None], jobs: list[Any]) -> None:
        """Call function(job, worker) for all jobs; each worker takes the next job when it is free."""
        helpers = self._others[: len(jobs) - 1]
        if not helpers:
            for job in jobs:
                function(job, 0)
            return

        def work(worker: int) -> None:
            while True:
                try:
                    job = jobs.pop()
                except IndexError:
                    return
                function(job, worker)

        for k, worker in enumerate(helpers):
            worker.submit(work, (k + 1,))
        try:
            work(0)
        finally:
            for worker in helpers:
                worker.wait()

    def __len__(self) -> int:
        """Number of threads, the caller's included."""
        return 1 + len(self._others)

    def close(self) -> None:
        """End the threads; later calls run in the calling thread alone."""
        for worker in self._others:
            worker.stop()
        self._others = []
