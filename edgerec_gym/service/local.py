"""A service in a thread of this process, for studies and tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgerec_gym.device.link_settings import Phone
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.service.server import (
    FeedServer,
    ServeSettings,
    address,
    bind,
    secret_of,
    serve_worker,
)

START_SECONDS = 120.0  # kernels may have to be compiled first


@dataclass(frozen=True)
class LocalService:
    """Where a service is, and the secret of its tokens."""

    url: str
    port: int
    secret: bytes

    def phone(self, user: int, device: str = "phone-1") -> Phone:
        """Return a phone that may speak for a user."""
        return Phone(self.url, device, make_token(self.secret, device, user))


@contextmanager
def local_service(
    scenario: str, state: Path, *, users: str = "synthetic", **settings: object
) -> Iterator[LocalService]:
    """Serve a scenario on a free port of this machine until the context ends.

    Args:
        scenario: a shipped scenario or a folder.
        state: folder of what the service keeps.
        users: "synthetic" or "learned".
        **settings: further fields of :class:`~edgerec_gym.service.server.ServeSettings`.

    Raises:
        InputError: the service cannot start.
    """
    chosen = replace(ServeSettings(scenario, state, port=0, users=users), **settings)  # type: ignore[arg-type]
    listening = bind(chosen.host, 0)
    port = listening.getsockname()[1]
    ready, servers, errors = threading.Event(), [], []  # type: ignore[var-annotated]

    def run() -> None:
        try:
            serve_worker(chosen, listening, [port], 0, ready.set, servers.append)
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="local service", daemon=True)
    thread.start()
    ready.wait(START_SECONDS)
    if errors or not servers:
        listening.close()
        raise errors[0] if errors else InputError(f"the service of {scenario!r} did not start in time")
    server: FeedServer = servers[0]
    try:
        yield LocalService(address(chosen.host, port), port, secret_of(state, chosen.secret))
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
