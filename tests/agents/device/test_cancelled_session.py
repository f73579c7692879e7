"""A session that is cancelled ends, also if that happens while a page arrives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("websockets")

from edgerec_gym.agents.device.runtime import Session


class Waiting:
    """A link whose page arrives when it is told to."""

    def __init__(self) -> None:
        self.page: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait_page(self) -> None:
        await self.page

    def take_page(self) -> None:
        return None


@pytest.mark.parametrize("turns", range(4))
def test_a_page_that_arrives_hides_no_cancellation(turns: int) -> None:
    async def play() -> None:
        link: Any = Waiting()
        session: Any = object.__new__(Session)

        async def play_on() -> str:
            await session._wait_page(link, 60)
            await asyncio.sleep(30)
            return "played on"

        playing = asyncio.create_task(play_on())
        await asyncio.sleep(0.01)
        link.page.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(playing, 5)

    asyncio.run(play())
