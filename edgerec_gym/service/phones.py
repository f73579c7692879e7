"""The phones that are connected: their sockets, limits, and how a connection ends.

Messages of a phone are answered one after the other, so that it waits for its own commits. Pages and ends
wait beside them, a few at once, since they may name answers that come after them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from edgerec_gym.errors import MissingExtraError
from edgerec_gym.protocol.messages import (
    SUBPROTOCOL,
    End,
    FromPhone,
    PageRequest,
    Refuse,
)
from edgerec_gym.service.exchange import BUSY_SECONDS, Exchange, FeedService, Refused, Reply, decode, reply
from edgerec_gym.service.metrics import Metrics
from edgerec_gym.service.models import Models

try:
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError:
    raise MissingExtraError("the service", "edge") from None

CLOSE_CODES = {"version": 1002, "size": 1009, "malformed": 1007, "busy": 1013, "rate": 1013}
POLICY, ENDING, FAULT = 1008, 1012, 1011  # close codes of other refusals, of the service's end, of its faults
OFFER_SECONDS = 5.0  # for sending an offer
END_SECONDS = 5.0  # for what is in work when the service ends

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What phones may do.

    Attributes:
        connections: phones connected at once; others are refused with "busy".
        rate: messages a second of one connection in the long run.
        burst: messages of one connection at once.
        pending: pages and ends of one connection that are waited for at once.
        hello_seconds: time until the first Hello is accepted.
    """

    connections: int = 5000
    rate: float = 100.0
    burst: int = 500
    pending: int = 4
    hello_seconds: float = 30.0


class TokenBucket:
    """Lets messages through at a rate, and some at once.

    Args:
        rate: a second.
        burst: at once.
        now: the time, seconds.
    """

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._left = float(burst)

    def take(self, now: float) -> float:
        """Take one; returns 0, or the seconds until there is one again if there is none."""
        self._left = min(self._burst, self._left + max(0.0, now - self._now) * self._rate)
        self._now = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Phones:
    """All phones that are connected to this process.

    Args:
        service: what they share.
        metrics: where they are counted.
        limits: what they may do.
    """

    def __init__(self, service: FeedService, metrics: Metrics, limits: Limits) -> None:
        self.service, self.metrics, self.limits = service, metrics, limits
        self.ending = False
        self._connected: set[Phone] = set()

    async def serve(self, socket: WebSocket) -> None:
        """Serve a connection until it ends."""
        known = SUBPROTOCOL in socket.scope["subprotocols"]
        phone = Phone(socket, self)
        try:
            await socket.accept(subprotocol=SUBPROTOCOL if known else None)
            if not known:
                await phone.refuse(Refuse("version", "unknown subprotocol", SUBPROTOCOL))
                return
            if self.ending or len(self._connected) >= self.limits.connections:
                await phone.refuse(Refuse("busy", "too many phones are connected", str(BUSY_SECONDS)))
                return
            self._connected.add(phone)
            self.metrics.connections.inc()
            try:
                await phone.run()
            finally:
                self._connected.discard(phone)
                self.metrics.connections.dec()
        except WebSocketDisconnect:
            pass  # the phone has gone

    async def offer(self, models: Models) -> None:
        """Tell each phone of the model that its user is offered now."""

        async def tell(phone: Phone) -> None:
            model = models.for_user(phone.user)
            if model is None:
                return
            told = reply(model.offer)
            with suppress(TimeoutError):  # it does not read: it will hear of the model in its next Welcome
                async with asyncio.timeout(OFFER_SECONDS):
                    await phone.tell(told)

        await asyncio.gather(*(tell(phone) for phone in self._connected if phone.greeted))

    async def end(self) -> None:
        """Finish what is in work, and send all phones away."""
        self.ending = True
        await asyncio.gather(*(phone.end() for phone in self._connected))


