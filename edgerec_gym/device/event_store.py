"""What a phone keeps in phone.db: answers, pages, arms and decisions. Its models are in a registry.

SQLite with a write-ahead log. What a method has written is committed when it returns: it survives the end of
the process, and only a loss of power can take the last commits. Answers are ordered by their numbers within a
session and sessions by the order in which they began, never by a clock.

Play does not depend on the store. If it cannot be written any more (a full disk, a broken file) it becomes
read-only: it keeps what it has, says so once, and `append` returns None.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from edgerec_gym.device.phone_schema import (
    COLUMNS,
    SCHEMA,
    VERSION,
    Decision,
    PhoneSession,
)
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import MOST_SLOTS, Answer, Page, encode, from_cloud

KEPT_SESSIONS = 20
LOCK_SECONDS = 0.2  # for another process that reads the file
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ANSWER = ", ".join(Answer.__struct_fields__)
_PLACES = ", ".join("?" * len(Answer.__struct_fields__))
_APPEND = f"INSERT INTO events (session, number, {_ANSWER}) VALUES (?, ?, {_PLACES})"
_DELETED = ("events", "pages", "decisions", "sessions")
_answers = msgspec.msgpack.Decoder(list[Answer])


def _print(line: str) -> None:
    print(line, file=sys.stderr)


class EventStore:
    """The phone's store. One process writes to it, in one thread.

    A damaged file is set aside as `phone.db.corrupt-N` and an empty one takes its place. A file that cannot
    be written is read; if even that fails, the store is empty and read-only.

    Args:
        path: the file; its folder is made.
        keep: number of sessions to keep that the cloud has in full.
        say: takes a line for the operator.

    Attributes:
        read_only: why nothing can be written; "" while it can.
    """

    def __init__(
        self, path: str | Path, keep: int = KEPT_SESSIONS, say: Callable[[str], None] = _print
    ) -> None:
        if keep < 0:
            raise InputError(f"keep = {keep}; allowed: 0 or more sessions")
        self.path = Path(path)
        self.read_only = ""
        self._keep, self._say = keep, say
        self._counts: dict[int, int] = {}  # answers by session
        self._gaps: set[int] = set()  # sessions with an answer that was not kept
        self._lasting = False  # whether the reason for being read-only cannot pass
        self._database = self._open()

    def close(self) -> None:
        """Move the log into the file and close it."""
        with suppress(sqlite3.Error):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._database.close()

    def begin(self, session: PhoneSession) -> bool:
        """Begin a session, or go on with one that has begun before; False if it cannot be kept.

        Old sessions are removed. A full disk may have room again, so a store that is read-only tries anew.
        """
        was = self.read_only
        if not self._lasting:
            self.read_only = ""
        kept = self._write(
            (
                "INSERT OR IGNORE INTO sessions (session, user, day, hour, features) VALUES (?, ?, ?, ?, ?)",
                (session.session, session.user, session.day, session.hour, session.features),
            ),
            silent=bool(was),
        )
        if kept:
            self.trim()
            with suppress(sqlite3.Error):  # here rather than while somebody plays: it waits for the disk
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return kept

    def session(self, session: int) -> PhoneSession | None:
        """Return a session, None if it is not kept."""
        return next(iter(self._sessions("WHERE session = ?", (session,))), None)

    def sessions(self) -> list[PhoneSession]:
        """Return all sessions in the order in which they began."""
        return self._sessions("ORDER BY place", ())

    def append(self, session: int, answer: Answer) -> int | None:
        """Commit the session's next answer; returns its number, None if it cannot be kept.

        After a failure none of the session's later answers is kept either: answers have no gaps.

        Raises:
            InputError: a number in it is out of range; the cloud would refuse it.
        """
        values = msgspec.structs.astuple(answer)
        try:
            _checked_answer(values)
        except msgspec.ValidationError as error:
            raise InputError(f"an answer: {error}") from None
        number = self._count(session)
        if number >= MOST_SLOTS or session in self._gaps:
            return None
        if not self._write((_APPEND, (session, number, *values))):
            self._gaps.add(session)
            return None
        self._counts[session] = number + 1
        return number

    def cut(self, session: int, answers: int) -> bool:
        """Forget a session's answers from a number on, and keep none after them."""
        self._gaps.add(session)
        self._counts.pop(session, None)
        return self._write(("DELETE FROM events WHERE session = ? AND number >= ?", (session, answers)))

    def answers(self, session: int, first: int = 0, last: int = MOST_SLOTS) -> list[Answer]:
        """Return the answers with the numbers first..last-1, as far as they are kept."""
        rows = self._read(
            f"SELECT {_ANSWER} FROM events WHERE session = ? AND number >= ? AND number < ? ORDER BY number",
            (session, first, last),
        )
        try:
            return [_answer(row) for row in rows]
        except msgspec.ValidationError as error:
            self._turn_read_only(f"an answer in it is damaged ({error})")
            return []

    def acknowledge(self, session: int, answers: int) -> bool:
        """Record the number of answers that the cloud has committed."""
        return self._write(
            ("UPDATE sessions SET acknowledged = ? WHERE session = ?", (answers, session)),
        )

    def keep_user(self, session: int, features: bytes) -> bool:
        """Keep what the cloud ships about the user, for the time without a network."""
        return self._write(
            ("UPDATE sessions SET user_features = ? WHERE session = ?", (features, session)),
        )

    def user_features(self, user: int) -> bytes:
        """Return what the cloud last shipped about a user; empty if it never did."""
        rows = self._read(
            "SELECT user_features FROM sessions WHERE user = ? AND user_features != x'' "
            "ORDER BY place DESC LIMIT 1",
            (user,),
        )
        return rows[0][0] if rows else b""

    def end(self, session: int, placed: Sequence[Answer]) -> bool:
        """Record that the session is over for the phone; the first time counts."""
        return self._write(
            (
                "UPDATE sessions SET placed = ? WHERE session = ? AND placed IS NULL",
                (msgspec.msgpack.encode(list(placed)), session),
            ),
        )

    def ended(self, session: int) -> bool:
        """Record that the cloud has committed the session and its end."""
        return self._write(("UPDATE sessions SET ended = 1 WHERE session = ?", (session,)))

    def keep_page(self, session: int, page: Page) -> bool:
        """Keep a page as it came; the first one with its number counts."""
        return self._write(
            ("INSERT OR IGNORE INTO pages VALUES (?, ?, ?)", (session, page.page, encode(page))),
        )

    def page(self, session: int, number: int | None = None) -> Page | None:
        """Return a page, by default the last one; None if there is none."""
        rows = self._read(
            "SELECT data FROM pages WHERE session = ? AND page = coalesce(?, page) "
            "ORDER BY page DESC LIMIT 1",
            (session, number),
        )
        return self._read_page(rows)

    def last_page(self, user: int) -> Page | None:
        """Return the newest page of any session of a user, to play when the cloud cannot be reached."""
        rows = self._read(
            "SELECT data FROM pages JOIN sessions USING (session) WHERE user = ? "
            "ORDER BY place DESC, page DESC LIMIT 1",
            (user,),
        )
        return self._read_page(rows)

    def keep_arms(self, arms: dict[str, str]) -> bool:
        """Keep the user's arms in place of all earlier ones."""
        return self._write(
            ("DELETE FROM arms", ()), *(("INSERT INTO arms VALUES (?, ?)", arm) for arm in arms.items())
        )

    def arms(self) -> dict[str, str]:
        """Return the user's arm in each experiment."""
        return dict(self._read("SELECT experiment, arm FROM arms ORDER BY experiment", ()))

    def record(self, session: int, decision: Decision) -> bool:
        """Record a decision."""
        row = (session, *msgspec.structs.astuple(decision))
        names = ", ".join(("session", *Decision.__struct_fields__))
        return self._write(
            (f"INSERT INTO decisions ({names}) VALUES ({', '.join('?' * len(row))})", row),
        )

    def decisions(self, session: int) -> list[Decision]:
        """Return the decisions of a session in the order in which they were made."""
        names = ", ".join(Decision.__struct_fields__)
        rows = self._read(f"SELECT {names} FROM decisions WHERE session = ? ORDER BY place", (session,))
        return [Decision(*row) for row in rows]

    def trim(self) -> bool:
        """Remove sessions that the cloud has in full, except the last `keep`."""
        rows = self._read(
            "SELECT session FROM sessions WHERE ended = 1 AND acknowledged >= "
            "(SELECT count(*) FROM events WHERE events.session = sessions.session) "
            "ORDER BY place DESC LIMIT -1 OFFSET ?",
            (self._keep,),
        )
        for (session,) in rows:
            self._counts.pop(session, None)
        return self._write(
            *((f"DELETE FROM {table} WHERE session = ?", row) for row in rows for table in _DELETED)
        )

    def _read_page(self, rows: list[Any]) -> Page | None:
        """Return the page of a row; None, and a store that is read-only, if it is damaged."""
        if not rows:
            return None
        try:
            page = from_cloud(rows[0][0])
        except msgspec.MsgspecError as error:
            self._turn_read_only(f"a page in it is damaged ({error})")
            return None
        return page if isinstance(page, Page) else None

    def _sessions(self, where: str, values: tuple[Any, ...]) -> list[PhoneSession]:
        rows = self._read(
            "SELECT session, user, day, hour, features, user_features, (SELECT count(*) FROM events "
            "WHERE events.session = sessions.session), acknowledged, placed, ended "
            f"FROM sessions {where}",
            values,
        )
        try:
            return [_session(row) for row in rows]
        except msgspec.MsgspecError as error:
            self._turn_read_only(f"a session in it is damaged ({error})")
            return []

    def _count(self, session: int) -> int:
        if session not in self._counts:
            rows = self._read("SELECT count(*) FROM events WHERE session = ?", (session,))
            self._counts[session] = rows[0][0] if rows else 0
        return self._counts[session]

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        """Return rows; none, and a store that is read-only, if the file cannot be read."""
        try:
            return self._database.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._turn_read_only(str(error))
            return []

    def _write(self, *statements: tuple[str, Sequence[Any]], silent: bool = False) -> bool:
        """Run statements as one transaction; False, and a store that is read-only, if that fails."""
        if self.read_only:
            return False
        try:
            if len(statements) == 1:  # commits by itself
                self._database.execute(*statements[0])
            else:
                self._database.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    self._database.execute(*statement)
                self._database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            with suppress(sqlite3.Error, OSError):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            self._lasting = self._lasting or _is_damage(error)
            self._turn_read_only(str(error), silent)
            return False
        return True

    def _turn_read_only(self, reason: str, silent: bool = False) -> None:
        """Take no more writes; say so the first time."""
        if not self.read_only and not silent:
            self._say(f"{self.path} is read-only from now on, play goes on: {reason}")
        self.read_only = self.read_only or reason

    def _open(self) -> sqlite3.Connection:
        """Open the file; set it aside if it is damaged."""
        for _ in range(2):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                return self._checked(self._connect(self.path))
            except (_DamagedError, sqlite3.Error, OSError) as error:
                if isinstance(error, _DamagedError) or _is_damage(error):
                    with suppress(OSError):
                        aside = self._set_aside()
                        self._say(f"{self.path} is damaged ({error}): kept as {aside.name}, a new one begins")
                        continue
                return self._open_read_only(str(error))
        return self._open_read_only("a new file is damaged at once")

    def _connect(self, path: Path | str, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, uri=uri)

    def _checked(self, database: sqlite3.Connection) -> sqlite3.Connection:
        """Prepare an open file and return it; closes it and raises if that fails."""
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA wal_autocheckpoint = 4000")  # pages; `begin` does it before
            database.execute("PRAGMA journal_size_limit = 4194304")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
                database.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
            elif version != VERSION:
                raise _DamagedError(f"it has the version {version}, this package writes {VERSION}")
            _check(database)
        except BaseException:
            database.close()
            raise
        return database

    def _open_read_only(self, reason: str) -> sqlite3.Connection:
        """Open a file that cannot be written; an empty store in memory if it cannot be read either."""
        self._lasting = True
        self._turn_read_only(reason)
        address = self.path.absolute().as_uri()
        for options in ("mode=ro", "mode=ro&immutable=1"):
            try:
                database = self._connect(f"{address}?{options}", uri=True)
                try:
                    _check(database)
                    return database
                except BaseException:
                    database.close()
                    raise
            except (_DamagedError, sqlite3.Error, OSError):
                continue
        database = self._connect(":memory:")
        database.executescript(SCHEMA)
        return database

    def _set_aside(self) -> Path:
        """Rename the file and its log; returns the new path."""
        number = 0
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        self.path.rename(aside)
        for ending in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                self.path.with_name(self.path.name + ending).rename(f"{aside}{ending}")
        return aside


