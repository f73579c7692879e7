"""The service as processes: one that serves, or several behind ports of their own with one that watches them.

With several workers and SQLite, users are spread over the workers by their number, and each worker keeps its
users' sessions in a file of its own; a phone that comes to another worker is told the right address. With
Redis any worker serves any user.

SIGTERM and Ctrl-C end the service: no new connections, what is in work is committed and answered, phones are
told to come back later.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from edgerec_gym.documents import Document, read_document
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.protocol.messages import MOST_BYTES, PageRequest
from edgerec_gym.protocol.tokens import new_secret, read_secret
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.app import PATH, make_app
from edgerec_gym.service.exchange import FeedService
from edgerec_gym.service.metrics import Metrics
from edgerec_gym.service.models import Models
from edgerec_gym.service.pages import PageBuilder
from edgerec_gym.service.phones import Limits
from edgerec_gym.service.redis_store import RedisStore
from edgerec_gym.service.session_log import SessionLog
from edgerec_gym.service.sqlite_store import SqliteStore
from edgerec_gym.service.store import SessionStore

try:
    import uvicorn
except ImportError:
    raise MissingExtraError("the service", "edge") from None

SECRET = "secret"  # file in the state folder
LAYOUT = "service.json"  # file in the state folder
WILDCARDS = ("", "0.0.0.0", "::")  # hosts that mean every address of the machine
BACKLOG = 2048
END_SECONDS = 8  # for connections that do not close
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeSettings:
    """What to serve, and how.

    Attributes:
        scenario: a shipped scenario or a folder.
        state: folder of what must survive: sessions, the secret.
        host, port: address of the first worker; port 0 lets the system choose.
        users: whose users the service knows, "synthetic" or "learned".
        workers: number of processes, on ports one after the other.
        redis: address of a Redis that keeps the sessions; None for SQLite.
        models: folder of the device model to offer; None for none.
        secret: file of the secret of the tokens; None for the one in the state folder.
        logs: folder that logs of ended sessions are written to, `worker-0` and so on; None for none.
        limits: what phones may do.
    """

    scenario: str
    state: Path
    host: str = "127.0.0.1"
    port: int = 8765
    users: str = "synthetic"
    workers: int = 1
    redis: str | None = None
    models: Path | None = None
    secret: Path | None = None
    logs: Path | None = None
    limits: Limits = field(default_factory=Limits)


class Layout(Document):
    """How a state folder is laid out, in service.json.

    Attributes:
        workers: number of files that users are spread over.
        config: digest of the feed's config.
    """

    workers: int
    config: str


class FeedServer(uvicorn.Server):
    """Serves an application of :func:`~edgerec_gym.service.app.make_app` until a signal, then ends well.

    Args:
        app: the application.
        ready: called when connections are accepted.
    """

    def __init__(self, app: Any, ready: Callable[[], object] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="on",
                ws="websockets-sansio",
                ws_max_size=2 * MOST_BYTES,  # what is larger than MOST_BYTES is refused in our own words
                ws_per_message_deflate=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=END_SECONDS,
            )
        )
        self._phones = app.state.phones
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, finish what is in work, and close."""
        for server in self.servers:
            server.close()
        await self._phones.end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on SIGINT and SIGTERM; unlike in the base class, none is left for afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; InputError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port}: {reason}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    return host in ("localhost", "::1") or host.startswith("127.")


def address(host: str, port: int) -> str:
    """Return where phones connect to."""
    return f"ws://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


def secret_of(state: Path, file: Path | None) -> bytes:
    """Return the secret of the tokens; one is made in the state folder if no file is given."""
    if file is not None:
        return read_secret(file)
    path = make_folder(state) / SECRET
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.touch(0o600)
            temporary.write_bytes(new_secret())
    return read_secret(path)


def check_layout(settings: ServeSettings, config: str) -> None:
    """Record how the state folder is laid out; InputError if it is laid out for something else."""
    file = make_folder(settings.state) / LAYOUT
    if settings.redis is not None:
        return
    if not file.exists():
        write_json(file, {"workers": settings.workers, "config": config})
        return
    found = read_document(file, Layout)
    if found.workers != settings.workers:
        raise InputError(
            f"{settings.state} holds the sessions of {found.workers} workers; with {settings.workers} users "
            f"would not find theirs: use --workers {found.workers}, another --state, or --redis"
        )
    if found.config != config:
        raise InputError(f"{settings.state} holds the sessions of another feed; choose another --state")


class Routing:
    """Which worker serves a user.

    Args:
        settings: of the service.
        ports: of the workers.
        worker: number of this one.
    """

    def __init__(self, settings: ServeSettings, ports: list[int], worker: int) -> None:
        self._host, self._ports, self._worker = settings.host, ports, worker

    def __call__(self, user: int, reached: str) -> str | None:
        """Return the address that serves a user, None if it is this one; `reached`: the phone's host."""
        worker = user % len(self._ports)
        if worker == self._worker:
            return None
        return address(reached if self._host in WILDCARDS else self._host, self._ports[worker])


def serve_worker(
    settings: ServeSettings,
    listening: socket.socket,
    ports: list[int],
    worker: int,
    ready: Callable[[], object],
    stop: Callable[[FeedServer], object] | None = None,
) -> None:
    """Serve until a signal comes.

    Args:
        settings: of the service.
        listening: where phones connect.
        ports: of all workers.
        worker: number of this one.
        ready: called when connections are accepted.
        stop: given the server, to end it by something else than a signal.

    Raises:
        InputError: scenario, models, secret or store cannot be used.
    """
    scenario = Scenario.load(settings.scenario)
    builder = PageBuilder(scenario, settings.users)
    builder.build(0, 0, PageRequest(0, 0, 0, [], "start"), [])  # loads the kernels before phones wait for it
    models = None if settings.models is None else Models(settings.models, builder.config)
    secret = secret_of(settings.state, settings.secret)
    metrics = Metrics()

    async def run() -> None:
        store: SessionStore
        log: SessionLog | None = None
        if settings.redis is not None:
            store = await RedisStore.open(settings.redis, metrics.committed)
        else:
            store = SqliteStore(settings.state / f"worker-{worker}.db", metrics.committed)
            if settings.logs is not None:
                folder = settings.logs / f"worker-{worker}"
                log = SessionLog(folder, store, scenario, builder.features, settings.users)
                await log.begin()
        try:
            spread = settings.redis is None and len(ports) > 1
            elsewhere = Routing(settings, ports, worker) if spread else None
            service = FeedService(builder, store, secret, models, elsewhere)
            server = FeedServer(make_app(service, metrics, settings.limits), ready)
            if stop is not None:
                stop(server)
            logging_sessions = None if log is None else asyncio.create_task(log.run())
            await server.serve([listening])
            if log is not None and logging_sessions is not None:
                await log.end(logging_sessions)
        finally:
            await store.close()

    asyncio.run(run())
