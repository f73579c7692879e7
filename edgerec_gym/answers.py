"""The protocol between the feed and its users, batch first.

The feed shows each user a :class:`Focus` (the focused card among its neighbours) and gets back a
*response* row of :func:`response_size` float32 numbers in the units of the observation:

| columns | content |
| --- | --- |
| 0..5 | exposure actions e1..e6 (EdgeRec, Table 1), each in 0..1 |
| 6 | click, 0 or 1 |
| 7..17 | page-view actions d1..d11, each in 0..1; all zero without a click; d3 is *buy* |
| 18 | leave, 0 or 1 |
| 19 | click probability before the click was drawn |
| 20 | probability of a purchase (click and buy) before anything was drawn |
| 21.. | the named responses of the feed (`FeedConfig.responses`), each 0 or 1, whether clicked or not |

A positive answer to a response of :data:`NEGATIVE_RESPONSES` counts as deleting the card (e6, "dislike").
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from edgerec_gym.compiled.arrays import BoolVector, Float32Cube, Float32Matrix, Int32Matrix, UInt64Vector
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError

N_EXPOSURE_ACTIONS = 6  # e1 duration, e2 count, e3 speed, e4 scroll duration, e5 scrolls, e6 delete reason
N_PAGE_VIEW_ACTIONS = 11  # d1 duration, d2 cart, d3 buy, d4 favourite, ... d11 recommendation
CLICK = 6
PAGE_VIEW = 7
BUY = PAGE_VIEW + 2
LEAVE = 18
CLICK_PROBABILITY = 19
PURCHASE_PROBABILITY = 20
RESPONSE_SIZE = 21  # without the named responses, which follow
NEGATIVE_RESPONSES = ("hate", "dislike")

EXPOSURE_ACTIONS = ("duration", "count", "scroll_speed", "scroll_duration", "scroll_count", "delete_reason")
PAGE_VIEW_ACTIONS = (
    "duration",
    "cart",
    "buy",
    "favorite",
    "comment",
    "select_sku",
    "ask_everyone",
    "customer_service",
    "detail",
    "shop",
    "recommendation",
)

# Durations are categorical: bucket b of n is stored as b / (n - 1).
# Exposure durations in seconds, times FeedConfig.dwell_scale; the last bucket is open-ended.
DWELL_EDGES = (0.5, 1, 2, 4, 8, 16, 32)
PAGE_VIEW_EDGES = (2, 5, 10, 20, 40, 80, 160)  # page-view durations in seconds
# The middle of each bucket, in seconds; exposures times FeedConfig.dwell_scale.
DWELL_SECONDS = np.array([0.35, 0.7, 1.4, 2.8, 5.6, 11.3, 22.6, 45.0])
PAGE_VIEW_SECONDS = np.array([1.0, 3.2, 7.1, 14.0, 28.0, 57.0, 113.0, 226.0])
DWELL_BUCKETS, PAGE_VIEW_BUCKETS = len(DWELL_EDGES) + 1, len(PAGE_VIEW_EDGES) + 1
COUNT_LEVELS = 4  # exposure count 1..4 and scroll count 1..4, stored as (count - 1) / 3
SPEED_LEVELS = 5  # scroll speed and scroll duration
DELETE_REASONS = ("none", "dislike", "seen")  # stored as index / 2
DELETE_REASON = EXPOSURE_ACTIONS.index("delete_reason")
DISLIKED = DELETE_REASONS.index("dislike") / (len(DELETE_REASONS) - 1)

WINDOW = 5  # cards in a focus: two before, the focused one, two after
FOCUSED = 2  # place of the focused card in the window

# Columns of Focus.context
SLOT, PAGE_AGE, PAGE_REQUESTED, HOUR, N_EXPOSURES, N_PAGE_VIEWS, SINCE_PAGE_VIEW, LAST_CLICKED = range(8)
CONTEXT_SIZE = 8

# Columns of Focus.pages: means over the cards of a page, and their number.
PAGE_SUMMARY = ("price_level", "base_logit", "base_cvr", "freshness", "size")


def response_size(config: FeedConfig) -> int:
    """Return the length of a response row: 21 + R."""
    return RESPONSE_SIZE + config.n_responses


def negative_responses(config: FeedConfig) -> np.ndarray:
    """Return the columns of a response row that hold negative feedback, (n,) int64."""
    names = enumerate(config.responses, start=RESPONSE_SIZE)
    return np.array([column for column, name in names if name in NEGATIVE_RESPONSES], np.int64)


class Focus(NamedTuple):
    """What the user looks at, batch first, read-only, and observable only (B rows, F item features, T types).

    Attributes:
        active: (B,) bool; rows that answer. The fields of other rows are stale and must be ignored.
        cards: (B, >= 5, F + T) float32; two cards before, the focused card, two after (and possibly later
            cards, which users do not look at). Zero where absent.
        items: (B, >= 5) int32; the same cards as catalogue rows, -1 where absent.
        context: (B, 8) float32; slot index, slots since the page arrived when the focused card was
            placed, 1 if that page was requested by the policy, hour 0..23, exposures so far, page
            views so far, slots since the last page view (max_slots if none), 1 if the card before
            was clicked.
        keys: (B,) uint64; episode keys of the random stream.
        pages: (B, >= 5, 5) float32; summary of each card's page as the cloud ranked it, known before any
            answer: means of price level, logit of base ctr, base cvr and freshness over its first page_size
            candidates, and log(cards on the page / page_size), which is 0 in the environment.
    """

    active: BoolVector
    cards: Float32Cube
    items: Int32Matrix
    context: Float32Matrix
    keys: UInt64Vector
    pages: Float32Cube


class UserStart(NamedTuple):
    """What the cloud ships about the user when a session starts.

    Attributes:
        features: (B, U) float32 in [-1, 1]; the cloud's long-term embedding, then the profile.
        hour: (B,) int32 in 0..23.
    """

    features: np.ndarray
    hour: np.ndarray


class UserModel(Protocol):
    """Users of the feed: the hidden ground truth, or a simulator learned from logs.

    Users that the feed's own kernel can step have an attribute `kernel_state`, the table of their arrays
    (:class:`~edgerec_gym.users.synthetic.SyntheticArrays`). All others answer through :meth:`respond`.

    A model belongs to one environment. If it raises, or answers outside the ranges below, the environment
    must be reset before its next step. Copies of the environment copy it, by `copy.deepcopy` or pickle.
    """

    name: str
    uncertainty: np.ndarray | None  # (B,) float32, of the last answer; None if not reported

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate the state of `num_envs` sessions; called once, before anything else.

        `workers` are threads that may share the work of :meth:`respond`.
        """

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions in some rows.

        Args:
            rows: (R,) int64 indices of the rows to reset.
            keys: (R,) uint64 episode keys, one per row.
            split: index into :data:`edgerec_gym.compiled.random_stream.SPLITS`.
        """

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards of the active rows and advance those users' states.

        Args:
            focus: what the users look at.
            response: (B, 21 + R) float32 zeros, written in place for active rows only, each number in 0..1.
        """


