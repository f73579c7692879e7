"""A small service for tests: pages that tell what they were built from, and what phones say to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.config import preset
from edgerec_gym.device.description import feature_digest
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import Answer, Delta, End, Hello, Page, PageRequest
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.service.exchange import FeedService
from edgerec_gym.service.sqlite_store import SqliteStore
from edgerec_gym.service.store import SessionStore

CONFIG = preset("lite")[0]
N_ITEMS, N_USERS = 1000, 50
SECRET = b"a secret of tests, long enough"
USER = 7


class SmallPages:
    """Pages whose items are a function of everything that they are built from."""

    config = CONFIG
    n_items, n_users = N_ITEMS, N_USERS

    def __init__(self) -> None:
        self.built = 0

    def features(self, user: int) -> np.ndarray:
        if not 0 <= user < N_USERS:
            raise InputError(f"no user {user}")
        return np.full(CONFIG.n_user_features, user / N_USERS, np.float32)

    def build(self, session: int, user: int, request: PageRequest, answers: Sequence[Answer]) -> Page:
        self.built += 1
        told = [session % 2**16, user, request.page, *request.placed, *(a.item for a in answers)]
        items = np.array(told, np.int32).tobytes()
        return Page(request.page, len(answers), items, b"pool", b"", b"", bytes(20), request.coding)


def small_service(store: SessionStore, **settings: Any) -> FeedService:
    return FeedService(SmallPages(), store, SECRET, **settings)


def hello(session: int = 1, **changes: Any) -> Hello:
    device, user = changes.pop("device", "phone"), changes.pop("user", USER)
    told = dict(
        versions=(1, 2),
        device=device,
        token=make_token(SECRET, device, user),
        user=user,
        session=session,
        day=3,
        hour=9,
        answers=0,
        features=feature_digest(CONFIG),
    )
    return Hello(**(told | changes))  # type: ignore[arg-type]


def answer(item: int, **changes: Any) -> Answer:
    """An answer to a card without a click."""
    told = dict(item=item, page=0, age=item % 50, action=1, exposure=bytes([12, 0, 84, 42, 0, 0]))
    return Answer(**(told | changes))  # type: ignore[arg-type]


def delta(first: int, end: int) -> Delta:
    return Delta(first, [answer(number) for number in range(first, end)])


def request(page: int = 0, answers: int = 0, **changes: Any) -> PageRequest:
    told = dict(page=page, slot=answers, answers=answers, placed=[], reason="request")
    return PageRequest(**(told | changes))  # type: ignore[arg-type]


def end(answers: int, placed: Sequence[int] = ()) -> End:
    return End(answers, [answer(item, exposure=b"") for item in placed])


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Running]:
    """A service behind a real server on 127.0.0.1, in a thread; ended gracefully."""
    server = Running(folder, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Running:
    """A server in a thread: `url` is where phones connect, `app` the application."""

    def __init__(self, folder: Path, limits: Any = None, model_seconds: float = 2.0, **settings: Any) -> None:
        self._folder, self._limits, self._settings = folder, limits, settings
        self._model_seconds = model_seconds
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.fault: BaseException | None = None

    async def _run(self) -> None:
        from edgerec_gym.service.app import make_app
        from edgerec_gym.service.metrics import Metrics
        from edgerec_gym.service.server import FeedServer, bind

        try:
            metrics = Metrics()
            store = SqliteStore(self._folder / "service.db", metrics.committed)
            self.service = small_service(store, **self._settings)
            self.app = make_app(self.service, metrics, self._limits, model_seconds=self._model_seconds)
            self.socket = bind("127.0.0.1", 0)
            self.socket_name = self.socket.getsockname()
            self.port = self.socket_name[1]
            self.server = FeedServer(self.app, self._ready.set)
            await self.server.serve([self.socket])
            await store.close()
        except BaseException as error:
            self.fault = error
            self._ready.set()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)
        if self.fault is not None:
            raise self.fault
        self.http = f"http://127.0.0.1:{self.port}"
        self.url = f"ws://127.0.0.1:{self.port}/v1/feed"

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.fault is not None:
            raise self.fault
