"""The tables of phone.db."""

from __future__ import annotations

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
    "snapshots": {
        "session": "INTEGER NOT NULL",
        "number": "INTEGER NOT NULL",
        "model": "TEXT NOT NULL",
        "tensors": "BLOB NOT NULL",
    },
    "models": {
        "added": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "digest": "TEXT NOT NULL UNIQUE",
        "folder": "TEXT NOT NULL",
        "state": "TEXT NOT NULL",
        "reason": "TEXT NOT NULL",
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
    },
}
_KEYS = {
    "events": ("session", "number"),
    "pages": ("session", "page"),
    "snapshots": ("session", "number", "model"),
}


def _table(name: str) -> str:
    lines = [f'"{column}" {kind}' for column, kind in COLUMNS[name].items()]
    if name in _KEYS:
        lines.append(f"PRIMARY KEY ({', '.join(_KEYS[name])})")
    return f"CREATE TABLE {name} ({', '.join(lines)}){' WITHOUT ROWID' if name in _KEYS else ''};"


SCHEMA = "".join(map(_table, COLUMNS)) + "CREATE INDEX of_session ON decisions (session);"
