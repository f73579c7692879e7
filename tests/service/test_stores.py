"""What a store of sessions promises, for both of them; then what only one can do wrong."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT

from edgerec_gym.errors import InputError
from edgerec_gym.service.redis_store import RedisStore
from edgerec_gym.service.sqlite_store import SqliteStore
from edgerec_gym.service.store import Begun, Held, NotBegunError, SessionStore, StoreError

Open = Callable[[], Awaitable[SessionStore]]
_keys = itertools.count(1)


def begun(session: int) -> Begun:
    return Begun(session, user=3, device="phone", day=4, hour=5)


def data(first: int, end: int) -> list[bytes]:
    return [b"answer %d" % number for number in range(first, end)]


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store again and again."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    async def open_it() -> SessionStore:
        return SqliteStore(tmp_path / "store.db") if not url else await RedisStore.open(url)

    return open_it


def with_store(open_store: Open, body: Callable[[SessionStore, int], Awaitable[Any]]) -> Any:
    """Run with the store and a session that it has never seen."""

    async def run() -> Any:
        store = await open_store()
        try:
            return await body(store, -next(_keys))
        finally:
            await store.close()

    return asyncio.run(run())


def test_a_session_keeps_its_first_beginning(open_store: Open) -> None:
    async def body(store: SessionStore, session: int) -> None:
        first = begun(session)
        assert await store.begin(first) == Held(first, 0, False)
        await store.append(session, 0, data(0, 2))
        other = Begun(session, user=9, device="other", day=1, hour=1)
        assert await store.begin(other) == Held(first, 2, False)

    with_store(open_store, body)


def test_repeated_and_overlapping_answers_are_dropped_and_gaps_refused(open_store: Open) -> None:
    async def body(store: SessionStore, session: int) -> None:
        await store.begin(begun(session))
        assert await store.append(session, 1, data(1, 2)) == 0
        assert await store.append(session, 0, data(0, 3)) == 3
        assert await store.append(session, 0, [b"another"] * 2) == 3
        assert await store.append(session, 2, data(2, 5)) == 5
        assert await store.append(session, 6, data(6, 7)) == 5
        assert await store.answers(session) == data(0, 5)

    with_store(open_store, body)


def test_the_first_page_of_a_number_stays(open_store: Open) -> None:
    async def body(store: SessionStore, session: int) -> None:
        await store.begin(begun(session))
        assert await store.page(session, 0) is None
        assert await store.keep_page(session, 10, b"ten") == b"ten"
        assert await store.keep_page(session, 2, b"two") == b"two"
        assert await store.keep_page(session, 10, b"other") == b"ten"
        assert await store.page(session, 10) == b"ten"
        assert await store.pages(session) == [b"two", b"ten"]

    with_store(open_store, body)


def test_after_the_end_nothing_is_appended(open_store: Open) -> None:
    async def body(store: SessionStore, session: int) -> None:
        await store.begin(begun(session))
        await store.append(session, 0, data(0, 2))
        assert await store.placed(session) == []
        await store.end(session, [b"placed"])
        await store.end(session, [b"other", b"yet another"])
        assert await store.placed(session) == [b"placed"]
        assert await store.append(session, 2, data(2, 3)) == 2
        assert await store.begin(begun(session)) == Held(begun(session), 2, True)

    with_store(open_store, body)


def test_an_end_without_placed_cards_is_an_end(open_store: Open) -> None:
    async def body(store: SessionStore, session: int) -> None:
        await store.begin(begun(session))
        await store.end(session, [])
        assert (await store.begin(begun(session))).ended

    with_store(open_store, body)


def test_a_session_that_never_began_is_not_written_to(open_store: Open) -> None:
    async def body(store: SessionStore, session: int) -> None:
        for write in (
            store.append(session, 0, data(0, 1)),
            store.keep_page(session, 0, b"page"),
            store.end(session, []),
        ):
            with pytest.raises(NotBegunError, match="has not begun"):
                await write
        assert await store.answers(session) == [] and await store.pages(session) == []

    with_store(open_store, body)


def test_everything_is_there_when_the_store_opens_again(open_store: Open) -> None:
    extremes = (-(2**63), 2**63 - 1)

    async def fill() -> None:
        store = await open_store()
        for session in extremes:
            await store.begin(begun(session))
            await store.append(session, 0, data(0, 3))
            await store.keep_page(session, 0, b"page")
            await store.end(session, [b"placed"])
        await store.close()

    async def look() -> None:
        store = await open_store()
        for session in extremes:
            assert await store.begin(begun(session)) == Held(begun(session), 3, True)
            assert await store.answers(session) == data(0, 3)
            assert await store.pages(session) == [b"page"]
            assert await store.placed(session) == [b"placed"]
        await store.close()

    asyncio.run(fill())
    asyncio.run(look())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5), st.booleans()), max_size=20))
def test_any_interleaving_gives_the_same_sequence(
    open_store: Open, pieces: list[tuple[int, int, bool]]
) -> None:
    """Pieces come in any order, twice, with gaps, some at the same time: what is held is a prefix."""

    async def body(store: SessionStore, session: int) -> None:
        await store.begin(begun(session))
        together: list[Awaitable[int]] = []
        most = 0
        for first, size, waits in pieces:
            together.append(store.append(session, first, data(first, first + size)))
            most = max(most, first + size)
            if waits:
                told = await asyncio.gather(*together)
                together.clear()
                assert await store.answers(session) == data(0, max(told))
        await asyncio.gather(*together)
        held = await store.append(session, 0, data(0, max(most, 1)))
        assert held == max(most, 1)
        assert await store.answers(session) == data(0, held)

    with_store(open_store, body)


def test_writes_that_gather_share_a_commit(tmp_path: Path) -> None:
    commits: list[int] = []

    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db", lambda seconds, writes: commits.append(writes))
        await asyncio.gather(*(store.begin(begun(session)) for session in range(200)))
        told = await asyncio.gather(*(store.append(session, 0, data(0, 1)) for session in range(200)))
        assert told == [1] * 200
        await store.close()

    asyncio.run(run())
    assert sum(commits) == 400 and len(commits) < 100


def test_a_full_disk_fails_the_write_and_leaves_the_store_usable(tmp_path: Path) -> None:
    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db")
        await store.begin(begun(1))
        await store.append(1, 0, data(0, 1))
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages + 4}")
        small, large = await asyncio.gather(
            store.append(1, 1, [b"x"]), store.keep_page(1, 0, bytes(10**6)), return_exceptions=True
        )
        assert isinstance(large, StoreError) and "full" in str(large)
        held = await store.answers(1)
        # Whether both were in one transaction depends on time; what was told is what is held.
        assert len(held) == (small if isinstance(small, int) else 1)
        store._writer.execute("PRAGMA max_page_count = 100000")
        assert await store.append(1, 0, [*data(0, 1), b"x", b"y"]) == 3
        assert await store.keep_page(1, 0, bytes(10**6)) == bytes(10**6)
        await store.close()

    asyncio.run(run())


def test_a_file_that_another_process_holds_fails_the_write_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerec_gym.service.sqlite_store.LOCK_SECONDS", 0.05)

    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db")
        await store.begin(begun(1))
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await store.append(1, 0, data(0, 1))
        assert await store.answers(1) == []
        other.execute("ROLLBACK")
        other.close()
        assert await store.append(1, 0, data(0, 1)) == 1
        await store.close()

    asyncio.run(run())


def test_a_corrupted_file_is_refused_or_fails_the_call(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, and long enough to look at" * 100)
    with pytest.raises(InputError, match="store.db cannot be used: file is not a database"):
        SqliteStore(path)

    async def fill() -> None:
        store = SqliteStore(tmp_path / "other.db")
        await store.begin(begun(1))
        await store.append(1, 0, [bytes(3000)] * 50)
        await store.close()

    async def read() -> None:
        store = SqliteStore(tmp_path / "other.db")
        with pytest.raises(StoreError, match="malformed"):
            await store.answers(1)
        with pytest.raises(StoreError, match="malformed"):
            await store.append(1, 50, [bytes(3000)] * 5)
        await store.close()

    asyncio.run(fill())
    content = bytearray((tmp_path / "other.db").read_bytes())
    content[3 * 4096 :] = b"\xff" * (len(content) - 3 * 4096)
    (tmp_path / "other.db").write_bytes(content)
    asyncio.run(read())


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(InputError, match="has version 9; this version reads 1"):
        SqliteStore(tmp_path / "store.db")


def test_a_closed_store_fails(tmp_path: Path) -> None:
    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db")
        await store.close()
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.begin(begun(1))

    asyncio.run(run())


WRITER = """
import asyncio, sys
from edgerec_gym.service.redis_store import RedisStore
from edgerec_gym.service.sqlite_store import SqliteStore
from edgerec_gym.service.store import Begun