def check_start(start: Any, n_rows: int, n_features: int) -> UserStart:
    """Return what :meth:`UserModel.reset` gave for `n_rows` rows; InputError if it is not fit for a feed."""
    if not isinstance(start, UserStart):
        raise InputError(f"reset of the users must return a UserStart, got {type(start).__name__}")
    features, hour = np.asarray(start.features), np.asarray(start.hour)
    for name, values, shape, kind, what in (
        ("features", features, (n_rows, n_features), "f", "floats"),
        ("hour", hour, (n_rows,), "iu", "whole numbers"),
    ):
        if values.shape != shape or values.dtype.kind not in kind:
            raise InputError(
                f"{name} of a UserStart must be {what} of shape {shape}, got shape {values.shape} of "
                f"{values.dtype}"
            )
    for name, values, legal, allowed in (
        ("features", features, np.abs(features) <= 1 + 1e-6, "-1 to 1"),  # NaN is not legal
        ("hour", hour, (hour >= 0) & (hour < 24), "0 to 23"),
    ):
        if not legal.all():
            first = tuple(np.argwhere(~legal)[0].tolist())
            raise InputError(f"{name} of a UserStart is {values[first]} at {list(first)}; allowed: {allowed}")
    return UserStart(features, hour)


def wrong_answer(response: np.ndarray, row: int) -> InputError:
    """Return the error for what :meth:`UserModel.respond` answered in a row, (21 + R,)."""
    column = int((~((response >= 0) & (response <= 1))).argmax())
    return InputError(
        f"the users answered {response[column]} in column {column} of row {row}; allowed: 0 to 1"
    )
