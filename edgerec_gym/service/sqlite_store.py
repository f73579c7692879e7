"""Sessions in one SQLite file, for one machine.

One thread writes. Whatever was asked for while a transaction was being committed goes into the next one
together, so that many phones share the time of one sync to disk. A caller gets its answer after the commit
(`synchronous=FULL`): what was acknowledged survives a killed process and a power loss.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from edgerec_gym.errors import InputError
from edgerec_gym.service.store import Begun, Held, NotBegunError, StoreError

T = TypeVar("T")

VERSION = 1  # of the tables, in PRAGMA user_version
MOST_WRITES = 1024  # in a transaction
NO_PART = -1  # of a session that cannot be logged
LOCK_SECONDS = 2.0  # to wait for another process that holds the file
_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    session INTEGER PRIMARY KEY, user INTEGER NOT NULL, device TEXT NOT NULL, day INTEGER NOT NULL,
    hour INTEGER NOT NULL, answers INTEGER NOT NULL DEFAULT 0, placed BLOB, part INTEGER
);
CREATE INDEX IF NOT EXISTS unlogged ON sessions (session) WHERE placed IS NOT NULL AND part IS NULL;
CREATE TABLE IF NOT EXISTS answers (
    session INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (session, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (
    session INTEGER NOT NULL, page INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (session, page)
);
"""
_FIND = "SELECT user, device, day, hour, answers, placed IS NOT NULL FROM sessions WHERE session = ?"


