"""The users of the cross-simulator check: features from before a page, sessions as in the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_ebnerd import bundle, convert

from edgerec_gym.answers import CLICK, CLICK_PROBABILITY, LEAVE, N_PAGE_VIEWS, PAGE_AGE
from edgerec_gym.logs.store import LogReader

pytest.importorskip("sklearn")
pytest.importorskip("torch")
pytest.importorskip("lightgbm")

from benchmarks.click_trees import fit_trees, logged_features
from edgerec_gym.answers import PAGE_SUMMARY, RESPONSE_SIZE, WINDOW, Focus
from edgerec_gym.compiled.random_stream import SPLITS
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[LogReader, LoggedSessions]:
    folder = tmp_path_factory.mktemp("trees")
    convert(bundle(), folder)
    reader = LogReader(folder / "log")
    [sessions] = SessionStream(reader, None).chunks()
    return reader, sessions


def test_features_do_not_know_the_clicks_of_their_page(log: tuple[LogReader, LoggedSessions]) -> None:
    reader, sessions = log
    pages = np.repeat(sessions.page[sessions.starts[1:] - 1], np.diff(sessions.starts))  # of the session
    for last in (True, False):
        chosen = sessions.page == pages if last else (sessions.page == 0) & (pages > 0)
        actions, context = sessions.actions.copy(), sessions.context.copy()
        actions[chosen, CLICK] = 1 - actions[chosen, CLICK]
        context[chosen & (context[:, PAGE_AGE] > 0), N_PAGE_VIEWS] += 3
        other = replace(sessions, actions=actions, context=context)
        found, wanted = (logged_features(s, reader.config)[0] for s in (other, sessions))
        assert np.array_equal(found, wanted) == last  # clicks of the first page count on the next


def test_sessions_start_and_end_as_in_the_log(log: tuple[LogReader, LoggedSessions], tmp_path: Path) -> None:
    reader, sessions = log
    users, figures = fit_trees(sessions, reader.config, tmp_path / "trees.txt")
    assert figures["impression_auc"] > 0.5 and abs(figures["click_rate_predicted"] - 0.2) < 0.05
    n = 4000
    users.allocate(n, reader.config, Workers(n, 1))
    keys = np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64)
    start = users.reset(np.arange(n), keys, SPLITS.index("eval"))
    assert abs(start.hour.mean() - sessions.context[sessions.starts[:-1], 3].mean()) < 0.5
    width = reader.config.n_item_features + reader.config.n_types
    active, slots = np.ones(n, np.bool_), np.zeros(n)
    for t in range(int(sessions.answered.max())):
        context = np.zeros((n, sessions.context.shape[1]), np.float32)
        context[:, 0] = t
        focus = Focus(
            active.copy(),
            np.full((n, WINDOW, width), 0.2, np.float32),
            np.full((n, WINDOW), t, np.int32),
            context,
            keys,
            np.zeros((n, WINDOW, len(PAGE_SUMMARY)), np.float32),
        )
        response = np.zeros((n, RESPONSE_SIZE), np.float32)
        users.respond(focus, response)
        clicks, expected = response[active, CLICK].mean(), response[active, CLICK_PROBABILITY].mean()
        assert abs(clicks - expected) < 5 * np.sqrt(0.25 / active.sum())
        slots += active
        active &= response[:, LEAVE] == 0
    assert not active.any()
    assert abs(slots.mean() - sessions.answered.mean()) < 5 * sessions.answered.std() / np.sqrt(n)
