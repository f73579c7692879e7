"""Users of a different family than the learned networks: boosted trees of clicks, on hand-made features.

They follow a session only through what the feed shows (answers.py), so the same code makes the features of
logged sessions, to fit on, and of played ones. All cards of a page are answered from what was known when it
began. Start and length of a session are drawn from the log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from edgerec_gym.answers import (
    CLICK,
    CLICK_PROBABILITY,
    FOCUSED,
    HOUR,
    LEAVE,
    N_EXPOSURES,
    N_PAGE_VIEWS,
    PAGE_AGE,
    PAGE_SUMMARY,
    PAGE_VIEW,
    SLOT,
    WINDOW,
    Focus,
    UserStart,
)
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point
from edgerec_gym.compiled.random_stream import uniform
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.evaluation.ranking import grouped_auc
from edgerec_gym.files import atomic_path
from edgerec_gym.logs.sessions import LoggedSessions

TREES = 150
SETTINGS = {
    "objective": "binary",
    "num_leaves": 31,
    "learning_rate": 0.06,
    "min_data_in_leaf": 100,
    "seed": 0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
HELD_OUT = 7  # one in this many sessions is held out, to evaluate the trees
START_DRAW, CLICK_DRAW, LENGTH_DRAW = 160, 161, 162  # purposes of the random stream that no other users have


def _entry_point(digest: str) -> Any:
    @entry_point
    def draw(keys, slots, purpose, items, out):
        _ = digest
        for j in range(keys.shape[0]):
            out[j] = uniform(keys[j], slots[j], purpose, items[j])

    return draw


_draw = _entry_point(SOURCE_DIGEST)


def draws(keys: np.ndarray, slots: np.ndarray, purpose: int, items: np.ndarray) -> np.ndarray:
    """Uniform numbers of the counter-based stream, (n,) float64."""
    out = np.empty(len(keys))
    _draw(keys, slots.astype(np.int64), purpose, items.astype(np.int64), out)
    return out


class TreeUsers:
    """Boosted trees behind the UserModel protocol.

    Args:
        trees: from :func:`fit_trees`.
        sessions: sessions of the log that they were fitted on; starts and lengths are drawn from them.
    """

    name = "trees"
    uncertainty: np.ndarray | None = None

    def __init__(self, trees: lightgbm.Booster | None, sessions: LoggedSessions) -> None:
        self.trees, self.sessions = trees, sessions
        placed = sessions.answered_rows(np.arange(len(sessions)))
        clicked = placed[sessions.actions[placed, CLICK] > 0]
        self.durations = np.sort(sessions.actions[clicked, PAGE_VIEW])
        self.d = sessions.catalog.embeddings.shape[1]

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate; see :class:`~edgerec_gym.answers.UserModel`."""
        self.user = np.zeros((num_envs, config.n_user_features), np.float32)
        self.length = np.zeros(num_envs, np.int64)
        self.clicked = np.zeros((num_envs, self.d), np.float32)  # sum of the embeddings clicked so far
        self.at_page = np.zeros((num_envs, self.d + 2), np.float32)  # the same and counts, at page start

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.answers.UserModel`."""
        zero = np.zeros(len(keys), np.int64)
        start = (draws(keys, zero, START_DRAW, zero) * len(self.sessions)).astype(np.int64)
        hours = self.sessions.context[self.sessions.starts[:-1], HOUR].astype(np.int32)
        self.begin(rows, self.sessions.user[start])
        self.length[rows] = self.sessions.answered[start]
        return UserStart(self.sessions.user[start], hours[start])

    def begin(self, rows: np.ndarray, user: np.ndarray) -> None:
        """Reset some rows (R,); they now belong to users (R, U)."""
        self.user[rows], self.clicked[rows], self.at_page[rows] = user, 0, 0

    def features(self, focus: Focus, active: np.ndarray) -> np.ndarray:
        """Features of the focused cards of the `active` (n,) rows, (n, k) float32."""
        context, card = focus.context[active], focus.cards[active, FOCUSED]
        page = focus.pages[active, FOCUSED]
        begins = active[context[:, PAGE_AGE] * context[:, SLOT] == 0]
        self.at_page[begins, :2] = focus.context[begins][:, [N_EXPOSURES, N_PAGE_VIEWS]]
        self.at_page[begins, 2:] = self.clicked[begins]
        scalars = card[:, self.d : self.d + 4].copy()
        ctr = np.clip(scalars[:, 1], 1e-4, 1 - 1e-4)
        scalars[:, 1] = np.log(ctr / (1 - ctr))
        before, user = self.at_page[active], self.user[active]
        embedding = card[:, : self.d]
        matches = [(embedding * liked).sum(1) for liked in (user[:, : self.d], before[:, 2:])]
        rate = (before[:, 1] + 1) / (before[:, 0] + 12)
        columns = [scalars, page, scalars - page[:, :4], np.stack(matches, 1), before[:, :2], rate[:, None]]
        return np.concatenate([*columns, user[:, self.d :], context[:, [HOUR]]], axis=1)

    def follow(self, focus: Focus, active: np.ndarray, click: np.ndarray) -> None:
        """Remember the answers (n,) of the active rows."""
        self.clicked[active] += focus.cards[active, FOCUSED, : self.d] * click[:, None]

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.answers.UserModel`."""
        active = np.flatnonzero(focus.active)
        if not len(active):
            return
        assert self.trees is not None
        slot, item = focus.context[active, SLOT], focus.items[active, FOCUSED]
        probability = np.asarray(self.trees.predict(self.features(focus, active), num_threads=1))
        click = draws(focus.keys[active], slot, CLICK_DRAW, item) < probability
        self.follow(focus, active, click)
        place = draws(focus.keys[active], slot, LENGTH_DRAW, item) * len(self.durations)
        response[active] = 0
        response[active, CLICK] = click
        response[active, PAGE_VIEW] = self.durations[place.astype(np.int64)] * click
        response[active, CLICK_PROBABILITY] = probability
        response[active, LEAVE] = slot + 1 >= self.length[active]


def logged_features(
    sessions: LoggedSessions, config: FeedConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let the users follow logged sessions.

    Returns:
        features (n, k) of all answered slots, clicks (n,) bool, and the impression of each slot (n,) int64.
    """
    users, size = TreeUsers(None, sessions), len(sessions)
    users.allocate(size, config, Workers(size, 1))
    users.begin(np.arange(size), sessions.user)
    shape = (size, WINDOW, sessions.catalog.embeddings.shape[1] + 4 + config.n_types)
    focus = Focus(
        np.zeros(size, np.bool_),
        np.zeros(shape, np.float32),
        np.zeros((size, WINDOW), np.int32),
        np.zeros((size, sessions.context.shape[1]), np.float32),
        np.zeros(size, np.uint64),
        np.zeros((size, WINDOW, len(PAGE_SUMMARY)), np.float32),
    )
    parts = []
    for t in range(int(sessions.answered.max())):
        active = np.flatnonzero(sessions.answered > t)
        rows = sessions.starts[active] + t
        focus.cards[active, FOCUSED, : users.d] = sessions.catalog.embeddings[sessions.item[rows]]
        focus.cards[active, FOCUSED, users.d : users.d + 4] = sessions.scalars[rows]
        focus.context[active], focus.pages[active, FOCUSED] = sessions.context[rows], sessions.summary[rows]
        click = sessions.actions[rows, CLICK] > 0
        page = active * (int(sessions.page.max()) + 1) + sessions.page[rows]
        parts.append((users.features(focus, active), click, page))
        users.follow(focus, active, click)
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def fit_trees(sessions: LoggedSessions, config: FeedConfig, path: Path) -> tuple[TreeUsers, dict[str, float]]:
    """Fit users on logged sessions, or load those that `path` holds (LightGBM's text format).

    Returns:
        The users, and their click AUC within an impression and over all slots of held-out sessions.
    """
    held_out = np.arange(len(sessions)) % HELD_OUT == 0
    train, test = (sessions.select(np.flatnonzero(chosen)) for chosen in (~held_out, held_out))
    if not path.exists():
        features, click, _ = logged_features(train, config)
        data = lightgbm.Dataset(features, click.astype(np.float32))
        booster = lightgbm.train(SETTINGS, data, TREES)
        with atomic_path(path) as temporary:
            temporary.write_text(booster.model_to_string())
    booster = lightgbm.Booster(model_str=path.read_text())
    features, click, page = logged_features(test, config)
    score = np.asarray(booster.predict(features, num_threads=1))
    figures = {
        "impression_auc": grouped_auc(score, click, page),
        "click_auc": grouped_auc(score, click, np.zeros_like(page)),
        "click_rate": float(click.mean()),
        "click_rate_predicted": float(score.mean()),
    }
    return TreeUsers(booster, sessions), figures
