"""Do phones and the service hold the same answers? Each exactly once, in order, byte by byte."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgerec_gym.device.event_store import EventStore
from edgerec_gym.errors import InputError

_encoder = msgspec.msgpack.Encoder()


@dataclass
class Compared:
    """What stores of phones and of the service tell about the same sessions.

    Attributes:
        sessions, answers: on the phones.
        lost: answers that were acknowledged, but that the service does not hold.
        missing: answers of a phone that the service does not hold, the lost ones included.
        different: answers that are others on both sides.
        surplus: answers of the service that the phone does not know.
        open: sessions whose end the service does not hold.
    """

    sessions: int = 0
    answers: int = 0
    lost: int = 0
    missing: int = 0
    different: int = 0
    surplus: int = 0
    open: int = 0

    @property
    def safe(self) -> bool:
        """Whether nothing that was acknowledged is lost or changed, and nothing came twice."""
        return not (self.lost or self.different or self.surplus)

    @property
    def exactly_once(self) -> bool:
        """Whether the service holds everything, exactly once."""
        return self.safe and self.answers > 0 and not (self.missing or self.open)


def compare(stores: Iterable[EventStore], state: Path) -> Compared:
    """Compare the stores of phones with the files of a service.

    Args:
        stores: of the phones.
        state: the service's folder; it may be serving.

    Raises:
        InputError: the folder holds no sessions in SQLite, or something cannot be read.
    """
    found = Compared()
    files = sorted(state.glob("worker-*.db"))
    if not files:
        raise InputError(f"{state} holds no worker-*.db: a service with Redis, or none at all")
    try:
        held: dict[int, tuple[list[bytes], bool]] = {}
        for file in files:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
                for session, ended in database.execute("SELECT session, placed IS NOT NULL FROM sessions"):
                    held[session] = [], bool(ended)
                for session, data in database.execute(
                    "SELECT session, data FROM answers ORDER BY session, number"
                ):
                    held[session][0].append(data)
    except sqlite3.Error as error:
        raise InputError(f"{state}: the sessions cannot be read: {error}") from None
    for store in stores:
        sessions = store.sessions()
        for session in sessions:
            theirs, ended = held.get(session.session, ([], False))
            ours = [_encoder.encode(answer) for answer in store.answers(session.session)]
            found.sessions += 1
            found.answers += len(ours)
            found.lost += max(0, session.acknowledged - len(theirs))
            found.missing += max(0, len(ours) - len(theirs))
            found.surplus += max(0, len(theirs) - len(ours))
            found.different += sum(mine != other for mine, other in zip(ours, theirs, strict=False))
            found.open += not ended
        if store.read_only:
            raise InputError(f"the store {store.path} of a phone cannot be trusted: {store.read_only}")
    return found