class _DamagedError(Exception):
    """A file that SQLite reads, but that holds something else than it should."""


def _is_damage(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED


def _check(database: sqlite3.Connection) -> None:
    """Check the file, the tables and everything that is still to be sent."""
    result = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise _DamagedError(result.splitlines()[-1])
    try:
        for table, columns in COLUMNS.items():
            with closing(database.execute(f"SELECT {', '.join(columns)} FROM {table} LIMIT 1")):
                pass
    except sqlite3.OperationalError as error:
        if "no such" in str(error):
            raise _DamagedError(str(error)) from None
        raise
    expected: dict[int, int] = {}
    rows = database.execute(
        f"SELECT session, number, {_ANSWER} FROM events WHERE session IN "
        "(SELECT session FROM sessions WHERE ended = 0) ORDER BY session, number"
    )
    for session, number, *row in rows:
        if number != expected.get(session, 0):
            raise _DamagedError(f"answer {expected.get(session, 0)} of the session {session} is missing")
        expected[session] = number + 1
        try:
            _answer(row)
        except msgspec.ValidationError as error:
            raise _DamagedError(f"answer {number} of the session {session}: {error}") from None


def _answer(row: Sequence[Any]) -> Answer:
    """Return an answer from its columns; ValidationError if one is out of range."""
    *values, leave, requested = row
    return _checked_answer((*values, leave == 1, requested == 1))


def _checked_answer(values: Sequence[Any]) -> Answer:
    return msgspec.convert(values, Answer, builtin_types=(bytes,))  # else text is read as base64


def _session(row: Sequence[Any]) -> PhoneSession:
    *values, placed, ended = row
    cards = None if placed is None else _answers.decode(placed)
    return PhoneSession(*(*values, cards, ended == 1))
