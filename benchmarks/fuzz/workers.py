"""Processes that answer one question after the other, and are replaced when a question ends them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_LIMIT = 1800.0  # seconds for a process to start: kernels may have to be compiled
PATIENCE = 20  # times the limit that a question may take while other programs have the cores
HANG, SIGNAL = "hang", "signal"
_NEWS, _ANSWER = "news", "answer"


@dataclass(frozen=True)
class Lost:
    """A question that was not answered.

    Attributes:
        outcome: HANG or SIGNAL.
        message: in words.
        news: the last news about the question, "" if there were none.
        seconds: time until then.
    """

    outcome: str
    message: str
    news: str
    seconds: float


@dataclass(frozen=True)
class Service:
    """What the processes do; all parts are functions of a module, since processes import them.

    Attributes:
        start: called once in each process, before the clock runs.
        answer: called as `answer(question, folder, tell)` with a folder of the process's own; `tell(text)`
            sends news to the parent. Returns something that can be pickled.
        memory: bytes that answers may take in addition to those taken at the start; None for no limit.
    """

    start: Callable[[], None]
    answer: Callable[[Any, Path, Callable[[str], None]], Any]
    memory: int | None = None


def ask_all(
    service: Service,
    questions: Sequence[Any],
    folder: Path,
    limit: Callable[[Any], float],
    take: Callable[[Any, Any], None],
    workers: int = 2,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Ask all questions.

    Args:
        service: what the processes do.
        questions: asked in this order.
        folder: an existing folder for the processes.
        limit: seconds that a question may take.
        take: called in this process as `take(question, answer)`, one at a time; the answer may be Lost.
        workers: number of processes.
        enough: asked before each question; True ends the run.
    """
    waiting, lock = iter(questions), threading.Lock()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        worker = _Worker(service, folder / f"worker{number}")
        try:
            while not failed and not enough():
                with lock:
                    question = next(waiting, None)
                if question is None:
                    break
                answer = worker.ask(question, limit(question))
                with lock:
                    take(question, answer)
        except BaseException as error:  # noqa: B036 - raised again below, in the main thread
            failed.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as error:
        failed.append(error)
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


class _Worker:
    """One process and its replacements."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service, self._folder = service, folder
        self._process: Any = None

    def ask(self, question: Any, limit: float) -> Any:
        """Return the answer, or Lost."""
        if self._process is None:
            self._start()
        start, news, (_, used) = time.monotonic(), "", self._state()
        try:
            self._connection.send(question)
            while True:
                while not self._connection.poll(1.0):
                    taken = time.monotonic() - start
                    if taken > limit and (taken > PATIENCE * limit or not self._has_starved(limit, used)):
                        self.close()
                        return Lost(HANG, f"longer than {limit:g} s", news, taken)
                kind, content = self._connection.recv()
                if kind == _ANSWER:
                    return content
                news = content
        except (EOFError, OSError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            return Lost(SIGNAL, f"the process ended: {name}", news, time.monotonic() - start)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = theirs, self._service, self._folder
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(START_LIMIT):
            raise RuntimeError(f"a process did not start within {START_LIMIT:g} s")
        try:
            self._connection.recv()
        except EOFError:
            log = self._folder.with_suffix(".log").read_text(errors="replace")
            raise RuntimeError(f"a process did not start:\n{log}") from None

    def _has_starved(self, limit: float, used_before: float) -> bool:
        """Whether the process could run, but other programs have left it less than `limit` s of a core."""
        running, used = self._state()
        return running and used - used_before < limit

    def _state(self) -> tuple[bool, float]:
        """Whether a thread is ready to run, and seconds of a core used; where the system tells."""
        place = Path(f"/proc/{self._process.pid}")
        try:
            times = (place / "stat").read_text().rpartition(")")[2].split()[11:13]
            threads = [(task / "stat").read_text().rpartition(")")[2] for task in (place / "task").iterdir()]
        except OSError:
            return False, 0.0
        running = any(state.split()[0] == "R" for state in threads)
        return running, sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection, service: Service, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.simplefilter("ignore")
    service.start()
    connection.send((_NEWS, "ready"))
    if service.memory is not None:
        _limit_memory(service.memory)
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(
            (_ANSWER, service.answer(question, folder, lambda text: connection.send((_NEWS, text))))
        )


def _limit_memory(more: int) -> None:
    """Allow so many bytes more than what is mapped now, where the system can tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))
