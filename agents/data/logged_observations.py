"""Complete observations, rewards and actions of a log, as the environment of a track produced them.

:class:`~edgerec_gym.agents.data.observed_log.ObservedLog` reads what agents learn from. This module adds
mix-in cards, masks of legal actions, the observation after the last slot, and the reward of every step.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from edgerec_gym.errors import InputError, MissingExtraError

try:
    import torch  # noqa: F401
except ImportError:
    raise MissingExtraError("reading observations from logs", "train") from None

from edgerec_gym.agents.data.logged_pages import cloud_scores
from edgerec_gym.agents.data.observed_log import ObservedLog
from edgerec_gym.answers import BUY, CLICK, LEAVE
from edgerec_gym.config import FeedConfig
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT, TRACKS, n_actions, observation_keys

NO_CARD = -1
IN_FLIGHT = CONTEXT.index("in_flight")
# Columns that are unknown in the row added after the last slot.
_UNKNOWN = (
    "candidates",
    "cards",
    "user_features",
    "exposure_actions",
    "click",
    "page_view_actions",
    "leave",
    "responses",
)


class TrackLog(ObservedLog):
    """Sessions of a log with complete observations at any slot.

    Args:
        table: whole sessions, all columns of :func:`~edgerec_gym.logs.schema.log_schema`.
        sessions: the sessions read from `table`.
        config: configuration of the logged feed.
        track: track of the action masks; everything else is the same in all tracks.
    """

    def __init__(self, table: pa.Table, sessions: LoggedSessions, config: FeedConfig, track: str) -> None:
        super().__init__(table, sessions, config)
        self.track = track
        self.cards = _cards(table, self, config)
        known = self.cards >= 0
        ctr = cloud_scores(
            sessions, np.where(known, self.cards, 0), self.pages.first, self.pages.of_slot, config
        )
        self.card_ctr = np.where(known, ctr, 0.0)
        placed = self.cards[self.pages.of_slot] == sessions.item[:, None]
        is_card = (sessions.catalog.card_type[sessions.item] > 0) & placed.any(axis=1)
        self.card_row = np.where(is_card, placed.argmax(axis=1), NO_CARD)

    def with_actions(self, table: pa.Table) -> pa.Table:
        """Return the table of an imported log with the actions of EdgeFeed-v0: pool rows of what was shown.

        Raises:
            InputError: a mix-in card was shown (such a log does not tell which others there were), or an item
                twice on a page.
        """
        row, last = self.pages.pool_row, self.sessions.starts[1:] - 1  # where nothing was shown
        key = self.pages.of_slot * (self.config.pool_size + 1) + row
        key[last] = -1 - np.arange(len(last))
        again = np.ones(len(key), np.bool_)
        again[np.unique(key, return_index=True)[1]] = False
        wrong = np.flatnonzero((row < 0) | again)
        if len(wrong):
            session, slot = (table[name][int(wrong[0])].as_py() for name in ("session", "slot"))
            told = (
                "a mix-in card was shown, but the log does not tell the cards of its pages"
                if row[wrong[0]] < 0
                else "the page had shown the item before"
            )
            raise InputError(
                f"session {session}, slot {slot}: {told}; an imported log needs different goods on a page"
            )
        at = table.column_names.index("action")
        return table.set_column(at, "action", pa.array(self.pages.pool_row, pa.int32()))

    def observations(self, session: np.ndarray, slot: np.ndarray) -> Observation:
        """Return the environment's observation before `slot` (R,) of `session` (R,): all keys, (R, ...)."""
        found = super().observations(session, slot)
        now = self.sessions.starts[session] + slot
        found["cards"] = self._cards_left(now)
        found["action_mask"] = self._mask(now, slot, found)
        return {key: found[key] for key in observation_keys(self.config)}

    def _cards_left(self, now: np.ndarray) -> np.ndarray:
        """Return the cards of the page that have not been placed yet, (R, M, F + T) float32."""
        pages, sessions, d = self.pages, self.sessions, self.config.embedding_size
        page = pages.of_slot[now]
        items = self.cards[page]
        left = items >= 0
        placed = now - pages.first[page]
        row = np.repeat(np.arange(len(now)), placed)
        rows = np.repeat(pages.first[page] - (np.cumsum(placed) - placed), placed) + np.arange(placed.sum())
        used = self.card_row[rows]
        left[row[used >= 0], used[used >= 0]] = False
        types = np.eye(self.config.n_types, dtype=np.float32)[sessions.catalog.card_type[items]]
        cards = np.concatenate([sessions.candidates(items, sessions.session_of(now)), types], axis=2)
        cards[:, :, d + 1] = self.card_ctr[page]
        return cards * left[:, :, None]

    def _mask(self, now: np.ndarray, slot: np.ndarray, found: Observation) -> np.ndarray:
        """Return the mask of legal actions of the track, (R, A) int8."""
        pool, cards = (found["pool"] != 0).any(axis=2), (found["cards"] != 0).any(axis=2)
        if self.config.rules == "mask":
            cards &= self._within_rules(now, slot)[:, np.arange(cards.shape[1]) % (self.config.n_types - 1)]
        budget = self.config.request_budget
        asked = self.requests_before[now] - self.requests_before[now - slot]
        request = (found["context"][:, IN_FLIGHT] == 0) & (asked < (np.inf if budget is None else budget))
        keep = np.ones((len(now), 1), np.bool_)
        parts = {
            "joint": [pool, cards, request[:, None]],
            "rerank": [pool],
            "mix": [keep, cards],
            "request": [keep, request[:, None]],
        }
        return np.concatenate(parts[self.track], axis=1).astype(np.int8)

    def _within_rules(self, now: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Return whether the rules (:mod:`edgerec_gym.feed.rules`) allow a card of each type, (R, T - 1)."""
        config, begin = self.config, now - slot
        last = self.last_card[now] - begin[:, None]
        count = self.cards_before[now] - self.cards_before[begin]
        prefix = np.maximum(slot + 1, config.page_size)[:, None]
        far = (last < 0) | (slot[:, None] - last >= np.array(config.gaps))
        fits = count + 1 <= np.array(config.share_caps) * prefix + 1e-9
        return (slot[:, None] >= np.array(config.first_slots)) & far & fits


def _cards(table: pa.Table, log: ObservedLog, config: FeedConfig) -> np.ndarray:
    """Return the catalogue rows of each page's mix-in cards by card row, (G, M) int64, -1 for none."""
    column = table["cards"].combine_chunks().take(pa.array(log.pages.first)).to_pylist()
    cards = np.full((len(column), config.n_cards), NO_CARD, np.int64)
    types, n_caps = log.sessions.catalog.card_type, config.n_types - 1
    for page, items in enumerate(column):
        row = 0
        for item in items or ():  # logs omit empty rows; row m has type 1 + m mod (T - 1)
            row += (int(types[item]) - 1 - row) % n_caps
            if row < config.n_cards:
                cards[page, row] = item
            row += 1
    return cards


def step_rewards(table: pa.Table, sessions: LoggedSessions, config: FeedConfig) -> np.ndarray:
    """Return the reward of each step, (P,) float64: its request, and the answer `lookahead` slots back.

    Terms that a log does not record count 0: illegal actions and the disagreement of learned users.
    """
    answer = answer_rewards(sessions, config)
    rows, begin = np.arange(len(answer)), np.repeat(sessions.starts[:-1], np.diff(sessions.starts))
    shown = rows - config.lookahead
    earned = np.where(shown >= begin, answer[np.maximum(shown, 0)], 0.0)
    return earned + config.reward.cost(table["request"].to_numpy())


def answer_rewards(sessions: LoggedSessions, config: FeedConfig) -> np.ndarray:
    """Return the reward of the answer to each slot, (P,) float64."""
    reward, actions = config.reward, sessions.actions
    is_card = sessions.catalog.card_type[sessions.item] > 0
    click = actions[:, CLICK].astype(np.float64)
    value: np.ndarray = reward.value(
        click,
        actions[:, BUY],
        card=is_card,
        leave=actions[:, LEAVE],
        responses=config.response_value(sessions.responses) if config.responses else 0.0,
    )
    return value


def track_actions(log: TrackLog, table: pa.Table, observation: Observation, rows: np.ndarray) -> np.ndarray:
    """Return the actions at some slots in the action space of the log's track, (R,) int64.

    Args:
        log: the log, read for the track.
        table: whole sessions.
        observation: the observations at these slots.
        rows: (R,) rows of the table.

    Raises:
        InputError: if the log does not record an action, or the track does not have it.
    """
    config, column = log.config, table["action"].combine_chunks().take(pa.array(rows))
    if column.null_count:
        raise InputError("the log does not record its actions; collect it with a policy of this package")
    joint = column.to_numpy().astype(np.int64)
    n_pool, request = config.pool_size, n_actions(config, "joint") - 1
    keep = (observation["pool"] != 0).any(axis=2).argmax(axis=1)
    action = {
        "joint": joint,
        "rerank": np.where(joint < n_pool, joint, -1),
        "mix": np.select([joint == keep, (joint >= n_pool) & (joint < request)], [0, joint - n_pool + 1], -1),
        "request": np.select([joint == keep, joint == request], [0, 1], -1),
    }[log.track]
    wrong = np.flatnonzero(action < 0)
    if len(wrong):
        session, slot = (table[name][int(rows[wrong[0]])].as_py() for name in ("session", "slot"))
        raise InputError(
            f"session {session}, slot {slot}: action {joint[wrong[0]]} of EdgeFeed-v0 does not exist in the "
            f"track {log.track!r}; tracks: {', '.join(TRACKS)}"
        )
    return action


def with_last(table: pa.Table) -> pa.Table:
    """Add a row to each session for the state after its last slot, where the final observation is made."""
    session = table["session"].to_numpy()
    ends = np.append(np.flatnonzero(np.diff(session)), len(session) - 1)
    last = table.take(pa.array(ends))
    for name in table.column_names:
        at, kind = last.column_names.index(name), table.schema.field(name).type
        if name in _UNKNOWN:
            last = last.set_column(at, name, pa.nulls(len(ends), kind))
        elif name in ("slot", "page_age"):
            last = last.set_column(at, name, pa.array(last[name].to_numpy() + 1, kind))
        elif name in ("request", "answered", "randomised"):
            last = last.set_column(at, name, pa.array(np.zeros(len(ends), np.bool_)))
    order = np.argsort(np.concatenate([session, session[ends]]), kind="stable")
    return pa.concat_tables([table, last.cast(table.schema)]).take(pa.array(order)).combine_chunks()
