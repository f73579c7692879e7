"""Ended sessions become a log: once each, as they were served, whatever kills the service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from small_feed_service import SECRET, hello

from edgerec_gym.logs.store import LogReader, LogWriter
from edgerec_gym.protocol.coding import read_features
from edgerec_gym.protocol.messages import Answer, Delta, End, Page, PageRequest, from_cloud
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.exchange import Exchange, FeedService
from edgerec_gym.service.pages import PageBuilder
from edgerec_gym.service.session_log import SessionLog
from edgerec_gym.service.sqlite_store import SqliteStore

DWELL = bytes([36, 0, 0, 84, 0, 0])  # bucket 3 of 8


@pytest.fixture(scope="module")
def builder(lite: Scenario) -> PageBuilder:
    return PageBuilder(lite)


def card(page: Page, place: int, **told: Any) -> Answer:
    item = int(np.frombuffer(page.items, np.int32)[place])
    return Answer(**(dict(item=item, page=page.page, age=0, action=place, exposure=DWELL) | told))  # type: ignore[arg-type]


async def play(service: FeedService, session: int, coding: Any = "float32", end: bool = True) -> list[Page]:
    """Two pages, the second one requested; three answers, one with a click, and a card without an answer."""
    exchange = Exchange(service)

    async def ask(message: Any) -> Any:
        return from_cloud((await exchange.answer(message))[0].data)

    await ask(hello(session, user=session))
    first = await ask(PageRequest(0, 0, 0, [], "start", coding))
    buy = bytes([0, 0, 84, *bytes(8)])
    await ask(Delta(0, [card(first, 0), card(first, 4, age=1, page_view=buy, requested=True)]))
    second = await ask(PageRequest(1, 2, 2, [], "request", coding))
    await ask(Delta(2, [card(second, 0, leave=True, action=-1)]))
    if end:
        await ask(End(3, [card(second, 1, age=1, exposure=b"")]))
    return [first, second]


def service_of(builder: PageBuilder, store: SqliteStore) -> FeedService:
    return FeedService(builder, store, SECRET)


def log_of(folder: Path, store: SqliteStore, lite: Scenario, builder: PageBuilder) -> SessionLog:
    return SessionLog(folder / "log", store, lite, builder.features, "synthetic")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for table in LogReader(folder / "log").batches() for row in table.to_pylist()]


@pytest.mark.parametrize("coding", ["float32", "uint8"])
def test_what_was_served_is_what_is_logged(
    tmp_path: Path, lite: Scenario, builder: PageBuilder, coding: str
) -> None:
    async def run() -> list[Page]:
        store = SqliteStore(tmp_path / "store.db")
        log = log_of(tmp_path, store, lite, builder)
        await log.begin()
        pages = await play(service_of(builder, store), 5, coding)
        await play(service_of(builder, store), 6, coding, end=False)
        assert await log.write_part() == 1
        assert await log.write_part() == 0
        await store.close()
        return pages

    pages = asyncio.run(run())
    found = rows(tmp_path)
    pools = [np.frombuffer(page.items, np.int32) for page in pages]
    assert [row["session"] for row in found] == [0] * 4
    assert [row["item"] for row in found] == [pools[0][0], pools[0][4], pools[1][0], pools[1][1]]
    assert [row["page"] for row in found] == [0, 0, 1, 1]
    assert [row["page_age"] for row in found] == [0, 1, 0, 1]
    assert [row["page_requested"] for row in found] == [False, False, True, True]
    assert [row["request"] for row in found] == [False, True, False, False]
    assert [row["action"] for row in found] == [0, 4, None, 1]
    assert [row["answered"] for row in found] == [True, True, True, False]
    assert [row["click"] for row in found] == [False, True, False, None]
    assert [row["leave"] for row in found] == [False, False, True, None]
    assert [row["propensity"] for row in found] == [None] * 4
    assert [row["candidates"] is None for row in found] == [False, True, False, True]
    assert found[0]["candidates"] == pools[0].tolist() and found[2]["candidates"] == pools[1].tolist()
    assert found[0]["exposure_actions"][0] == pytest.approx(3 / 7)
    assert found[1]["page_view_actions"][2] == 1 and found[0]["page_view_actions"] is None
    assert found[3]["exposure_actions"] is None
    assert [row["time"] for row in found] == pytest.approx([0, 2.8, 2.8 + 2.8 + 1.0, 9.4])
    assert found[0]["user_features"] == pytest.approx(builder.features(5).tolist())
    assert found[1]["user_features"] is None
    assert all((row["user"], row["day"], row["hour"]) == (5, 3, 9) for row in found)
    config = lite.config
    features = read_features(pages[0].pool, (config.pool_size, config.n_item_features), pages[0].coding)
    d = config.embedding_size
    shipped = [found[1][name] for name in ("price_level", "base_ctr", "base_cvr", "freshness")]
    assert shipped == pytest.approx(np.clip(features[4, d : d + 4], 0, 1).tolist())


def test_each_session_is_logged_once_whenever_the_service_is_killed(
    tmp_path: Path, lite: Scenario, builder: PageBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    async def run(sessions: range, before: bool = False, after: bool = False) -> None:
        """Start, play and log; killed before or after the part is written, and nothing is cleaned up."""
        store = SqliteStore(tmp_path / "store.db")
        log = log_of(tmp_path, store, lite, builder)
        await log.begin()
        for session in sessions:
            await play(service_of(builder, store), session)
        write, release = log._writer.write, store.release_parts

        async def forgets(part: int) -> None:
            """A killed process frees nothing."""

        def killed(table: Any) -> None:
            if after:
                write(table)
            if before or after:
                raise KilledError

            write(table)

        monkeypatch.setattr(log._writer, "write", killed)
        monkeypatch.setattr(store, "release_parts", forgets)
        try:
            await log.write_part()
        except KilledError:
            pass
        monkeypatch.setattr(store, "release_parts", release)
        await store.close()

    asyncio.run(run(range(1, 4), before=True))
    assert LogReader(tmp_path / "log", allow_empty=True).paths == []
    asyncio.run(run(range(4, 6), after=True))
    assert [row["user"] for row in rows(tmp_path)[::4]] == [1, 2, 3, 4, 5]
    asyncio.run(run(range(6, 8)))
    asyncio.run(run(range(0)))
    assert [row["user"] for row in rows(tmp_path)[::4]] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["session"] for row in rows(tmp_path)[::4]] == list(range(7))


def test_sessions_that_make_no_rows_are_left_out(
    tmp_path: Path, lite: Scenario, builder: PageBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db")
        log = log_of(tmp_path, store, lite, builder)
        for session, messages in (
            (1, [End(0, [])]),
            (2, [Delta(0, [Answer(item=3, page=0, age=0, action=1, exposure=DWELL)]), End(1, [])]),
        ):
            exchange = Exchange(service_of(builder, store))
            for message in (hello(session, user=session), *messages):
                await exchange.answer(message)
        await play(service_of(builder, store), 3)
        assert await log.write_part() == 3
        assert await log.write_part() == 0
        await store.close()

    asyncio.run(run())
    assert {row["user"] for row in rows(tmp_path)} == {3}
    assert "session 1 is not logged: it has no cards" in caplog.text
    assert "session 2 is not logged: slot 0 shows item 3, which was not on page 0" in caplog.text


def test_a_full_disk_delays_the_log(
    tmp_path: Path, lite: Scenario, builder: PageBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db")
        log = log_of(tmp_path, store, lite, builder)
        await play(service_of(builder, store), 1)

        def full(table: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(log._writer, "write", full)
            running = asyncio.create_task(log.run(0.001))
            await asyncio.sleep(0.05)
            assert not running.done()
            await log.end(running)
        assert rows_or_none(tmp_path) == []
        running = asyncio.create_task(log.run(1000))
        await log.end(running)
        await store.close()

    asyncio.run(run())
    assert len(rows(tmp_path)) == 4


def rows_or_none(folder: Path) -> list[Any]:
    return list(LogReader(folder / "log", allow_empty=True).paths)


def test_another_log_is_not_continued(tmp_path: Path, lite: Scenario, builder: PageBuilder) -> None:
    from edgerec_gym.errors import InputError

    LogWriter(tmp_path / "log", lite.config, lite.catalog, {"source": "something else"})

    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db")
        try:
            with pytest.raises(InputError, match="holds another log"):
                log_of(tmp_path, store, lite, builder)
        finally:
            await store.close()

    asyncio.run(run())
