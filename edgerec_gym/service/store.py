"""What the service keeps of its sessions, behind one interface.

Implementations: SQLite for one machine (sqlite_store.py), Redis for several (redis_store.py).
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class StoreError(Exception):
    """A store cannot read or write now: nothing of the failed call was promised; it may be tried again."""


class NotBegunError(Exception):
    """A session is not held: it has never begun, or the store was emptied."""

    def __init__(self, session: int) -> None:
        super().__init__(f"session {session} has not begun")


class Begun(msgspec.Struct, frozen=True, array_like=True):
    """The beginning of a session, as the first Hello told it."""

    session: int
    user: int
    device: str
    day: int
    hour: int


class Held(msgspec.Struct, frozen=True):
    """A session as it is held.

    Attributes:
        begun: its beginning; that of an earlier Hello if there was one.
        answers: number of committed answers.
        ended: whether its end is committed.
    """

    begun: Begun
    answers: int
    ended: bool


class SessionStore(Protocol):
    """Sessions, their answers and their pages. What a method returns is committed to disk.

    Every method but :meth:`close` raises StoreError if the store cannot read or write. Writes to a session
    that has not begun raise NotBegunError.
    """

    async def begin(self, begun: Begun) -> Held:
        """Begin a session, or return it if it has begun before."""

    async def append(self, session: int, first: int, answers: list[bytes]) -> int:
        """Append encoded answers of which the first has the number `first`.

        Answers that are held already are dropped. If answers are missing in between, or if the session has
        ended, nothing is appended.

        Returns:
            The number of answers held.
        """

    async def answers(self, session: int) -> list[bytes]:
        """Return the encoded answers of a session in order."""

    async def page(self, session: int, page: int) -> bytes | None:
        """Return an encoded page that was built before, None if there is none."""

    async def pages(self, session: int) -> list[bytes]:
        """Return the encoded pages of a session in order."""

    async def keep_page(self, session: int, page: int, data: bytes) -> bytes:
        """Keep an encoded page; returns the one that is held, which is an earlier one if there was one."""

    async def end(self, session: int, placed: list[bytes]) -> None:
        """Record the end of a session and what was placed but never answered; again changes nothing."""

    async def placed(self, session: int) -> list[bytes]:
        """Return what the end of a session recorded."""

    async def close(self) -> None:
        """Write everything and let go of files and connections."""