class Phone:
    """One connection.

    Args:
        socket: the accepted socket.
        phones: all of them.
    """

    def __init__(self, socket: WebSocket, phones: Phones) -> None:
        self._socket, self._phones = socket, phones
        server = socket.scope.get("server") or ("127.0.0.1", None)
        self._exchange = Exchange(phones.service, server[0])
        self._bucket = TokenBucket(phones.limits.rate, phones.limits.burst, time.monotonic())
        self._waiting: set[asyncio.Task[None]] = set()
        self._asked: set[int] = set()  # numbers of the pages among them
        self._working = asyncio.Lock()  # held while a message is answered in its turn
        self._closed = False

    @property
    def greeted(self) -> bool:
        """Whether a Hello was accepted."""
        return self._exchange.hello is not None

    @property
    def user(self) -> int:
        """Number of the user; -1 before a Hello was accepted."""
        return -1 if self._exchange.hello is None else self._exchange.hello.user

    async def run(self) -> None:
        """Answer messages until the connection ends."""
        limits = self._phones.limits
        deadline = asyncio.get_running_loop().time() + limits.hello_seconds
        try:
            while not self._closed:
                if self.greeted:
                    data = await self._receive()
                else:
                    try:
                        async with asyncio.timeout_at(deadline):
                            data = await self._receive()
                    except TimeoutError:
                        await self.refuse(Refuse("order", "no Hello has come"))
                        return
                if data is None:
                    return
                await self._take(data)
        finally:
            await asyncio.gather(*self._waiting, return_exceptions=True)

    async def _receive(self) -> bytes | None:
        """Return the next message, None if the phone has gone; text becomes what cannot be decoded."""
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            self._closed = True
            return None
        data: bytes | None = event.get("bytes")
        return b"" if data is None else data

    async def _take(self, data: bytes) -> None:
        """Check a message, and answer it or let it wait."""
        try:
            seconds = self._bucket.take(time.monotonic())
            if seconds:
                raise Refused("rate", "too many messages", f"{max(seconds, 1):.0f}")
            message = decode(data)
        except Refused as refused:
            self._phones.metrics.count("in", "refused", len(data))
            await self.refuse(refused.message)
            return
        self._phones.metrics.count("in", message.kind, len(data))
        if isinstance(message, PageRequest) and message.page in self._asked:
            return  # it was sent again before its answer was ready: one answer serves both
        if isinstance(message, PageRequest | End) and self.greeted:
            while len(self._waiting) >= self._phones.limits.pending:
                await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
            if isinstance(message, PageRequest):
                self._asked.add(message.page)
            task = asyncio.create_task(self._answer(message))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        else:
            async with self._working:
                await self._answer(message)

    async def _answer(self, message: FromPhone) -> None:
        """Answer a message; whatever goes wrong here ends this connection only."""
        began = time.perf_counter()
        try:
            replies = await self._exchange.answer(message)
        except Refused as refused:
            await self.refuse(refused.message)
            return
        except Exception:
            _log.exception("a %s was not answered", type(message).__name__)
            self._phones.metrics.errors.inc()
            await self._close(FAULT)
            return
        finally:
            if isinstance(message, PageRequest):
                self._asked.discard(message.page)
        for told in replies:
            await self.tell(told)
        if isinstance(message, PageRequest):
            self._phones.metrics.pages.inc()
            self._phones.metrics.page_seconds.observe(time.perf_counter() - began)

    async def tell(self, told: Reply) -> None:
        """Send a message; nothing happens if the phone has gone."""
        if self._closed:
            return
        try:
            await self._socket.send_bytes(told.data)
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: closed meanwhile
            self._closed = True
            return
        self._phones.metrics.count("out", told.kind, len(told.data))

    async def refuse(self, refusal: Refuse) -> None:
        """Send a refusal, and close the connection where it ends it."""
        self._phones.metrics.refusals.labels(refusal.code).inc()
        await self.tell(reply(refusal))
        if self._exchange.closes(refusal):
            await self._close(CLOSE_CODES.get(refusal.code, POLICY))

    async def _close(self, code: int) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._socket.close(code)
        except (WebSocketDisconnect, RuntimeError):
            pass

    async def end(self) -> None:
        """Finish what is in work, tell the phone to come back later, and close."""
        try:
            async with asyncio.timeout(END_SECONDS):
                async with self._working:
                    await asyncio.gather(*self._waiting, return_exceptions=True)
                    refusal = Refuse("busy", "the service is ending", str(BUSY_SECONDS))
                    self._phones.metrics.refusals.labels(refusal.code).inc()
                    await self.tell(reply(refusal))
                    await self._close(ENDING)
        except TimeoutError:
            pass  # it does not read, or the disk hangs; the connection is cut
