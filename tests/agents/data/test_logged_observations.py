"""Whole observations, rewards and actions read from a log equal the environment's."""

from __future__ import annotations

import numpy as np
import pytest
from small_responses import Responding

from edgerec_gym.agents.data.logged_observations import TrackLog, step_rewards, track_actions, with_last
from edgerec_gym.config import RewardConfig, preset
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.collect import log_batch
from edgerec_gym.logs.logging_policy import RandomisedPolicy
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.users.synthetic import SyntheticUsers

SESSIONS = 16
REWARD = RewardConfig(insert_click=0.5, leave=-2.0)
TRACKS = {
    "joint": ("order", "insert", "request"),
    "rerank": ("order",),
    "mix": ("insert",),
    "request": ("request",),
}


def make_batch(track, config):
    synthetic = SyntheticUsers(preset("lite")[1], config)
    catalog, users = synthetic.world.catalog, Responding() if config.responses else synthetic
    columns = np.random.default_rng(0).uniform(-1, 1, (len(catalog), len(config.item_columns)))
    catalog = catalog.with_table(columns)
    return FeedBatch(SESSIONS, track, config, catalog, users, split="log"), catalog


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_columns": ("click_lift", "exposures")},
        {"rules": "penalty", "lookahead": 0, "request_budget": 2, "n_cards": 6},
        {
            "responses": ("like", "hate"),
            "reward": REWARD.replace(responses={"like": 0.5, "hate": -1.0}),
            "page_size": 4,
        },
    ],
)
def test_a_log_is_the_environment_step_by_step(track, changes):
    config = preset("lite")[0].replace(**({"reward": REWARD} | changes))
    batch, catalog = make_batch("joint", config)
    plain = log_batch(batch, 0, 0, SESSIONS, RandomisedPolicy(TRACKS[track]), None)
    table = with_last(plain)
    sessions = LoggedSessions.from_table(table, config, catalog)
    log = TrackLog(table, sessions, config, track)
    reward = step_rewards(table, sessions, config)
    length = np.diff(sessions.starts) - 1  # the row behind the last slot is no step
    batch, _ = make_batch(track, config)
    batch.reset(np.arange(SESSIONS), np.arange(SESSIONS))
    masked = last = 0
    for slot in range(length.max() + 1):
        live = np.flatnonzero(length >= slot)
        found = log.observations(live, np.full(len(live), slot))
        expected = batch.observations_of(live)
        assert list(found) == list(expected)
        # A page that arrives with the last step is in no log.
        same = ~(batch.arrays.arrived[live] & (length[live] == slot))
        for key, values in expected.items():
            assert found[key].dtype == values.dtype
            np.testing.assert_allclose(
                found[key][same], values[same], atol=2e-6, err_msg=f"{key}, slot {slot}"
            )
        masked += int((expected["action_mask"][:, 1:] == 0).sum())
        last += int((length[live] == slot).sum())
        play = np.flatnonzero(length > slot)
        if not len(play):
            break
        actions = np.zeros(SESSIONS, np.int64)
        rows = sessions.starts[play] + slot
        seen = log.observations(play, np.full(len(play), slot))
        actions[play] = track_actions(log, table, seen, rows)
        batch.step(actions, length <= slot)
        assert not batch.arrays.invalid[play].any()
        np.testing.assert_allclose(reward[rows], batch.reward[play], atol=1e-12)
    assert last == SESSIONS and masked > 0
    assert (batch.arrays.terminated | batch.arrays.truncated).any()


def test_an_action_of_another_track_is_named():
    config = preset("lite")[0]
    batch, catalog = make_batch("joint", config)
    table = log_batch(batch, 0, 0, SESSIONS, RandomisedPolicy(), None)
    sessions = LoggedSessions.from_table(table, config, catalog)
    log = TrackLog(table, sessions, config, "request")
    rows = np.arange(table.num_rows)
    session = np.repeat(np.arange(SESSIONS), np.diff(sessions.starts))
    seen = log.observations(session, rows - sessions.starts[session])
    with pytest.raises(
        InputError, match=r"session \d+, slot \d+: action \d+ of EdgeFeed-v0 does not exist in the track"
    ):
        track_actions(log, table, seen, rows)
