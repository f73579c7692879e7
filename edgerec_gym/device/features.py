"""What a phone's model reads, from the events of a session: the only such code on the phone.

The rows are written by the kernels of the feed itself (feed/observe.py, feed/kernels.py), so a model reads on
the phone what it has read in training, bit for bit. Where the feed builds a page, a phone waits for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import structs

from edgerec_gym.answers import (
    CLICK,
    CLICK_PROBABILITY,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    RESPONSE_SIZE,
    Focus,
)
from edgerec_gym.cloud.retrieval import was_shown
from edgerec_gym.cloud.wire import CloudArrays, phone_cloud, receive
from edgerec_gym.compiled.arrays import AddressTable, read_only, reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point
from edgerec_gym.compiled.random_stream import SPLITS
from edgerec_gym.compiled.selection import make_ranking
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.feed import reward
from edgerec_gym.feed.kernels import clear_session, place, take_in
from edgerec_gym.feed.observe import observe, pool_changed
from edgerec_gym.policy import Observation
from edgerec_gym.protocol.coding import read_features, rounded, to_levels
from edgerec_gym.protocol.messages import Answer, Page
from edgerec_gym.spaces import n_actions, observation_layout
from edgerec_gym.state import NO_ITEM, FeedArrays, allocate

EVAL = SPLITS.index("eval")
KEY = 2**64
NOTHING, ASKED, AUTOMATIC = range(3)  # what a slot has sent to the cloud

read_feed, read_cloud = reader(FeedArrays), reader(CloudArrays)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest becomes part of numba's cache key; see compiled/jit.py.
    @entry_point
    def clear(feed_address):
        _ = digest
        clear_session(read_feed(feed_address), 0)

    @entry_point
    def land(feed_address, cloud_address, action):
        _ = digest
        place(read_feed(feed_address), read_cloud(cloud_address), 0, action)

    @entry_point
    def take(feed_address, cloud_address):
        _ = digest
        take_in(read_feed(feed_address), read_cloud(cloud_address), 0)

    @entry_point
    def drop_shown(feed_address):
        _ = digest
        feed = read_feed(feed_address)
        left = 0
        for r in range(feed.n_pool):
            item = feed.pool_items[0, r]
            if item != NO_ITEM and was_shown(feed.shown, 0, item):
                feed.pool_items[0, r] = NO_ITEM
                for k in range(feed.n_features):
                    feed.observation[0, feed.pool_at + r * feed.n_features + k] = 0.0
            if feed.pool_items[0, r] != NO_ITEM:
                left += 1
        feed.pool_left[0] = left
        width = feed.n_features + feed.n_types
        for m in range(feed.n_cards):
            item = feed.card_items[0, m]
            if item != NO_ITEM and was_shown(feed.shown, 0, item):
                feed.card_items[0, m] = NO_ITEM
                for k in range(width):
                    feed.observation[0, feed.cards_at + m * width + k] = 0.0

    @entry_point
    def turn_page(feed_address):
        _ = digest
        feed = read_feed(feed_address)
        feed.wire[0] = 0
        receive(feed, 0)
        feed.arrived[0] = True

    @entry_point
    def show(feed_address, new_page):
        _ = digest
        feed = read_feed(feed_address)
        if new_page:
            pool_changed(feed, 0)
        observe(feed, 0)

    @entry_point
    def settle(feed_address):
        _ = digest
        reward.settle(read_feed(feed_address), 0)

    return clear, land, take, drop_shown, turn_page, show, settle


_clear, _land, _take, _drop_shown, _turn_page, _show, _settle = _entry_points(SOURCE_DIGEST)


class SessionFeatures:
    """One session on a phone, slot by slot: begin, page, then place, answer, page if one is there, observe.

    Args:
        config: the feed.
        track: what is decided on the phone (:data:`edgerec_gym.spaces.TRACKS`).

    Attributes:
        arrays: the session's state, (1, ...) each; internal, as kernels trust it.
        focus: the card that is answered next, for who answers; read-only views.
    """

    def __init__(self, config: FeedConfig, track: str = "joint") -> None:
        self.config, self.track = config, track
        self.arrays = a = allocate(config, track, 1, EVAL, make_ranking(1, 1, 1, 1))
        self._feed, self._cloud = AddressTable(a), AddressTable(phone_cloud(config))
        self.n_actions = n_actions(config, track)
        buffer, stride = a.observation, a.observation.strides[0]
        self._views = {
            key: read_only(np.ndarray((1, *shape), dtype, buffer, offset, (stride, *strides)))
            for key, (dtype, shape, offset, strides) in observation_layout(config, track).items()
        }
        seen = (a.focus_active, a.window_cards, a.window_items, a.focus_context, a.key, a.window_page)
        self.focus = Focus(*map(read_only, seen))

    def begin(self, session: int, user: np.ndarray, hour: int) -> None:
        """Begin a session; it can be played once its first page is there.

        Args:
            session: its key, signed.
            user: (U,) float32, as the cloud shipped it.
            hour: 0..23.
        """
        a = self.arrays
        if user.shape != (a.n_user,) or not (np.abs(user) <= 1 + 1e-6).all():
            raise InputError(f"the user has {user.shape[0]} features; needed are {a.n_user}, each in -1..1")
        a.key[0], a.hour[0] = session % KEY, hour
        a.observation[0, a.user_at : a.user_at + a.n_user] = user
        a.pool_items[:] = NO_ITEM
        a.card_items[:] = NO_ITEM
        a.pool_left[0] = 0
        for values in (self._pool(), self._cards()):
            values[:] = 0.0
        _clear(self._feed.address)
        a.page[0] = -1
        self._cards_placed: list[Answer] = []
        self.show(new_page=True)

    @property
    def page(self) -> int:
        """Number of the page that is played; -1 before the first."""
        return int(self.arrays.page[0])

    @property
    def slot(self) -> int:
        """Number of cards placed."""
        return int(self.arrays.slot[0])

    @property
    def answers(self) -> int:
        """Number of cards answered."""
        return int(self.arrays.exposures[0])

    @property
    def candidates(self) -> int:
        """Number of candidates left in the pool; with none, nothing can be placed."""
        return int(self.arrays.pool_left[0])

    @property
    def ended(self) -> bool:
        """Whether the session is over."""
        return bool(self.arrays.terminated[0] or self.arrays.truncated[0])

    @property
    def page_due(self) -> int:
        """Slots until a page is expected; 0 if none is on its way."""
        return int(self.arrays.wire[0])

    def check(self, page: Page) -> None:
        """Raise InputError if a page is not the next one, has other sizes, wrong features or no candidate."""
        self._read(page)

    def turn(self, page: Page) -> None:
        """Go on with a page, without what was placed since it was built; InputError as :meth:`check`."""
        a, config = self.arrays, self.config
        items, pool, cards, features = self._read(page)
        width, own = config.n_item_features, self._cards()
        self._pool()[:] = pool
        own[:, :width], own[:, width:] = features, 0.0
        rows = np.flatnonzero(cards >= 0)
        own[rows, width + 1 + rows % max(1, config.n_types - 1)] = 1.0
        a.pool_items[0], a.card_items[0] = items, cards
        a.page_summary[0] = np.frombuffer(page.summary, np.float32)
        _drop_shown(self._feed.address)
        if self.page < 0:
            a.page[0] = 0
        else:
            _turn_page(self._feed.address)
        self.show(new_page=True)

    def place(self, action: int) -> int:
        """Place a card.

        Args:
            action: index in the track's action space.

        Returns:
            What the slot asks the cloud for: :data:`NOTHING`, :data:`ASKED` or :data:`AUTOMATIC`.

        Raises:
            InputError: no candidate is left, or the action is outside the action space.
        """
        if not self.candidates:
            raise InputError("no candidate is left to place; wait for a page")
        if not 0 <= action < self.n_actions:
            raise InputError(
                f"action {action} is outside the action space; allowed: 0 to {self.n_actions - 1}"
            )
        a = self.arrays
        page, age = self.page, int(a.page_age[0])
        _land(self._feed.address, self._cloud.address, action)
        sent = int(a.sent[0])
        self._cards_placed.append(
            Answer(int(a.placed_item[0]), page, age, int(a.placed_action[0]), b"", requested=sent == ASKED)
        )
        return sent

    def replay(self, card: Answer) -> int:
        """Place a card again as it was placed before; returns what :meth:`place` does."""
        joint = card.action
        if self.track == "joint" and card.requested:
            joint = self.n_actions - 1
        elif self.track == "mix":
            joint = max(0, joint - self.config.pool_size + 1)
        elif self.track == "request":
            joint = int(card.requested)
        return self.place(joint)

    def answer(self, response: np.ndarray | None) -> Answer | None:
        """Take in what the user did with the card in focus; without one, the time passes.

        Args:
            response: (21 + R,) float32 in 0..1 (answers.py); its actions are rounded before anything reads
                them. None if no card is in focus yet.

        Returns:
            The answer as the cloud is told of it.
        """
        a, told = self.arrays, None
        if a.focus_active[0]:
            if response is None:
                raise InputError("a card is in focus: its answer is missing")
            told = self._take(response)
        _take(self._feed.address, self._cloud.address)
        if a.wire[0] > 0:
            a.wire[0] -= 1
        _settle(self._feed.address)
        return told

    def show(self, new_page: bool = False) -> None:
        """Write the observation anew, after an answer or a page."""
        _show(self._feed.address, new_page)

    def observation(self) -> Observation:
        """Return the observation as a batch of one: read-only views that the next slot changes."""
        return self._views.copy()

    def wait_for_page(self) -> None:
        """Expect the page that was asked for at the next slot, since it should be here and is not."""
        a = self.arrays
        a.wire[0] = max(1, a.wire[0])

    def items_since(self, answers: int) -> list[int]:
        """Return the items that were placed after the first so many answered ones."""
        return [card.item for card in self._cards_placed[answers:]]

    @property
    def last_placed(self) -> Answer:
        """The card that was placed last, as an answer without actions."""
        return self._cards_placed[-1]

    def placed_since(self, answers: int) -> list[Answer]:
        """Return the cards after the first so many, oldest first, as answers without actions."""
        return self._cards_placed[answers:]

    def _take(self, response: np.ndarray) -> Answer:
        """Write the rounded response into the feed and return it as a message."""
        a = self.arrays
        if response.shape != a.response[0].shape or not ((response >= 0) & (response <= 1)).all():
            raise InputError(f"an answer must be {a.response.shape[1]} numbers in 0..1")
        row, clicked = rounded(response), bool(response[CLICK] > 0.5)
        row[CLICK], row[LEAVE] = clicked, response[LEAVE] > 0.5
        if not clicked:
            row[PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS] = 0.0
        row[CLICK_PROBABILITY:RESPONSE_SIZE] = response[CLICK_PROBABILITY:RESPONSE_SIZE]  # not told
        a.response[0] = row
        exposure = np.concatenate([row[:N_EXPOSURE_ACTIONS], row[RESPONSE_SIZE:]])
        return structs.replace(
            self._cards_placed[self.answers],
            exposure=to_levels(exposure),
            page_view=to_levels(row[PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS]) if clicked else b"",
            leave=bool(row[LEAVE]),
        )

    def _read(self, page: Page) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return items (N,), their features, cards (M,) and theirs; InputError if the page does not fit."""
        config, width = self.config, self.config.n_item_features
        if page.page != self.page + 1:
            raise InputError(f"page {page.page} has come; expected is {self.page + 1}")
        items = _items(page.items, config.pool_size, "pool")
        cards = _items(page.cards, config.n_cards, "cards")
        pool = read_features(page.pool, (config.pool_size, width), page.coding)
        features = read_features(page.card_features, (config.n_cards, width), page.coding)
        if not np.isfinite(np.frombuffer(page.summary, np.float32)).all():
            raise InputError(f"page {page.page} has a summary that is not finite")
        if not (items >= 0).any():
            raise InputError(f"page {page.page} holds no candidate")
        pool[items < 0] = 0.0
        features[cards < 0] = 0.0
        return items, pool, cards, features

    def _pool(self) -> np.ndarray:
        a = self.arrays
        values = a.observation[0, a.pool_at : a.pool_at + a.n_pool * a.n_features]
        return values.reshape(a.n_pool, a.n_features)

    def _cards(self) -> np.ndarray:
        a = self.arrays
        width = a.n_features + a.n_types
        return a.observation[0, a.cards_at : a.cards_at + a.n_cards * width].reshape(a.n_cards, width)


def _items(data: bytes, count: int, name: str) -> np.ndarray:
    """Read item numbers, (count,) int32; InputError if there are others, or one stands twice."""
    items = np.frombuffer(data, np.int32) if len(data) == 4 * count else None
    if items is None:
        raise InputError(f"the page has {len(data)} bytes of {name}; {count} items have {4 * count}")
    present = items[items >= 0]
    if len(np.unique(present)) != len(present):
        raise InputError(f"the page offers an item twice in its {name}")
    return items
