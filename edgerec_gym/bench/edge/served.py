"""`edgerec serve` as a child process: its memory, its processor time, its counters, and kill -9."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder

START_SECONDS = 120.0  # the first start may compile kernels
END_SECONDS = 40.0
TURN_SECONDS = 0.1  # of being held and let go
TRIES = 5  # to find free ports


class Served:
    """A service that this process has started.

    Args:
        scenario: what it serves.
        state: its folder.
        workers: number of its processes.
        users: "synthetic" or "learned".

    Attributes:
        url: address of its first worker.
        ports: of its workers.

    Raises:
        InputError: it has not begun to serve; tells its own words.
    """

    def __init__(self, scenario: str, state: Path, workers: int, users: str = "synthetic") -> None:
        self.state, self.workers = make_folder(state), workers
        self._log = state / "service.log"
        for attempt in range(TRIES):
            self.ports = _free_ports(workers)
            self.url = f"ws://127.0.0.1:{self.ports[0]}/v1/feed"
            command = [sys.executable, "-m", "edgerec_gym.cli", "serve", scenario]
            options = ["--state", state, "--port", self.ports[0], "--workers", workers, "--users", users]
            with self._log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*command, *map(str, options)], stdout=subprocess.PIPE, stderr=log
                )
            if self._serves():
                return
            self.stop()
            told = self._log.read_text(errors="replace").strip().splitlines() or ["no reason is given"]
            if "cannot listen" not in told[-1] or attempt == TRIES - 1:
                raise InputError(f"the service has not begun: {told[-1].removeprefix('error: ')}")

    def _serves(self) -> bool:
        """Wait for the line that tells that it serves."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        return bool(readable) and self.process.stdout.readline().startswith(b"serving ")

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def processes(self) -> list[int]:
        """Return the processes that serve: the workers, or the only process."""
        return _workers(self.process.pid) if self.workers > 1 else [self.process.pid]

    def memory(self) -> float:
        """Return the memory of the processes that serve, bytes (RSS)."""
        return sum(map(memory, self.processes()))

    def processor_seconds(self) -> float:
        """Return the processor time of the processes that serve."""
        return sum(map(processor_seconds, self.processes()))

    def kill_workers(self) -> int:
        """Kill all workers at once with SIGKILL; returns their number."""
        workers = _workers(self.process.pid)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        return len(workers)

    @contextmanager
    def held_to(self, share: float) -> Iterator[None]:
        """Let the processes that serve have a share of the time only, by SIGSTOP and SIGCONT in turns."""
        over = threading.Event()

        def hold() -> None:
            while not over.is_set():
                self._tell(signal.SIGSTOP)
                over.wait(TURN_SECONDS * (1 - share))
                self._tell(signal.SIGCONT)
                over.wait(TURN_SECONDS * share)

        holding = threading.Thread(target=hold)
        holding.start()
        try:
            yield
        finally:
            over.set()
            holding.join()
            self._tell(signal.SIGCONT)

    def _tell(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def counters(self) -> dict[str, float]:
        """Return the counters of all workers, added up; empty where one does not answer."""
        found: dict[str, float] = {}
        for port in self.ports:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                    text = answer.read(2**22).decode()
            except OSError:
                continue
            for line in text.splitlines():
                if not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    found[name] = found.get(name, 0.0) + float(value)
        return found

    def stop(self) -> None:
        """End it well; kill it if it does not end."""
        if self.lives:
            self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def quantile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float:
    """Return a quantile of what a histogram has counted since, linear within its buckets; nan for none."""
    steps = []
    for key, count in after.items():
        if key.startswith(f'{name}_bucket{{le="'):
            edge = float(key.split('"')[1])
            steps.append((edge, count - before.get(key, 0.0)))
    steps.sort()
    if not steps or not steps[-1][1]:
        return float("nan")
    wanted, low, below = share * steps[-1][1], 0.0, 0.0
    for edge, count in steps:
        if count >= wanted:
            if edge == float("inf"):
                return low
            return low + (edge - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = edge, count
    return low


def memory(process: int) -> float:
    """Return the resident memory of a process, bytes; nan where the system does not tell."""
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return float("nan")


def processor_seconds(process: int) -> float:
    """Return the processor time of a process, nan where the system does not tell."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return float("nan")


def raise_open_files(files: int) -> None:
    """Let this process and its children have so many open files.

    Raises:
        InputError: the system allows fewer.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise InputError(f"{files} open files are needed; this system allows {hard}: take fewer --phones")
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def _free_ports(count: int) -> list[int]:
    """Return ports one after the other that nobody listens on."""
    for _ in range(100):
        with ExitStack() as stack:
            one = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            first = one.getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return list(range(first, first + count))
    raise InputError(f"no {count} free ports one after the other are found")


def _workers(parent: int) -> list[int]:
    """Return the processes that a watching process has started to serve."""
    found = []
    try:
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            children = [int(child) for child in file.read().split()]
    except OSError:
        raise InputError("this system does not tell the processes of a service (no /proc)") from None
    for child in children:
        try:
            with open(f"/proc/{child}/cmdline", "rb") as file:
                if b"spawn_main" in file.read():
                    found.append(child)
        except OSError:
            pass  # it has ended meanwhile
    return found
