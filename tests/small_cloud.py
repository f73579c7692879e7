"""A small, honest cloud in memory: the protocol, and every answer exactly once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress

import msgspec
import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.protocol.messages import (
    CHUNK,
    SUBPROTOCOL,
    VERSIONS,
    Ack,
    Answer,
    Delta,
    End,
    Ended,
    Hello,
    Message,
    ModelChunk,
    ModelFile,
    ModelOffer,
    ModelWant,
    Page,
    PageRequest,
    Refuse,
    Welcome,
    common_version,
    encode,
    from_phone,
)

FEATURES = "f" * 64
DIGEST = "d" * 64
USER = np.arange(4, dtype=np.float32).tobytes()
SESSION = PhoneSession(session=-7, user=3, day=2, hour=20, features=FEATURES)


def answer(number: int) -> Answer:
    """An answer that tells its number."""
    return Answer(number % 50, 0, number, number % 7, bytes([number % 85, 84]), b"", False, number % 5 == 0)


def page_of(request: PageRequest, answers: list[Answer]) -> Page:
    """A page that is a function of the request and of the answers, three rows of two features."""
    items = (np.arange(3) + sum(answer.item for answer in answers)).astype(np.int32)
    pool = np.full((3, 2), len(answers) / 1000, request.coding).tobytes()
    return Page(request.page, len(answers), items.tobytes(), pool, b"", b"", bytes(20), request.coding)


class SmallCloud:
    """What it has is what it has committed. It outlives its connections, and `start` after `close`."""

    def __init__(self, port: int = 0, versions: tuple[int, int] = VERSIONS) -> None:
        self.port, self.versions = port, versions
        self.answers: dict[int, list[Answer]] = defaultdict(list)
        self.pages: dict[tuple[int, int], bytes] = {}
        self.placed: dict[int, list[Answer]] = {}
        self.received: list[Message] = []  # in the order of their arrival
        self.refusals: list[Refuse] = []  # to the next Hellos
        self.replies: list[bytes | str] = []  # to the next messages behind Hello, in place of a reply
        self.deaf = 0  # number of messages behind Hello that are not answered
        self.model: dict[str, bytes] = {}
        self.acknowledged: dict[int, int] = defaultdict(int)  # the most it has told
        self._server: Server | None = None
        self._open: set[ServerConnection] = set()

    async def __aenter__(self) -> SmallCloud:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/feed"

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            close_timeout=0.1,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        for connection in self._open:
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def tell(self, data: bytes | str) -> None:
        """Send something to every phone."""
        for connection in list(self._open):
            with suppress(ConnectionClosed):
                await connection.send(data)

    def kinds(self) -> list[str]:
        """Names of the messages that have come."""
        return [type(message).__name__ for message in self.received]

    def offer(self) -> ModelOffer:
        return ModelOffer(DIGEST, [ModelFile(name, len(data)) for name, data in self.model.items()])

    async def _serve(self, connection: ServerConnection) -> None:
        self._open.add(connection)
        try:
            await self._converse(connection)
        except ConnectionClosed:
            pass
        finally:
            self._open.discard(connection)

    async def _converse(self, connection: ServerConnection) -> None:
        session: int | None = None
        async for data in connection:
            try:
                assert isinstance(data, bytes)
                message = from_phone(data)
            except (AssertionError, msgspec.MsgspecError) as error:
                await connection.send(encode(Refuse("malformed", str(error)[:500])))
                return
            self.received.append(message)
            if isinstance(message, Hello):
                reply = self._welcome(message) if session is None else Refuse("order", "a second Hello")
                session = message.session
            elif session is None:
                reply = Refuse("order", "Hello comes first")
            elif self.deaf:
                self.deaf -= 1
                continue
            elif self.replies:
                await connection.send(self.replies.pop(0))
                continue
            else:
                reply = await self._reply(session, message)
            await connection.send(encode(reply))
            if isinstance(reply, Refuse) and reply.code != "unknown":
                return

    def _welcome(self, hello: Hello) -> Message:
        if self.refusals:
            return self.refusals.pop(0)
        version = common_version(hello.versions, self.versions)
        if version is None:
            return Refuse("version", f"versions {hello.versions}", str(self.versions))
        if hello.features != FEATURES:
            return Refuse("features", "other features")
        held = len(self.answers[hello.session])
        self.acknowledged[hello.session] = max(self.acknowledged[hello.session], held)
        return Welcome(
            version, held, USER, "c" * 64, arms={"order": "crban"}, ended=hello.session in self.placed
        )

    async def _reply(self, session: int, message: Message) -> Message:
        held = self.answers[session]
        if isinstance(message, Delta):
            if message.first <= len(held):
                held.extend(message.answers[len(held) - message.first :])
            self.acknowledged[session] = len(held)
            return Ack(len(held))
        if isinstance(message, PageRequest):
            for _ in range(10):
                if len(held) >= message.answers:
                    break
                await asyncio.sleep(0.005)
            key = (session, message.page)
            if key not in self.pages:
                self.pages[key] = encode(page_of(message, held[: message.answers]))
            return msgspec.msgpack.decode(self.pages[key], type=Page)
        if isinstance(message, End):
            if message.answers != len(held):
                return Refuse("order", f"{len(held)} answers have come, not {message.answers}")
            self.placed.setdefault(session, message.placed)
            return Ended(len(held))
        if isinstance(message, ModelWant) and message.digest == DIGEST and message.name in self.model:
            data = self.model[message.name][message.offset : message.offset + CHUNK]
            return ModelChunk(DIGEST, message.name, message.offset, data)
        return Refuse("unknown", "no such model")
