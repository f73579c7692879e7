"""The tables of phone.db, and what their rows are outside of it."""

from __future__ import annotations

import msgspec

from edgerec_gym.protocol.messages import Answer

VERSION = 1  # of the tables; a file of another version is set aside

COLUMNS = {
    "sessions": {
        "place": "INTEGER PRIMARY KEY AUTOINCREMENT",  # orders the sessions
        "session": "INTEGER NOT NULL UNIQUE",
        "user": "INTEGER NOT NULL",
        "day": "INTEGER NOT NULL",
        "hour": "INTEGER NOT NULL",
        "features": "TEXT NOT NULL",
        "user_features": "BLOB NOT NULL DEFAULT x''",
        "acknowledged": "INTEGER NOT NULL DEFAULT 0",
        "placed": "BLOB",  # MessagePack of a list of answers
        "ended": "INTEGER NOT NULL DEFAULT 0",
    },
    "events": {
        "session": "INTEGER NOT NULL",
        "number": "INTEGER NOT NULL",
        "item": "INTEGER NOT NULL",
        "page": "INTEGER NOT NULL",
        "age": "INTEGER NOT NULL",
        "action": "INTEGER NOT NULL",
        "exposure": "BLOB NOT NULL",
        "page_view": "BLOB NOT NULL",
        "leave": "INTEGER NOT NULL",
        "requested": "INTEGER NOT NULL",
    },
    "pages": {
        "session": "INTEGER NOT NULL",
        "page": "INTEGER NOT NULL",
        "data": "BLOB NOT NULL",  # the message
    },
    "arms": {
        "experiment": "TEXT NOT NULL PRIMARY KEY",
        "arm": "TEXT NOT NULL",
    },
    "decisions": {
        "place": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "session": "INTEGER NOT NULL",
        "slot": "INTEGER NOT NULL",
        "trigger": "TEXT NOT NULL",
        "model": "TEXT NOT NULL",
        "ms": "REAL NOT NULL",
        "fallback": "TEXT NOT NULL",
        "why": "TEXT NOT NULL",
        "card": "BLOB NOT NULL",  # MessagePack of an answer without actions
    },
}
_KEYS = {
    "events": ("session", "number"),
    "pages": ("session", "page"),
}


def _table(name: str) -> str:
    lines = [f'"{column}" {kind}' for column, kind in COLUMNS[name].items()]
    if name in _KEYS:
        lines.append(f"PRIMARY KEY ({', '.join(_KEYS[name])})")
    return f"CREATE TABLE {name} ({', '.join(lines)}){' WITHOUT ROWID' if name in _KEYS else ''};"


SCHEMA = "".join(map(_table, COLUMNS)) + "CREATE INDEX of_session ON decisions (session);"


class PhoneSession(msgspec.Struct, frozen=True):
    """A session as the phone knows it.

    Attributes:
        session: its key, a signed number of 64 bits.
        user: number of the user.
        day, hour: the phone's, when it began.
        features: digest of what the model reads, as in Hello.
        user_features: (U,) float32 bytes, what the cloud last shipped about the user; empty before.
        answers: number of answers that are kept.
        acknowledged: number of answers that the cloud has committed.
        placed: cards that were placed but never answered; None while the session runs.
        ended: whether the cloud has committed the end.
    """

    session: int
    user: int
    day: int
    hour: int
    features: str = ""
    user_features: bytes = b""
    answers: int = 0
    acknowledged: int = 0
    placed: list[Answer] | None = None
    ended: bool = False


class Decision(msgspec.Struct, frozen=True):
    """A decision and its reason.

    Attributes:
        slot: slot that it was made for.
        trigger: name of the trigger that fired.
        model: digest of the model that decided; "" if none did.
        ms: wall time that it took.
        fallback: what played instead of the model; "" if the model did.
        why: the explanation.
        card: the card that was placed, as MessagePack of an Answer without actions; empty if none was.
    """

    slot: int
    trigger: str
    model: str
    ms: float
    fallback: str = ""
    why: str = ""
    card: bytes = b""