async def main(where):
    store = await RedisStore.open(where) if "://" in where else SqliteStore(where)

    async def one(session):
        await store.begin(Begun(session, 3, "phone", 4, 5))
        for first in range(0, 10_000, 2):
            held = await store.append(session, first, [b"answer %d" % n for n in (first, first + 1)])
            print(session, held, flush=True)

    await asyncio.gather(*(one(session) for session in range(100, 104)))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("acknowledged", [1, 40, 333])
def test_a_killed_process_loses_nothing_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "store.db"
    told = dict.fromkeys(range(100, 104), 0)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as writer:
        assert writer.stdout is not None
        for _ in range(acknowledged):
            session, held = map(int, writer.stdout.readline().split())
            told[session] = held
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:  # told before it died
            if line.endswith("\n"):
                session, held = map(int, line.split())
                told[session] = held

    async def look() -> None:
        store = SqliteStore(path)
        for session, least in told.items():
            held = await store.answers(session)
            assert len(held) >= least and held == data(0, len(held))
            if least:
                assert (await store.begin(begun(session))).answers == len(held)
        await store.close()

    asyncio.run(look())
    assert max(told.values()) > 0


def test_a_redis_that_would_lose_data_is_refused(redis_url: str) -> None:
    from redis import Redis

    client = Redis.from_url(redis_url)
    client.config_set("appendfsync", "everysec")
    try:
        with pytest.raises(InputError, match="appendfsync is 'everysec'; it must be 'always'"):
            asyncio.run(RedisStore.open(redis_url))
    finally:
        client.config_set("appendfsync", "always")
        client.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("redis://user:hidden@127.0.0.1:1/0", "redis://127.0.0.1:1/0 cannot be used"),
    ],
)
def test_a_redis_that_is_not_there_is_one_error_without_the_password(url: str, message: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(InputError, match=message) as error:
        asyncio.run(RedisStore.open(url))
    assert "hidden" not in str(error.value)


def test_a_redis_that_goes_away_fails_the_calls(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from redis.exceptions import ConnectionError, OutOfMemoryError

    async def run() -> None:
        store = await RedisStore.open(redis_url)
        session = -next(_keys)
        await store.begin(begun(session))
        for error in (ConnectionError("gone"), OutOfMemoryError("full")):

            async def fails(*arguments: Any, error: Exception = error, **named: Any) -> Any:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(store._client, "execute_command", fails)
                patch.setattr(store._client, "evalsha", fails)
                for call in (store.append(session, 0, data(0, 1)), store.answers(session)):
                    with pytest.raises(StoreError, match=str(error)):
                        await call
        assert await store.append(session, 0, data(0, 1)) == 1
        await store.close()

    asyncio.run(run())
