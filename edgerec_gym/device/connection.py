"""A WebSocket to the cloud that counts its bytes. Needs the extra `edge`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from edgerec_gym.device.traffic import Traffic
from edgerec_gym.protocol.messages import MOST_BYTES, SUBPROTOCOL

CLOSE_SECONDS = 1.0  # for the closing handshake
FAILURES = (OSError, WebSocketException, TimeoutError, EOFError)  # of a network and of whoever answers
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())
_logger.propagate = False  # a bad network is no news for the terminal

__all__ = ["FAILURES", "Closed", "Connection", "opened"]
Closed = ConnectionClosed


class _CountingTransport:
    """A transport that counts what is written to it."""

    def __init__(self, transport: asyncio.Transport, traffic: Traffic) -> None:
        self._transport, self._traffic = transport, traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._traffic.socket["up"] += len(data)
        self._transport.write(data)


class Connection(ClientConnection):
    """A connection of the websockets library whose bytes are counted."""

    def __init__(self, *args: Any, traffic: Traffic, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.traffic = traffic

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count what is sent from now on."""
        counting = _CountingTransport(cast(asyncio.Transport, transport), self.traffic)
        super().connection_made(cast(asyncio.BaseTransport, counting))

    def data_received(self, data: bytes) -> None:
        """Count what arrives."""
        self.traffic.socket["down"] += len(data)
        super().data_received(data)


class Opening(connect):
    """A connection that is being opened. It follows no redirection of HTTP: the protocol has its own."""

    made: list[Connection]

    def abort(self) -> None:
        """Close the socket, also if opening was given up half-way."""
        for connection in self.made:
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def opened(
    url: str, traffic: Traffic, open_seconds: float, ping_seconds: float, silent_seconds: float
) -> Opening:
    """Return a context manager that opens a connection.

    Args:
        url: ws:// or wss:// address.
        traffic: takes the bytes.
        open_seconds: time for the opening handshake.
        ping_seconds: time between signs of life.
        silent_seconds: a connection is given up if a sign of life is not answered for so long.
    """
    made: list[Connection] = []

    def make(*args: Any, **kwargs: Any) -> Connection:
        made.append(Connection(*args, traffic=traffic, **kwargs))
        return made[-1]

    opening = Opening(
        url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        compression=None,  # so that the bytes of a frame are those of its message
        user_agent_header=None,
        proxy=None,
        open_timeout=open_seconds,
        ping_interval=ping_seconds,
        ping_timeout=silent_seconds,
        close_timeout=CLOSE_SECONDS,
        max_size=MOST_BYTES,
        logger=_logger,
        create_connection=cast(Any, make),
    )
    opening.made = made
    return opening
