"""Pages as a service builds them: one session at a time, by the kernels that build the feed's own pages.

A page is a function of the session's key, its user, the request and the answers that the request names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.answers import response_size
from edgerec_gym.cloud.interest import evidence_of, moved_interest
from edgerec_gym.cloud.retrieval import build_page, mark_shown
from edgerec_gym.cloud.wire import CloudArrays, cloud_ranking, make_cloud
from edgerec_gym.compiled.arrays import AddressTable, Float32Matrix, Int32Vector, reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point
from edgerec_gym.compiled.random_stream import SPLITS
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.answers import responses_of
from edgerec_gym.protocol.coding import write_features
from edgerec_gym.protocol.messages import Answer, Page, PageRequest
from edgerec_gym.scenario import Scenario
from edgerec_gym.state import UNUSED, FeedArrays, allocate
from edgerec_gym.users.people import user_table

KEY = 2**64  # keys are unsigned, messages hold signed numbers
EVAL = SPLITS.index("eval")


class Answered(NamedTuple):
    """The answers of a session so far, and what it has placed.

    Attributes:
        responses: (max_slots, 21 + R) float32, as in the feed.
        items: (max_slots,) int32, items with an answer, then those without.
    """

    responses: Float32Matrix
    items: Int32Vector


read_feed, read_cloud, read_answered = reader(FeedArrays), reader(CloudArrays), reader(Answered)


def _entry_points(digest: str) -> Any:
    # The digest becomes part of numba's cache key; see compiled/jit.py.
    @entry_point
    def build(feed_address, cloud_address, answered_address, answers, placed):
        _ = digest
        feed, cloud = read_feed(feed_address), read_cloud(cloud_address)
        answered = read_answered(answered_address)
        for k in range(feed.shown.shape[1]):
            feed.shown[0, k] = UNUSED
        for j in range(placed):
            mark_shown(feed, 0, answered.items[j])
        for k in range(feed.n_embedding):
            feed.wire_interest[0, k] = 0.0
        for j in range(answers):
            evidence = evidence_of(cloud, answered.responses, j)
            for k in range(feed.n_embedding):
                feed.wire_interest[0, k] = moved_interest(
                    cloud, feed.wire_interest[0, k], evidence, cloud.items[answered.items[j], k]
                )
        build_page(feed, cloud, 0, 0)

    return build


_build = _entry_points(SOURCE_DIGEST)


class PageBuilder:
    """Builds pages of a scenario; one thread at a time.

    Args:
        scenario: the catalogue and the feed.
        users: "synthetic" or "learned": whose users the service knows.

    Attributes:
        config: the feed.

    Raises:
        InputError: the scenario's pages are logged ones, which belong to visits and not to requests.
    """

    def __init__(self, scenario: Scenario, users: str = "synthetic") -> None:
        self.config = config = scenario.config
        self._users = user_table(scenario, users)
        if config.cloud.supply != "catalogue":
            raise InputError(
                f"scenario {scenario.name!r} has cloud.supply = {config.cloud.supply!r}: its pages were "
                "logged and cannot be built anew; allowed: 'catalogue'"
            )
        cloud = make_cloud(scenario.catalog, config)
        self.n_items = len(cloud.items)
        self._arrays = allocate(config, "joint", 1, EVAL, cloud_ranking(cloud, config, 1))
        slots = config.max_slots
        self._answered = Answered(
            np.zeros((slots, response_size(config)), np.float32), np.zeros(slots, np.int32)
        )
        self._feed, self._cloud = AddressTable(self._arrays), AddressTable(cloud)
        self._answers_table = AddressTable(self._answered)

    @property
    def n_users(self) -> int:
        """Number of users; they are numbered from 0."""
        return len(self._users)

    def features(self, user: int) -> np.ndarray:
        """Return what the cloud ships about a user, (U,) float32; InputError if there is no such user."""
        if not 0 <= user < self.n_users:
            raise InputError(f"user {user} is unknown; allowed: 0 to {self.n_users - 1}")
        features: np.ndarray = self._users[user]
        return features

    def build(self, session: int, user: int, request: PageRequest, answers: Sequence[Answer]) -> Page:
        """Build the page that a request asks for.

        Args:
            session: key of the session, signed.
            user: number of the user.
            request: the request.
            answers: the session's answers, in order; those beyond `request.answers` are not read.

        Raises:
            InputError: unknown items, answers of another feed, or more cards than a session has.
        """
        a, answered = self._arrays, self._answered
        answers = answers[: request.answers]
        known = len(answers)
        items = [answer.item for answer in answers]
        seen = set(items)
        items += [item for item in dict.fromkeys(request.placed) if item not in seen]
        if len(items) > self.config.max_slots:
            raise InputError(f"{len(items)} cards in a session; allowed: {self.config.max_slots}")
        if request.slot > self.config.max_slots:
            raise InputError(f"slot {request.slot}; allowed: 0 to {self.config.max_slots}")
        if items and max(items) >= self.n_items:
            raise InputError(f"item {max(items)} is not in the catalogue; allowed: 0 to {self.n_items - 1}")
        answered.items[: len(items)] = items
        answered.responses[:known] = responses_of(answers, self.config.n_responses)
        a.key[0], a.slot[0], a.page[0] = session % KEY, request.slot, request.page
        a.observation[0, a.user_at : a.user_at + a.n_user] = self.features(user)
        _build(self._feed.address, self._cloud.address, self._answers_table.address, known, len(items))
        config = self.config
        pool = a.observation[0, a.pool_at : a.pool_at + a.n_pool * a.n_features].reshape(a.n_pool, -1)
        width = a.n_features + a.n_types
        cards = a.observation[0, a.cards_at : a.cards_at + a.n_cards * width].reshape(config.n_cards, width)
        return Page(
            page=request.page,
            answers=known,
            items=a.pool_items[0].tobytes(),
            pool=write_features(pool, request.coding),
            cards=a.card_items[0].tobytes(),
            card_features=write_features(cards[:, : a.n_features], request.coding),
            summary=a.page_summary[0].tobytes(),
            coding=request.coding,
        )