class _Write(NamedTuple):
    """A write on its way: what to do in a transaction, and who waits for its commit."""

    act: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class SqliteStore:
    """The :class:`~edgerec_gym.service.store.SessionStore` of one machine.

    Args:
        path: the file; created if missing. No other process may serve from it.
        on_commit: called in the writing thread with the seconds of a commit and its number of writes.

    Raises:
        InputError: the file cannot be opened, is no SQLite file, or is of another version.
    """

    def __init__(self, path: str | Path, on_commit: Callable[[float, int], None] | None = None) -> None:
        self.path = Path(path)
        self._on_commit = on_commit
        try:
            self._writer = self._open()
            self._writer.executescript(_TABLES)
            self._writer.execute(f"PRAGMA user_version = {VERSION}")
            self._reader = self._open()
        except sqlite3.Error as error:
            raise InputError(f"{self.path} cannot be used: {error}") from None
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._reads = ThreadPoolExecutor(1, "store-reader")
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._thread.start()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise InputError(f"{self.path} has version {version}; this version reads {VERSION}")
        return connection

    async def begin(self, begun: Begun) -> Held:
        """Begin a session, or return it if it has begun before."""

        def act(connection: sqlite3.Connection) -> Held:
            connection.execute(
                "INSERT OR IGNORE INTO sessions (session, user, device, day, hour) VALUES (?, ?, ?, ?, ?)",
                (begun.session, begun.user, begun.device, begun.day, begun.hour),
            )
            user, device, day, hour, answers, ended = connection.execute(_FIND, (begun.session,)).fetchone()
            return Held(Begun(begun.session, user, device, day, hour), answers, bool(ended))

        return await self._write(act)

    async def append(self, session: int, first: int, answers: list[bytes]) -> int:
        """Append encoded answers of which the first has the number `first`; returns the number held."""

        def act(connection: sqlite3.Connection) -> int:
            held, ended = _answers_and_end(connection, session)
            new = answers[held - first :] if first <= held else []
            if ended or not new:
                return held
            connection.executemany(
                "INSERT INTO answers (session, number, data) VALUES (?, ?, ?)",
                [(session, number, data) for number, data in enumerate(new, start=held)],
            )
            held += len(new)
            connection.execute("UPDATE sessions SET answers = ? WHERE session = ?", (held, session))
            return held

        return await self._write(act)

    async def answers(self, session: int) -> list[bytes]:
        """Return the encoded answers of a session in order."""
        return await self._column("SELECT data FROM answers WHERE session = ? ORDER BY number", session)

    async def page(self, session: int, page: int) -> bytes | None:
        """Return an encoded page that was built before, None if there is none."""
        found = await self._column("SELECT data FROM pages WHERE session = ? AND page = ?", session, page)
        return found[0] if found else None

    async def pages(self, session: int) -> list[bytes]:
        """Return the encoded pages of a session in order."""
        return await self._column("SELECT data FROM pages WHERE session = ? ORDER BY page", session)

    async def keep_page(self, session: int, page: int, data: bytes) -> bytes:
        """Keep an encoded page; returns the one that is held, which is an earlier one if there was one."""

        def act(connection: sqlite3.Connection) -> bytes:
            _answers_and_end(connection, session)
            connection.execute(
                "INSERT OR IGNORE INTO pages (session, page, data) VALUES (?, ?, ?)", (session, page, data)
            )
            held: bytes = connection.execute(
                "SELECT data FROM pages WHERE session = ? AND page = ?", (session, page)
            ).fetchone()[0]
            return held

        return await self._write(act)

    async def end(self, session: int, placed: list[bytes]) -> None:
        """Record the end of a session and what was placed but never answered; again changes nothing."""

        def act(connection: sqlite3.Connection) -> None:
            _answers_and_end(connection, session)
            connection.execute(
                "UPDATE sessions SET placed = ? WHERE session = ? AND placed IS NULL",
                (msgspec.msgpack.encode(placed), session),
            )

        await self._write(act)

    async def placed(self, session: int) -> list[bytes]:
        """Return what the end of a session recorded."""
        found = await self._column("SELECT placed FROM sessions WHERE session = ?", session)
        return msgspec.msgpack.decode(found[0], type=list[bytes]) if found and found[0] else []

    async def ended(self, most: int) -> list[Begun]:
        """Return up to `most` sessions that have ended and belong to no part of a log."""
        rows = await self._rows(
            "SELECT session, user, device, day, hour FROM sessions "
            "WHERE placed IS NOT NULL AND part IS NULL ORDER BY session LIMIT ?",
            most,
        )
        return [Begun(*row) for row in rows]

    async def assign_part(self, sessions: list[int], part: int) -> None:
        """Note the part of the log that sessions go into; NO_PART: into none, ever."""

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE sessions SET part = ? WHERE session = ?", [(part, session) for session in sessions]
            )

        await self._write(act)

    async def release_parts(self, part: int) -> None:
        """Forget the parts from this one on: they were not written."""

        def act(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE sessions SET part = NULL WHERE part >= ?", (part,))

        await self._write(act)

    async def close(self) -> None:
        """Write everything and let go of the file."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reads.shutdown()
        self._reader.close()
        self._writer.close()

    async def _write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Do something in the next transaction; return what it gave after the commit."""
        if self._closed:
            raise StoreError(f"{self.path} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Write(act, loop, future))
        return await future

    async def _column(self, query: str, *arguments: int) -> list[bytes]:
        """Return the only column of what a query finds."""
        return [row[0] for row in await self._rows(query, *arguments)]

    async def _rows(self, query: str, *arguments: int) -> list[tuple[Any, ...]]:
        """Return what a query finds."""

        def read() -> list[tuple[Any, ...]]:
            try:
                return self._reader.execute(query, arguments).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"{self.path} cannot be read: {error}") from None

        if self._closed:
            raise StoreError(f"{self.path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._reads, read)

    def _write_all(self) -> None:
        """Commit what is asked for, together whatever has gathered, until the store is closed."""
        ended = False
        while not ended:
            entries = [self._queue.get()]
            while len(entries) < MOST_WRITES:
                try:
                    entries.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = None in entries
            writes = [entry for entry in entries if entry is not None]
            if writes:
                self._resolve(writes, self._commit(writes))

    def _commit(self, writes: list[_Write]) -> list[Any]:
        """Write in one transaction; return the result of each, a StoreError for all if it failed."""
        began = time.perf_counter()
        results: list[Any] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for write in writes:
                try:
                    results.append(write.act(self._writer))
                except NotBegunError as error:  # it has written nothing
                    results.append(error)
            self._writer.execute("COMMIT")
        except Exception as error:  # sqlite3.Error, and whatever else: the thread must live
            try:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite rolled back itself, or does so when the file is opened again
            return [StoreError(f"{self.path} cannot be written: {error}")] * len(writes)
        if self._on_commit is not None:
            self._on_commit(time.perf_counter() - began, len(writes))
        return results

    @staticmethod
    def _resolve(writes: list[_Write], results: list[Any]) -> None:
        """Tell those who wait, with one call into each of their loops."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for write, result in zip(writes, results, strict=True):
            by_loop.setdefault(write.loop, []).append((write.future, result))
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_tell, pairs)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more


def _tell(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in pairs:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _answers_and_end(connection: sqlite3.Connection, session: int) -> tuple[int, bool]:
    """Return the number of answers held and whether the session has ended; NotBegunError if there is none."""
    found = connection.execute(_FIND, (session,)).fetchone()
    if found is None:
        raise NotBegunError(session)
    return found[4], bool(found[5])
