"""Several processes that serve, and the one that watches them.

The watching process holds the listening sockets: while a worker that died is started again, connections to it
wait instead of being refused.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import connection
from types import FrameType
from typing import Any

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import only_writer
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.server import (
    SIGNALS,
    FeedServer,
    ServeSettings,
    bind,
    check_layout,
    secret_of,
    serve_worker,
)

READY, WRONG = "ready", "wrong"
SHORT_LIFE = 10.0  # seconds below which a worker is started again only after a pause
PAUSES = (0.5, 8.0)  # seconds, the first and the longest
END_SECONDS = 20.0  # for workers to end

_log = logging.getLogger(__name__)


def serve(settings: ServeSettings, tell: Callable[[list[int]], object]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: what to serve.
        tell: called with the workers' ports when all of them accept connections.

    Raises:
        InputError: something cannot be used, or another process serves from the state folder.
    """
    config = Scenario.load(settings.scenario).config.digest()
    with ExitStack() as stack:
        stack.enter_context(only_writer(settings.state))
        check_layout(settings, config)
        secret_of(settings.state, settings.secret)  # made once, before the workers read it
        listening: list[socket.socket] = []
        for worker in range(settings.workers):
            port = settings.port + worker if settings.port else 0
            listening.append(stack.enter_context(bind(settings.host, port)))
        ports = [one.getsockname()[1] for one in listening]
        if settings.workers == 1:
            serve_worker(settings, listening[0], ports, 0, lambda: tell(ports))
        else:
            Supervisor(settings, listening, ports).run(lambda: tell(ports))


class Worker:
    """A process that serves, started again when it has died.

    Attributes:
        process: the process that runs now.
        told: what it tells: READY, or WRONG and why.
    """

    def __init__(
        self, settings: ServeSettings, listening: socket.socket, ports: list[int], number: int
    ) -> None:
        self._arguments = settings, listening, ports, number
        self.number = number
        self._pause = PAUSES[0]
        self.ready = False
        self.start_at = 0.0  # when it may be started
        self.process: Any = None
        self.told: Any = None

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self.told, tells = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_run, args=(*self._arguments, tells), name=f"worker-{self.number}"
        )
        self.process.start()
        tells.close()
        self._started, self.ready = time.monotonic(), False

    def ended(self) -> None:
        """Let go of a process that has died, and say when the next one may start."""
        now = time.monotonic()
        lived = now - self._started
        self._pause = PAUSES[0] if lived > SHORT_LIFE else min(2 * self._pause, PAUSES[1])
        self.start_at = now if lived > SHORT_LIFE else now + self._pause
        self.ready = False
        self.process.join()
        _log.warning(
            "worker %d has ended with code %s and is started again", self.number, self.process.exitcode
        )
        self.let_go()

    def let_go(self) -> None:
        """Close what belonged to a process that has ended."""
        self.process.close()
        self.told.close()
        self.process = self.told = None


class Supervisor:
    """Starts the workers, starts them again when they die, and ends them.

    Args:
        settings: what to serve.
        listening: a socket for each worker.
        ports: of the workers.
    """

    def __init__(self, settings: ServeSettings, listening: list[socket.socket], ports: list[int]) -> None:
        self._workers = [Worker(settings, one, ports, number) for number, one in enumerate(listening)]
        self._wake_read, self._wake_write = os.pipe()
        self._ending = False
        self._served = False  # whether all have served at once

    def run(self, ready: Callable[[], object]) -> None:
        """Serve until a signal; `ready` is called once, when all workers accept connections.

        Raises:
            InputError: a worker cannot serve.
        """
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            while not self._ending:
                self._start_due()
                self._wait()
                if not self._served and all(worker.ready for worker in self._workers):
                    self._served = True
                    ready()
        finally:
            self._end_workers()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._ending = True
        os.write(self._wake_write, b"x")

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and time.monotonic() >= worker.start_at:
                worker.start()

    def _wait(self) -> None:
        """Wait until a worker tells something or dies, one may be started again, or a signal comes."""
        waiting: dict[Any, Worker] = {}
        for worker in self._workers:
            if worker.process is not None:
                waiting[worker.process.sentinel] = worker
                if not worker.ready:
                    waiting[worker.told] = worker
        due = [worker.start_at for worker in self._workers if worker.process is None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for found in connection.wait([*waiting, self._wake_read], timeout):
            about = waiting.get(found)
            if about is None or about.process is None:  # a signal, or a process that was let go just now
                continue
            self._hear(about)
            if found == about.process.sentinel and not self._ending:
                about.ended()
                if not self._served:
                    raise InputError(f"worker {about.number} has ended before it could serve")

    def _hear(self, worker: Worker) -> None:
        """Hear what a worker tells; InputError if it is that it cannot serve, and none has served yet."""
        try:
            while worker.told.poll():
                what, why = worker.told.recv_bytes().decode().split(" ", 1)
                if what == WRONG and not self._served:
                    raise InputError(why)
                if what == WRONG:  # what it reads has changed; the others serve on
                    _log.error("worker %d cannot serve: %s", worker.number, why)
                worker.ready = what == READY
        except EOFError:
            pass  # it has died, as its sentinel tells

    def _end_workers(self) -> None:
        running = [worker for worker in self._workers if worker.process is not None]
        for worker in running:
            worker.process.terminate()
        deadline = time.monotonic() + END_SECONDS
        for worker in running:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                _log.error("worker %d does not end and is killed", worker.number)
                worker.process.kill()
                worker.process.join()
            worker.let_go()


def _run(
    settings: ServeSettings, listening: socket.socket, ports: list[int], worker: int, tells: Any
) -> None:
    """Serve as a worker: the main function of its process."""

    def tell(what: str, why: str = "") -> None:
        try:
            tells.send_bytes(f"{what} {why}".encode())
        except OSError:
            pass  # the watching process has gone

    parent = multiprocessing.parent_process()

    def end_with_parent(server: FeedServer) -> None:
        def watch() -> None:
            if parent is not None:
                parent.join()
                server.should_exit = True

        threading.Thread(target=watch, daemon=True).start()

    try:
        serve_worker(settings, listening, ports, worker, lambda: tell(READY), end_with_parent)
    except (InputError, MissingExtraError) as error:
        tell(WRONG, str(error))
        raise SystemExit(2) from None
