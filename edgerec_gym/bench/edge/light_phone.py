"""Phones without a policy: a link and a store, and answers that people of the scenario gave before.

Many of them fit into a process. What the service sees of one is what it sees of a phone that keeps the
cloud's order: the same messages, at the same pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgerec_gym.agents.baselines import Keep
from edgerec_gym.agents.device.runtime import LONG_DWELL, SECONDS
from edgerec_gym.answers import (
    CLICK,
    DELETE_REASON,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    RESPONSE_SIZE,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.link import Link
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.protocol.coding import to_levels
from edgerec_gym.protocol.messages import Answer, Page, PageRequest
from edgerec_gym.scenario import Scenario
from edgerec_gym.users import make_users


class Told(NamedTuple):
    """What a person once told about a card.

    Attributes:
        exposure, page_view: levels, as in an Answer.
        leave: whether the person left.
        urgent: whether the cloud is told at once.
        seconds: time that the person took.
    """

    exposure: bytes
    page_view: bytes
    leave: bool
    urgent: bool
    seconds: float


def record_people(scenario: Scenario, users: str, sessions: int, seed: int = 0) -> list[list[Told]]:
    """Return what people tell in sessions with the cloud's own order, session by session."""
    config = scenario.config
    batch = FeedBatch(sessions, "joint", config, scenario.catalog, make_users(users, scenario, config))
    batch.reset(np.arange(sessions), np.arange(seed, seed + sessions))
    arrays, keep = batch.arrays, Keep()
    ended = np.zeros(sessions, np.bool_)
    found: list[list[Told]] = [[] for _ in range(sessions)]
    while not ended.all():
        known = arrays.exposures.copy()
        actions = np.asarray(keep.act(batch.observation(copy=False)))
        batch.step(np.where(ended, 0, actions), skip=ended)
        for row in np.flatnonzero((arrays.exposures > known) & ~ended).tolist():
            found[row].append(_told(arrays.response[row], config))
        ended |= arrays.terminated | arrays.truncated
    batch.close()
    return [session for session in found if session]


def _told(response: np.ndarray, config: FeedConfig) -> Told:
    clicked = bool(response[CLICK] > 0.5)
    exposure = np.concatenate([response[:N_EXPOSURE_ACTIONS], response[RESPONSE_SIZE:]])
    return Told(
        to_levels(exposure),
        to_levels(response[PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS]) if clicked else b"",
        bool(response[LEAVE] > 0.5),
        bool(clicked or response[DELETE_REASON] > 0 or response[0] >= LONG_DWELL),
        float(SECONDS[round(float(response[0]) * (len(SECONDS) - 1))]) * config.dwell_scale,
    )


def seconds_of_page(scripts: Sequence[Sequence[Told]], page_size: int) -> float:
    """Return the mean seconds that people take for a page, the first of each session included."""
    pages = sum(-(-len(script) // page_size) for script in scripts)
    return sum(told.seconds for script in scripts for told in script) / pages


class LightSession:
    """One session of a phone without a policy.

    Args:
        config: the feed.
        session: its key and user.
        script: what is told, card by card.
        speed: how much faster than people the phone plays; inf: as fast as it can, and it waits for each
            page that it asks for.

    Attributes:
        page_seconds: seconds from each request to its page.
    """

    def __init__(
        self, config: FeedConfig, session: PhoneSession, script: Sequence[Told], speed: float
    ) -> None:
        self._config, self._session, self._script, self._speed = config, session, script, speed
        self._asked_at = 0.0
        self.page_seconds: list[float] = []

    def came(self, page: Page) -> None:
        """Note how long a page took."""
        self.page_seconds.append(asyncio.get_running_loop().time() - self._asked_at)

    async def play(self, link: Link) -> None:
        """Play the session over a link that runs, and wait until the cloud has it."""
        page = await self._page(link, 0)
        items, age = _items(page), 0
        script = self._script[: self._config.max_slots]
        for number, told in enumerate(script):
            if age == len(items):  # nothing is left to place
                page = await link.wait_page()
                if page is None:
                    return
                items, age = _items(page), 0
            assert page is not None
            asks = age == self._config.page_size - 1 and number < len(script) - 1
            answer = Answer(
                items[age], page.page, age, -1, told.exposure, told.page_view, told.leave, requested=False
            )
            link.tell(answer, told.urgent)
            age += 1
            if asks:
                self._ask(link, page.page + 1)
            await asyncio.sleep(told.seconds / self._speed)
            came = await link.wait_page() if asks and self._speed == float("inf") else link.take_page()
            if came is not None:
                page, items, age = came, _items(came), 0
        link.end()
        await link.wait_done()

    async def _page(self, link: Link, number: int) -> Page | None:
        self._ask(link, number)
        return await link.wait_page()

    def _ask(self, link: Link, number: int) -> None:
        slot = min(link.answers, self._config.max_slots)
        self._asked_at = asyncio.get_running_loop().time()
        link.want_page(PageRequest(number, slot, link.answers, [], "automatic" if number else "start"))


def _items(page: Page | None) -> list[int]:
    """Return the candidates of a page; none if there is no page."""
    if page is None:
        return []
    items = np.frombuffer(page.items, np.int32)
    return [int(item) for item in items[items >= 0]]
