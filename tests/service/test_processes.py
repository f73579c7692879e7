"""The service as processes: started by the command, ended by signals, killed, spread over workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from command_line import fails_with, run_well
from places import ROOT
from small_feed_service import CONFIG, answer, end, request
from websockets.sync.client import connect

from edgerec_gym.device.description import feature_digest
from edgerec_gym.protocol.messages import (
    SUBPROTOCOL,
    Ack,
    Delta,
    Ended,
    Hello,
    Page,
    Refuse,
    Welcome,
    encode,
    from_cloud,
)
from edgerec_gym.service.server import ServeSettings, check_layout, secret_of

LINE = re.compile(r"serving lite: (ws://127\.0\.0\.1:(\d+)/v1/feed)(?: and ports to (\d+))?\n")
SERVE = [sys.executable, "-m", "edgerec_gym.cli", "serve", "lite", "--port", "0"]


@contextlib.contextmanager
def serving(state: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command `edgerec serve`, when it has told its address."""
    with subprocess.Popen(
        [*SERVE, "--state", str(state), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            found = LINE.fullmatch(line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


class Phone:
    """Speaks for a user, with a token that the command makes."""

    def __init__(self, state: Path, user: int, session: int) -> None:
        token = run_well("token", "--state", state, "--device", "phone", "--user", user).strip()
        self.hello = Hello((1, 2), "phone", token, user, session, 0, 8, 0, feature_digest(CONFIG))

    @contextlib.contextmanager
    def connected(self, url: str) -> Iterator[Any]:
        """A function that says something and returns the reply, and the first reply."""
        protocols: Any = [SUBPROTOCOL]
        with connect(url, subprotocols=protocols, compression=None) as connection:

            def ask(message: Any) -> Any:
                connection.send(encode(message))
                data = connection.recv(timeout=20)
                assert isinstance(data, bytes)
                return from_cloud(data)

            yield ask, ask(self.hello)


def deltas(first: int, size: int) -> Delta:
    return Delta(first, [answer(number % 100) for number in range(first, first + size)])


def test_a_signal_ends_the_service_well_and_it_goes_on_later(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving(state) as (process, url):
        phone = Phone(state, 3, 1)
        with phone.connected(url) as (ask, welcome):
            assert isinstance(welcome, Welcome) and welcome.acknowledged == 0
            assert ask(deltas(0, 4)) == Ack(4)
            page = ask(request(0, 4))
            assert isinstance(page, Page) and page.answers == 4
            ends_well(process, signal.SIGTERM)
    assert stat.S_IMODE((state / "secret").stat().st_mode) == 0o600
    with serving(state) as (process, url):
        with phone.connected(url) as (ask, welcome):
            assert welcome.acknowledged == 4
            assert ask(request(0, 4)) == page
            assert ask(end(4)) == Ended(4)
            fails_with("another process is writing to", "serve", "lite", "--state", state, "--port", "0")
            ends_well(process, signal.SIGINT)


def ends_well(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    assert process.wait(30) == 0
    assert process.stderr is not None and process.stderr.read() == ""


def test_a_killed_service_loses_nothing_acknowledged(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, url):
        phone = Phone(tmp_path, 3, 1)
        with phone.connected(url) as (ask, _):
            acknowledged, pages = 0, []
            for number in range(4):
                acknowledged = ask(deltas(acknowledged, 3)).answers
                pages.append(ask(request(number, acknowledged)))
            process.kill()
            process.wait(30)
    with serving(tmp_path) as (_process, url), phone.connected(url) as (ask, welcome):
        assert welcome.acknowledged == acknowledged == 12
        assert [ask(request(number, 0)) for number in range(4)] == pages


def test_workers_serve_their_own_users_and_are_started_again(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", 2) as (process, url):
        odd = Phone(tmp_path, 1, 1)
        with odd.connected(url) as (_, refusal):
            assert isinstance(refusal, Refuse) and refusal.code == "elsewhere"
        with odd.connected(refusal.allowed) as (ask, welcome):
            assert isinstance(welcome, Welcome)
            assert ask(deltas(0, 2)) == Ack(2)
        (worker,) = (pid for pid in children(process.pid) if holds(pid, tmp_path / "worker-1.db"))
        os.kill(worker, signal.SIGKILL)
        # Its socket stays open, so the connection waits for the next process.
        protocols: Any = [SUBPROTOCOL]
        with connect(refusal.allowed, subprotocols=protocols, open_timeout=60) as connection:
            connection.send(encode(odd.hello))
            data = connection.recv(timeout=30)
            assert isinstance(data, bytes) and from_cloud(data).acknowledged == 2  # type: ignore[union-attr]
        with Phone(tmp_path, 2, 2).connected(url) as (_, welcome):
            assert isinstance(welcome, Welcome)
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "worker 1 has ended with code -9 and is started again" in process.stderr.read()
    fails_with("holds the sessions of 2 workers", "serve", "lite", "--state", tmp_path, "--workers", "3")


def test_workers_end_when_the_process_that_watches_them_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", 2) as (process, _):
        workers = [pid for pid in children(process.pid) if holds(pid, tmp_path / "secret", tmp_path)]
        assert len(workers) == 2
        process.kill()
        process.wait(30)
        until = time.monotonic() + 30
        while any(map(runs, workers)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(runs, workers))


def test_with_redis_any_worker_serves_anyone(tmp_path: Path, redis_url: str) -> None:
    with serving(tmp_path, "--workers", 2, "--redis", redis_url) as (process, url):
        port = int(url.split(":")[2].split("/")[0])
        others = {p for pid in children(process.pid) for p in listening(pid)} - {port}
        assert len(others) == 1
        other = url.replace(str(port), str(others.pop()))
        phone = Phone(tmp_path, 1, 90_000_001)
        with phone.connected(url) as (ask, _welcome):
            assert ask(deltas(0, 3)) == Ack(3)
            page = ask(request(0, 3))
        with phone.connected(other) as (ask, welcome):
            assert welcome.acknowledged == 3
            assert ask(request(0, 0)) == page


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()]


def holds(pid: int, *paths: Path) -> bool:
    """Whether a process has one of the files, or something in one of the folders, open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = Path(os.readlink(link))
            if any(target == path or path in target.parents for path in paths):
                return True
    return False


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def listening(pid: int) -> set[int]:
    """Ports on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--users", "all"], "'all' is not one of 'learned', 'synthetic'"),
        (["--port", "65535", "--workers", "2"], "--port 65535 leaves no ports for 2 workers"),
        (["--redis", "redis://127.0.0.1:1", "--port", "0"], "redis://127.0.0.1:1 cannot be used"),
        (["--models", "/nothing/here", "--port", "0"], "/nothing/here/device.json does not exist"),
        (["--logs", "logs", "--redis", "redis://127.0.0.1:1"], "--logs needs the sessions in SQLite"),
        (["--secret", "/nothing/here", "--port", "0"], "/nothing/here does not exist"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    fails_with(message, "serve", "lite", "--state", tmp_path / "state", *options)


def test_beyond_this_machine_needs_a_host_and_warns(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*SERVE, "--state", str(tmp_path), "--host", "0.0.0.0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "warning: 0.0.0.0 can be reached from other machines" in process.stderr.readline()
        assert process.stdout.readline().startswith("serving lite: ws://0.0.0.0:")
        process.terminate()
        assert process.wait(30) == 0


def test_a_secret_is_made_once_and_short_ones_are_refused(tmp_path: Path) -> None:
    made = secret_of(tmp_path, None)
    assert len(made) == 64 and secret_of(tmp_path, None) == made
    (tmp_path / "short").write_bytes(b"short")
    fails_with(
        "holds 5 bytes; a secret needs at least 16",
        *("token", "--state", tmp_path, "--device", "d", "--user", "1", "--secret", tmp_path / "short"),
    )
    fails_with("secret does not exist", "token", "--state", tmp_path / "n", "--device", "d", "--user", "1")
    fails_with("is not a name", "token", "--state", tmp_path, "--device", "a.b", "--user", "1")


def test_a_state_folder_belongs_to_one_feed(tmp_path: Path) -> None:
    from edgerec_gym.errors import InputError

    settings = ServeSettings("lite", tmp_path)
    check_layout(settings, "a" * 64)
    check_layout(settings, "a" * 64)
    with pytest.raises(InputError, match="holds the sessions of another feed"):
        check_layout(settings, "b" * 64)
