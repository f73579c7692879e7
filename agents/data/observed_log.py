"""Sessions of a log as the device saw them: the observation at any slot, and what happened next."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.logged_pages import LoggedPages
from edgerec_gym.answers import (
    CLICK,
    DELETE_REASON,
    N_PAGE_VIEW_ACTIONS,
    PAGE_AGE,
    PAGE_VIEW,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.logs.sessions import COLUMNS, LoggedSessions
from edgerec_gym.policy import NOT_SHOWN, Observation
from edgerec_gym.spaces import CONTEXT, context_size

OBSERVED_COLUMNS = [*COLUMNS, "user", "candidates", "candidate_ctr", "request", "action"]


class ObservedLog:
    """Sessions of a log with the observation at any slot.

    Args:
        table: whole sessions with :data:`OBSERVED_COLUMNS` and `user`.
        sessions: the sessions read from `table`.
        config: configuration of the logged feed.
    """

    def __init__(self, table: pa.Table, sessions: LoggedSessions, config: FeedConfig) -> None:
        self.sessions, self.config = sessions, config
        self.exposures = sessions.exposure_actions(config)
        self.pages = LoggedPages.from_table(table, sessions, config)
        first = sessions.starts[:-1]
        self.user = table["user"].to_numpy()[first]
        self.page_requested = table["page_requested"].to_numpy()
        self.hour = table["hour"].to_numpy()
        click = sessions.actions[:, CLICK] > 0
        self.clicked = np.flatnonzero(click)
        self.clicks_before = np.concatenate([[0], np.cumsum(click)])
        self.requests_before = np.concatenate([[0], np.cumsum(table["request"].to_numpy())])
        types = sessions.catalog.card_type[sessions.item]
        of_type = types[:, None] == np.arange(1, config.n_types)  # (P, T - 1)
        none = np.zeros((1, config.n_types - 1), np.int64)
        self.cards_before = np.concatenate([none, np.cumsum(of_type, axis=0)])
        at = np.where(of_type, np.arange(len(types))[:, None], -1)
        self.last_card = np.concatenate([none - 1, np.maximum.accumulate(at, axis=0)])  # before each slot

    def moments(self, no_click: int, page_starts_only: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots at which a device re-ranks, in order: session index and slot, (R,) int64 each."""
        sessions, lag = self.sessions, self.config.lookahead + 1  # an answer is known `lag` slots later
        length = np.diff(sessions.starts)
        session = np.repeat(np.arange(len(length)), length)
        slot = np.arange(len(session)) - sessions.starts[session]
        due = sessions.context[:, PAGE_AGE] == 0
        due[self.pages.first] = True
        if not page_starts_only:
            rows, click = np.arange(len(session)), sessions.actions[:, CLICK] > 0
            last_click = np.maximum.accumulate(np.where(click, rows, -1))
            since = rows - np.maximum(last_click, sessions.starts[session] - 1)
            trigger = click | (self.exposures[:, DELETE_REASON] > 0) | (since % no_click == 0)
            trigger &= slot < sessions.answered[session]
            known = np.flatnonzero(trigger) + lag
            origin = session[known - lag]
            known = known[known < sessions.starts[origin + 1]]
            due[known] = True
        return session[due], slot[due]

    def labels(self, session: np.ndarray, slot: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows answered in the next K slots, (R, K) int64, then -1; clicks (R, K) float32."""
        sessions, pages = self.sessions, self.pages
        now = sessions.starts[session] + slot
        rows = now[:, None] + np.arange(horizon)
        answered = rows < (sessions.starts[session] + sessions.answered[session])[:, None]
        rows = np.minimum(rows, len(sessions.item) - 1)
        shown = answered & (pages.of_slot[rows] == pages.of_slot[now][:, None]) & (pages.pool_row[rows] >= 0)
        order = np.argsort(~shown, axis=1, kind="stable")
        rows, shown = np.take_along_axis(rows, order, 1), np.take_along_axis(shown, order, 1)
        click = sessions.actions[rows, CLICK] * shown
        return np.where(shown, pages.pool_row[rows], NOT_SHOWN), click.astype(np.float32)

    def observations(self, session: np.ndarray, slot: np.ndarray) -> Observation:
        """Return what the device saw before it filled `slot` (R,) of `session` (R,); values (R, ...)."""
        begin = self.sessions.starts[session]
        now = begin + slot
        count = np.clip(slot - self.config.lookahead, 0, self.sessions.answered[session])
        return {
            "user": self.sessions.user[session],
            "pool": self._pool(now),
            "exposures": self._exposures(begin, count),
            "page_views": self._page_views(begin, count),
            "screen": self._screen(begin, now),
            "context": self.context(begin, now, count),
        }

    def _pool(self, now: np.ndarray) -> np.ndarray:
        pages = self.pages
        page = pages.of_slot[now]
        candidates = pages.candidates[page]
        placed = now - pages.first[page]  # slots filled from this page, including cards
        request = np.repeat(np.arange(len(now)), placed)
        rows = np.repeat(pages.first[page] - (np.cumsum(placed) - placed), placed) + np.arange(placed.sum())
        used = pages.pool_row[rows]
        left = candidates >= 0
        left[request[used >= 0], used[used >= 0]] = False
        return np.where(left[:, :, None], self._features(now), np.float32(0))  # a product may be -0

    def _features(self, now: np.ndarray) -> np.ndarray:
        """Return features of all candidates of the pages of slots (R,), (R, N, F) float32."""
        page = self.pages.of_slot[now]
        features = self.sessions.candidates(self.pages.candidates[page], self.sessions.session_of(now))
        features[:, :, self.config.embedding_size + 1] = self.pages.base_ctr[page]
        if self.sessions.columns.shape[1]:  # the log tells what its pages shipped of each item that was shown
            at = self.pages.shown_at[page]
            shown = at >= 0
            features[shown] = self.sessions.cards(at[shown])[:, : features.shape[2]]
        return features

    def _exposures(self, begin: np.ndarray, count: np.ndarray) -> np.ndarray:
        size = self.config.exposure_history
        at = np.maximum(count - size, 0)[:, None] + np.arange(size)
        return self._history(begin, begin[:, None] + at, at < count[:, None], self.exposures)

    def _page_views(self, begin: np.ndarray, count: np.ndarray) -> np.ndarray:
        size, end = self.config.page_view_history, self.clicks_before[begin + count]
        at = np.maximum(end - size, self.clicks_before[begin])[:, None] + np.arange(size)
        present = at < end[:, None]
        rows = np.append(self.clicked, 0)[np.minimum(at, len(self.clicked))]
        actions = self.sessions.actions[:, PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS]
        return self._history(begin, rows, present, actions)

    def _history(
        self, begin: np.ndarray, rows: np.ndarray, present: np.ndarray, actions: np.ndarray
    ) -> np.ndarray:
        """Return cards with actions and answer slot, zero where not present, (R, L, ...) float32."""
        rows = np.where(present, rows, 0)
        when = ((rows - begin[:, None]) / self.config.max_slots).astype(np.float32)
        history = np.concatenate([self.sessions.cards(rows), actions[rows], when[..., None]], axis=2)
        return np.where(present[..., None], history, np.float32(0))

    def _screen(self, begin: np.ndarray, now: np.ndarray) -> np.ndarray:
        rows = now[:, None] - self.config.lookahead + np.arange(self.config.lookahead)
        present = rows >= begin[:, None]
        cards = self.sessions.cards(np.where(present, rows, 0))
        return np.where(present[..., None], cards, np.float32(0))

    def context(self, begin: np.ndarray, now: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the context (R, C) float32 before the placed slots `now` (R,) int64 are filled.

        Args:
            begin: (R,) int64 first placed slot of each session.
            now: (R,) int64.
            count: (R,) int64 number of answers known then.
        """
        config, n_caps = self.config, self.config.n_types - 1
        slot = now - begin
        since_sent = now - self.pages.sent[self.pages.of_slot[now]]
        wire = np.where(since_sent > 0, np.maximum(config.request_latency - since_sent, 0), 0)
        budget, asked = config.request_budget, self.requests_before[now] - self.requests_before[begin]
        last = self.last_card[now]
        columns = {
            "slot": slot / config.max_slots,
            "exposures": count / config.max_slots,
            "page_views": (self.clicks_before[begin + count] - self.clicks_before[begin]) / config.max_slots,
            "page_age": self.sessions.context[now, PAGE_AGE] / config.page_size,
            "in_flight": wire > 0,
            "arrival": wire / config.request_latency,
            "requests_left": 1.0 if budget is None else (budget - asked) / max(budget, 1),
            "page_requested": self.page_requested[now],
            "hour": self.hour[now] / 24.0,
        }
        context = np.zeros((len(now), context_size(config)), np.float32)
        for column, name in enumerate(CONTEXT):
            context[:, column] = columns[name]
        shares = (self.cards_before[now] - self.cards_before[begin]) / np.maximum(slot, config.page_size)[
            :, None
        ]
        since = np.minimum(1.0, (now[:, None] - last) / config.page_size)
        context[:, len(CONTEXT) : len(CONTEXT) + n_caps] = shares
        context[:, len(CONTEXT) + n_caps :] = np.where(last >= begin[:, None], since, 1.0)
        return context
