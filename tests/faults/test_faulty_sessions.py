"""Whatever the network does: the cloud has every answer of the phone once, and loses none it acknowledged."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from schedules import schedules
from small_cloud import SESSION, SmallCloud, answer, page_of

from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link import Link
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.faults.schedule import Schedule, draw
from edgerec_gym.protocol.messages import PageRequest, encode

PATIENCE = 60  # seconds; a test that waits for so long has failed
PAGES, ANSWERS = 3, 6  # answers of each page
TOLD = [answer(number) for number in range(PAGES * ANSWERS)]
KEY = SESSION.session
FAST = LinkSettings(
    most_answers=4,
    most_seconds=0.003,
    reply_seconds=0.06,
    longest_reply_seconds=0.2,
    first_wait=0.004,
    longest_wait=0.02,
    open_seconds=5.0,
)


async def play(plan: Schedule, path: Path, restarts: bool = False) -> tuple[LagProxy, Link]:
    """Play a session over a bad network; with `restarts` the phone begins anew after each page."""
    async with SmallCloud() as cloud, LagProxy(cloud.port, plan) as proxy:
        phone = Phone(proxy.url(), "device", "token")
        told = 0
        for number in range(PAGES):
            if number == 0 or restarts:
                store = EventStore(path)
                link = Link(phone, SESSION, store, np.random.default_rng(plan.seed), FAST)
                task = asyncio.create_task(link.run())
                assert link.answers == told
            request = PageRequest(number, told, told, [], "automatic")
            link.want_page(request)
            page = await link.wait_page()
            assert page is not None and page == page_of(request, TOLD[: page.answers])
            assert cloud.pages[KEY, number] == encode(page)
            for place in range(ANSWERS):
                assert link.tell(TOLD[told], now=place == 2)
                told += 1
                await asyncio.sleep(0.001)
            assert len(cloud.answers[KEY]) >= max(link.acknowledged, cloud.acknowledged[KEY])
            if restarts and number < PAGES - 1:
                link.stop()
                await task
                store.close()
        link.end([answer(99)])
        assert await link.wait_done()
        await task
        assert cloud.answers[KEY] == store.answers(KEY) == TOLD
        assert cloud.placed[KEY] == [answer(99)]
        assert len(cloud.answers[KEY]) >= cloud.acknowledged[KEY]
        assert link.counts.violations == 0 and not link.refused
        store.close()
        return proxy, link


@settings(deadline=None, max_examples=30, derandomize=True)
@given(schedules())
def test_the_cloud_has_what_the_phone_has(plan: Schedule) -> None:
    async def work() -> None:
        async with asyncio.timeout(PATIENCE):
            with TemporaryDirectory() as folder:
                await play(plan, Path(folder) / "phone.db")

    asyncio.run(work())


@settings(deadline=None, max_examples=15, derandomize=True)
@given(schedules())
def test_a_phone_that_starts_again_goes_on(plan: Schedule) -> None:
    async def work() -> None:
        async with asyncio.timeout(PATIENCE):
            with TemporaryDirectory() as folder:
                await play(plan, Path(folder) / "phone.db", restarts=True)

    asyncio.run(work())


@pytest.mark.parametrize("first", [0, 50])
def test_100_drawn_schedules(tmp_path: Path, first: int) -> None:
    """Many phones and networks at once, each with a cloud of its own."""

    async def work() -> None:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(
                *(play(draw(seed), tmp_path / f"{seed}.db") for seed in range(first, first + 50))
            )

    results = asyncio.run(work())
    happened = sum((proxy.happened for proxy, _ in results), Counter())
    assert set(happened) == {"CutAtByte", "CutAtTime", "Duplicate", "Refusal", "Reorder"}
    assert sum(link.counts.failures for _, link in results) > 20
    assert sum(link.counts.resent for _, link in results) > 20
    for number in range(first, first + 50):
        with closing(EventStore(tmp_path / f"{number}.db")) as store:
            kept = store.session(KEY)
            assert kept is not None and kept.ended and kept.acknowledged == len(TOLD)
