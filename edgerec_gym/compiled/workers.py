"""Worker threads for kernels that release the interpreter's lock, with less overhead than an executor.

A step of a small batch takes a tenth of a millisecond; queues and futures would take a good part of it.

Threads start with the first call. They end with :meth:`Workers.close`, or when nobody holds the workers any
more. A copy, or the child of a fork, starts threads of its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from edgerec_gym.errors import InputError

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
            (function, arguments), self._call = self._call, None
            try:
                function(*arguments)
            except BaseException as error:  # raised again in `wait`
                self._error = error
            del function, arguments  # an idle thread keeps nothing alive
            self._done.release()

    def submit(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._call = function, arguments
        self._start.release()

    def wait(self) -> BaseException | None:
        """Wait for the end of the call, whatever happens meanwhile; returns what it or the wait raised."""
        interrupt = None
        while True:
            try:
                self._done.acquire()
                break
            except BaseException as interruption:  # Ctrl-C: the kernel still runs on the batch's arrays
                interrupt = interruption
        error, self._error = self._error, None
        return interrupt or error

    def stop(self) -> None:
        self._start.release()

    def join(self) -> None:
        self._thread.join()


def _wait(workers: list[_Worker]) -> None:
    """Wait for all workers, then raise the first error, if any."""
    errors = [worker.wait() for worker in workers]
    for error in errors:
        if error is not None:
            raise error


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


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
        self._others: list[_Worker] = []
        self._n_rows, self._n_workers = n_rows, n_workers
        self._process = 0  # in which the threads run
        self._end: Callable[[], Any] | None = None  # ends them

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, (self._n_rows, self._n_workers)

    def _helpers(self) -> list[_Worker]:
        """Return the other threads, started if this process has none."""
        if self._process != os.getpid():
            self._process, self._others = os.getpid(), [_Worker() for _ in range(self._n_workers - 1)]
            self._end = weakref.finalize(self, _stop, self._others)
        return self._others

    def run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Call kernel(*arguments, first row, last row + 1, worker) on all chunks and wait for them."""
        if self._n_workers == 1:
            kernel(*arguments, 0, self._n_rows, 0)
            return
        others, started = self._helpers(), 0
        try:
            for worker, chunk in zip(others, self._chunks[1:], strict=True):
                worker.submit(kernel, arguments + chunk)
                started += 1
            kernel(*arguments, *self._chunks[0])
        finally:
            _wait(others[:started])

    def each(self, function: Callable[[Any, int], None], jobs: list[Any]) -> None:
        """Call function(job, worker) for all jobs; each worker takes the next job when it is free."""
        helpers = self._helpers()[: len(jobs) - 1] if self._n_workers > 1 else []
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

        started = 0
        try:
            for worker in helpers:
                worker.submit(work, (started + 1,))
                started += 1
            work(0)
        finally:
            _wait(helpers[:started])

    def __len__(self) -> int:
        """Number of threads, the caller's included."""
        return self._n_workers

    def close(self) -> None:
        """End the threads; later calls run in the calling thread alone."""
        others, self._others, self._n_workers = self._others, [], 1
        if self._end is not None and self._process == os.getpid():
            self._end()
            for worker in others:
                worker.join()


class Turn:
    """The right to step a batch, held by one thread at a time; others get an InputError at once.

    `with turn:` takes it and gives it back. Where a microsecond counts: `turn.take(False) or refuse_turn()`,
    and `turn.give()` in the end.
    """

    def __init__(self) -> None:
        lock = threading.Lock()
        self.take, self.give = lock.acquire, lock.release

    def __enter__(self) -> None:
        if not self.take(False):
            refuse_turn()

    def __exit__(self, *_: object) -> None:
        self.give()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turn, ()


def refuse_turn() -> NoReturn:
    """Raise InputError, since another thread holds the turn."""
    raise InputError(
        "the environment is being stepped already, by another thread or by its own users: give each "
        "thread an environment of its own"
    )
