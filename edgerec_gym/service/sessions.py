"""The sessions that a service has in memory: decoded once, kept in step with the store.

The store is what counts. A session here is a prefix of what the store holds, or all of it; whatever tells
that the store holds more (another worker, another connection) makes it read on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from weakref import WeakValueDictionary

import msgspec

from edgerec_gym.protocol.messages import Answer
from edgerec_gym.service.store import Begun, SessionStore

MOST_SESSIONS = 4096  # in memory beside those of connected phones

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Answer)


class Session:
    """A session in memory.

    Attributes:
        begun: its beginning.
        answers: those that are committed, in order.
        ended: whether its end is committed.
    """

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self.answers: list[Answer] = []
        self.ended = False
        self._grown = asyncio.Event()

    def extend(self, answers: list[Answer]) -> None:
        """Add committed answers and wake those who wait for them."""
        self.answers.extend(answers)
        self._grown.set()
        self._grown = asyncio.Event()

    async def wait_for(self, answers: int, seconds: float) -> bool:
        """Wait until so many answers are committed; returns whether they are."""
        try:
            async with asyncio.timeout(seconds):
                while len(self.answers) < answers:
                    await self._grown.wait()
        except TimeoutError:
            pass
        return len(self.answers) >= answers


class Sessions:
    """The sessions of a store, of which the last used stay in memory.

    Args:
        store: where they are kept.
        most: number of sessions that stay in memory without a connection.
    """

    def __init__(self, store: SessionStore, most: int = MOST_SESSIONS) -> None:
        self.store = store
        self._most = most
        self._recent: OrderedDict[int, Session] = OrderedDict()
        self._live: WeakValueDictionary[int, Session] = WeakValueDictionary()  # all that anybody holds

    async def begin(self, begun: Begun) -> Session:
        """Begin a session, or return it as it is held if it has begun before."""
        held = await self.store.begin(begun)
        session = self._live.get(begun.session)
        if session is None or session.begun != held.begun or len(session.answers) > held.answers:
            session = self._live[begun.session] = Session(held.begun)  # the store was emptied meanwhile
        self._recent[begun.session] = session
        self._recent.move_to_end(begun.session)
        if len(self._recent) > self._most:
            self._recent.popitem(last=False)
        session.ended = held.ended
        if len(session.answers) < held.answers:
            await self.read_on(session)
        return session

    async def append(self, session: Session, first: int, answers: list[Answer]) -> int:
        """Commit answers, of which the first has the number `first`; returns the number held."""
        held = await self.store.append(
            session.begun.session, first, [_encoder.encode(answer) for answer in answers]
        )
        known = len(session.answers)
        if first <= known < held <= first + len(answers):
            session.extend(answers[known - first : held - first])
        elif known < held:
            await self.read_on(session)
        if first <= held < first + len(answers):  # only an end keeps answers out that fit
            session.ended = True
        return held

    async def read_on(self, session: Session) -> None:
        """Read what the store holds beyond what is in memory."""
        data = await self.store.answers(session.begun.session)
        if len(data) > len(session.answers):
            session.extend([_decoder.decode(entry) for entry in data[len(session.answers) :]])

    async def end(self, session: Session, placed: list[Answer]) -> None:
        """Commit the end of a session."""
        await self.store.end(session.begun.session, [_encoder.encode(answer) for answer in placed])
        session.ended = True
