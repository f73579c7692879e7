"""What is on the phone at one slot, in plain values, as frames, text and session replays show it.

Everything here is read from the arrays of the batch, so a screen shows what the device could know. Only
`intent` is hidden from policies; it is available for synthetic users only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from edgerec_gym.answers import (
    CLICK,
    DELETE_REASON,
    DELETE_REASONS,
    DWELL_BUCKETS,
    DWELL_EDGES,
    LEAVE,
    PAGE_VIEW,
    PAGE_VIEW_ACTIONS,
    PAGE_VIEW_BUCKETS,
    PAGE_VIEW_EDGES,
    RESPONSE_SIZE,
    SLOT,
)
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import FeedConfig
from edgerec_gym.feed.batch import BEGIN, PLAY
from edgerec_gym.spaces import N_SCALARS
from edgerec_gym.state import NO_ITEM, FeedArrays
from edgerec_gym.users.synthetic import SyntheticUsers

GOODS = "goods"
KEPT, PROMOTED, INSERTED = "kept", "promoted", "inserted"
REQUESTED, AUTOMATIC = "requested", "automatic"
_SENT = (None, REQUESTED, AUTOMATIC)


@dataclass(frozen=True)
class Answer:
    """What the user did with a card.

    Attributes:
        dwell: duration of the exposure, a bucket in 0..1 as in the observation (e1).
        dwell_seconds: the bucket in words, e.g. "4-8 s".
        click: the card was opened.
        view: duration of the page view in 0..1 (d1), 0 without a click.
        view_seconds: the bucket in words; "" without a click.
        actions: page-view actions taken, e.g. ("cart", "buy").
        deleted: why the card was deleted ("dislike", "seen"); None if it was not.
        left: the user left the feed here.
        responses: named responses given, e.g. ("like",).
    """

    dwell: float
    dwell_seconds: str
    click: bool
    view: float
    view_seconds: str
    actions: tuple[str, ...]
    deleted: str | None
    left: bool
    responses: tuple[str, ...] = ()

    @property
    def bought(self) -> bool:
        """Whether the page view ended in a purchase."""
        return "buy" in self.actions


@dataclass(frozen=True)
class Card:
    """A card that the feed has shown.

    Attributes:
        slot: slot in the session, from 0.
        item: row of the catalogue.
        kind: "goods" or one of the feed's card types.
        category: category in the catalogue; a cluster of embeddings if the data set has no categories.
        placed: "kept" (the cloud's next candidate), "promoted" (a later one) or "inserted" (a card).
        row: pool row, or card row if inserted.
        passed: number of candidates that it was promoted over; 0 unless promoted.
        invalid: the action was illegal, so *keep* was played.
        page: the page it came with, from 0.
        page_from: how that page came about, "requested" (by the policy) or "automatic" (e.g. the first one).
        request: request sent with this card, "requested" or "automatic"; None if there was none.
        price_level, base_ctr, base_cvr, freshness: as the cloud ships them, in 0..1.
        answer: what the user did; None while the card waits on the screen.
    """

    slot: int
    item: int
    kind: str
    category: int
    placed: str
    row: int
    passed: int
    invalid: bool
    page: int
    page_from: str
    request: str | None
    price_level: float
    base_ctr: float
    base_cvr: float
    freshness: float
    answer: Answer | None = None


@dataclass(frozen=True)
class Screen:
    """The session as it stands after a slot.

    Attributes:
        cards: all cards so far, oldest first; those without an answer wait on the screen.
        slot: cards placed so far.
        max_slots: slots at which the session is truncated.
        hour: hour of the day, 0..23.
        page: number of pages that have arrived after the first one.
        page_age: cards placed since the page arrived.
        page_size: slots from one automatic page to the next.
        page_from: how the page came about, "requested" or "automatic".
        arrived: whether the page arrived with the last slot.
        on_the_wire: "requested" or "automatic" while a page is in transit, else None.
        arrives_in: slots until that page arrives; 0 if none is in transit.
        requests: requests by the policy so far.
        requests_left: requests left in the budget; None without a budget.
        pool_left, pool_size: candidates not shown yet, and in total.
        cards_left: mix-in cards of the page not shown yet.
        reward: sum so far, in reward units.
        last_reward: reward of the last slot.
        terms: sums of the reward terms so far, by name, in reward units.
        end: "left" (the user), "cut off" (max_slots), None while the session goes on.
        intent: category of the user's intent at each answered card, then the current one. Latent: None unless
            the users are synthetic.
    """

    cards: tuple[Card, ...]
    slot: int
    max_slots: int
    hour: int
    page: int
    page_age: int
    page_size: int
    page_from: str
    arrived: bool
    on_the_wire: str | None
    arrives_in: int
    requests: int
    requests_left: int | None
    pool_left: int
    pool_size: int
    cards_left: int
    reward: float
    last_reward: float
    terms: dict[str, float]
    end: str | None
    intent: tuple[int, ...] | None

    @property
    def clicks(self) -> int:
        """Clicks so far."""
        return sum(card.answer is not None and card.answer.click for card in self.cards)

    @property
    def purchases(self) -> int:
        """Purchases so far."""
        return sum(card.answer is not None and card.answer.bought for card in self.cards)


class Feeds(Protocol):
    """Feeds that can be followed: a batch, or the one on a phone.

    Attributes:
        num_envs: number of feeds.
        config: of the feeds.
        arrays: what is on their screens.
        users: who answers.
        watcher: called after every slot with what each feed did, (B,).
    """

    num_envs: int
    config: FeedConfig
    arrays: FeedArrays
    users: Any
    watcher: Any


@dataclass
class _Session:
    """What the batch does not keep: cards that have left the window, sums, earlier pool rows and intents."""

    unused: np.ndarray  # (N,) bool, pool rows that were not shown before the last slot
    terms: np.ndarray  # (7 + R,)
    cards: list[Card] = field(default_factory=list)
    intent: list[int] = field(default_factory=list)  # at each answered card
    intent_now: int | None = None
    reward: float = 0.0


class ScreenRecorder:
    """Follows a batch and returns what is on each row's screen.

    It makes itself the batch's `watcher`, called after every slot, even within the plans of EdgeFeedSlate-v0.
    A batch without a watcher records nothing.

    Args:
        batch: the feeds to follow, before their first reset.
        catalog: what the cloud retrieves from, for the categories.
    """

    def __init__(self, batch: Feeds, catalog: Catalog) -> None:
        self.batch, self.catalog = batch, catalog
        self._sessions: list[_Session | None] = [None] * batch.num_envs
        self._names = (GOODS, *batch.config.card_types)
        batch.watcher = self

    def __call__(self, modes: np.ndarray) -> None:
        """Record the last slot of the rows that played and the start of those that began; modes (B,)."""
        for row in np.flatnonzero((modes == PLAY) | (modes == BEGIN)).tolist():
            session = self._sessions[row]
            if modes[row] == BEGIN or session is None:
                self._sessions[row] = self._new_session(row, self._intent(row))
            else:
                self._follow(session, row)

    def screen(self, row: int = 0) -> Screen:
        """Return what is on one row's screen; an empty screen before the first reset."""
        a, config = self.batch.arrays, self.batch.config
        session = self._sessions[row] or self._new_session(row)
        on_the_wire = None
        if a.wire[row] > 0:
            on_the_wire = REQUESTED if a.wire_requested[row] else AUTOMATIC
        intent = None
        if session.intent_now is not None:
            intent = (*session.intent, session.intent_now)
        budget, requests = config.request_budget, int(a.requests[row])
        return Screen(
            cards=tuple(session.cards),
            slot=int(a.slot[row]),
            max_slots=config.max_slots,
            hour=int(a.hour[row]),
            page=int(a.page[row]),
            page_age=int(a.page_age[row]),
            page_size=config.page_size,
            page_from=REQUESTED if a.page_requested[row] else AUTOMATIC,
            arrived=bool(a.arrived[row]),
            on_the_wire=on_the_wire,
            arrives_in=int(a.wire[row]),
            requests=requests,
            requests_left=None if budget is None else budget - requests,
            pool_left=int((a.pool_items[row] != NO_ITEM).sum()),
            pool_size=config.pool_size,
            cards_left=int((a.card_items[row] != NO_ITEM).sum()),
            reward=session.reward,
            last_reward=float(a.reward[row]),
            terms=dict(zip(config.reward_terms, session.terms.tolist(), strict=True)),
            end="left" if a.terminated[row] else "cut off" if a.truncated[row] else None,
            intent=intent,
        )

    def _new_session(self, row: int, intent: int | None = None) -> _Session:
        terms = np.zeros(len(self.batch.config.reward_terms))
        return _Session(self._unused(row), terms, intent_now=intent)

    def _follow(self, session: _Session, row: int) -> None:
        a, config = self.batch.arrays, self.batch.config
        session.cards.append(self._placed(session, row))
        if a.focus_active[row]:
            focused = int(a.focus_context[row, SLOT])
            answer = _answer(a.response[row], config)
            session.cards[focused] = replace(session.cards[focused], answer=answer)
            if session.intent_now is not None:
                session.intent.append(session.intent_now)
        session.intent_now = self._intent(row)
        session.unused = self._unused(row)
        session.reward += float(a.reward[row])
        session.terms += a.reward_terms[row]

    def _placed(self, session: _Session, row: int) -> Card:
        """Return the card that has just landed at the bottom."""
        a, config = self.batch.arrays, self.batch.config
        where, item = int(a.placed_action[row]), int(a.placed_item[row])
        newest, arrived = a.window_cards[row, a.newest], bool(a.arrived[row])
        inserted = where >= config.pool_size
        # A page that has come since has filled the pool again; on a phone it comes later.
        unused = session.unused if arrived else self._unused(row)
        passed = 0 if inserted else int(unused[:where].sum())
        scalars = newest[config.embedding_size : config.embedding_size + N_SCALARS].tolist()
        return Card(
            slot=int(a.slot[row]) - 1,
            item=item,
            kind=self._names[int(newest[config.n_item_features :].argmax())],
            category=int(self.catalog.category[item]),
            placed=INSERTED if inserted else PROMOTED if passed else KEPT,
            row=where - config.pool_size if inserted else where,
            passed=passed,
            invalid=bool(a.invalid[row]),
            page=int(a.page[row]) - arrived,
            page_from=REQUESTED if a.window_requested[row, a.newest] else AUTOMATIC,
            request=_SENT[int(a.sent[row])],
            price_level=scalars[0],
            base_ctr=scalars[1],
            base_cvr=scalars[2],
            freshness=scalars[3],
        )

    def _unused(self, row: int) -> np.ndarray:
        return self.batch.arrays.pool_items[row] != NO_ITEM

    def _intent(self, row: int) -> int | None:
        """Return the category nearest to the user's intent; None unless the users are synthetic."""
        users = self.batch.users
        if not isinstance(users, SyntheticUsers):
            return None
        return int((users.world.centres @ users.arrays.intent_now[row]).argmax())


def _answer(response: np.ndarray, config: FeedConfig) -> Answer:
    """Read a response row (21 + R,) of a feed."""
    looked = tuple(config.dwell_scale * edge for edge in DWELL_EDGES)
    click = bool(response[CLICK] > 0)
    actions = response[PAGE_VIEW : PAGE_VIEW + len(PAGE_VIEW_ACTIONS)]
    reason = round(float(response[DELETE_REASON]) * (len(DELETE_REASONS) - 1))
    return Answer(
        dwell=float(response[0]),
        dwell_seconds=_seconds(float(response[0]), DWELL_BUCKETS, looked),
        click=click,
        view=float(actions[0]),
        view_seconds=_seconds(float(actions[0]), PAGE_VIEW_BUCKETS, PAGE_VIEW_EDGES) if click else "",
        actions=tuple(PAGE_VIEW_ACTIONS[k] for k in range(1, len(actions)) if actions[k] > 0),
        deleted=DELETE_REASONS[reason] if reason else None,
        left=bool(response[LEAVE] > 0),
        responses=tuple(
            name for name, value in zip(config.responses, response[RESPONSE_SIZE:], strict=True) if value > 0
        ),
    )


def _seconds(value: float, buckets: int, edges: tuple[float, ...]) -> str:
    """Return a stored duration, b / (n - 1) for bucket b of n, in words."""
    bucket = round(value * (buckets - 1))
    if bucket == 0:
        return f"under {edges[0]:g} s"
    return f"over {edges[-1]:g} s" if bucket == buckets - 1 else f"{edges[bucket - 1]:g}-{edges[bucket]:g} s"
