"""Properties of every played feed, whatever the configuration and the actions."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.users import ground_truth
from edgerec_gym.users.synthetic import SyntheticUsers

SCENARIO = ground_truth("lite")
TYPES = 4


def configs():
    share = st.lists(st.floats(0, 0.5), min_size=TYPES, max_size=TYPES)
    gap = st.lists(st.integers(0, 12), min_size=TYPES, max_size=TYPES)
    return st.fixed_dictionaries(
        {
            "page_size": st.integers(4, 15),
            "request_latency": st.integers(1, 3),
            "lookahead": st.integers(0, 4),
            "n_cards": st.integers(1, 9),
            "request_budget": st.none() | st.integers(0, 3),
            "share_caps": share,
            "gaps": gap,
            "first_slots": gap,
            "max_slots": st.integers(10, 50),
            "exposure_history": st.integers(1, 20),
            "page_view_history": st.integers(1, 5),
        }
    )


def play(config, seed, rows=6):
    """Play random legal actions; yields the batch after each step."""
    batch = FeedBatch(rows, "joint", config, SCENARIO.catalog, SyntheticUsers(SCENARIO.synthetic, config))
    batch.reset(np.arange(rows), seed + np.arange(rows))
    rng = np.random.default_rng(seed)
    done = np.zeros(rows, bool)
    while not done.all():
        mask = batch.observation()["action_mask"]
        assert mask[~done].any(axis=1).all()
        weight = rng.random(mask.shape) * mask
        weight[:, config.pool_size :] *= rng.random() * 3  # sometimes many cards and requests
        before = done.copy()
        batch.step(weight.argmax(axis=1), done)
        yield batch, ~before
        done |= batch.arrays.terminated | batch.arrays.truncated


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=configs(), seed=st.integers(0, 10_000))
def test_rules_pages_and_history_hold_in_every_feed(changes, seed):
    config = SCENARIO.config.replace(pool_size=30, **changes)
    rows = 6
    shown = [[] for _ in range(rows)]
    types = [[] for _ in range(rows)]
    age = np.zeros(rows, int)
    for batch, live in play(config, seed, rows):
        a = batch.arrays
        observation = batch.observation()
        for row in np.flatnonzero(live):
            kind = int(SCENARIO.catalog.card_type[a.placed_item[row]])
            slot = len(types[row])
            if kind:
                earlier = [t for t, k in enumerate(types[row]) if k == kind]
                assert slot >= config.first_slots[kind - 1]
                assert not earlier or slot - earlier[-1] >= config.gaps[kind - 1]
                cap = config.share_caps[kind - 1] * max(slot + 1, config.page_size)
                assert len(earlier) + 1 <= cap + 1e-6
            assert a.placed_item[row] not in shown[row]
            shown[row].append(int(a.placed_item[row]))
            types[row].append(kind)
            age[row] = 0 if a.arrived[row] else age[row] + 1
            assert a.page_age[row] == age[row] < config.page_size or a.arrived[row]
            assert not set(a.pool_items[row][a.pool_items[row] >= 0]) & set(shown[row])
            if config.request_budget is not None:
                assert a.requests[row] <= config.request_budget
            assert a.exposures[row] == max(0, slot + 1 - config.lookahead)
            slots = observation["exposures"][row, : min(a.exposures[row], config.exposure_history), -1]
            expected = np.arange(a.exposures[row])[-config.exposure_history :] / config.max_slots
            assert slots == pytest.approx(expected, abs=1e-6)
            used = a.pool_items[row] < 0
            assert not observation["pool"][row, used].any()
            assert np.array_equal(observation["action_mask"][row, : config.pool_size] == 0, used)
        for key, space in batch_spaces(config).items():
            assert np.all(observation[key] >= space.low - 1e-6) and np.all(
                observation[key] <= space.high + 1e-6
            )


def batch_spaces(config):
    from edgerec_gym.spaces import observation_space

    return {k: v for k, v in observation_space(config, "joint").spaces.items() if k != "action_mask"}


def test_penalty_mode_plays_illegal_insertions_and_counts_them():
    config = SCENARIO.config.replace(rules="penalty", share_caps=(0.0,) * TYPES)
    batch = FeedBatch(4, "mix", config, SCENARIO.catalog, SyntheticUsers(SCENARIO.synthetic, config))
    batch.reset(np.arange(4), np.arange(4))
    batch.step(np.ones(4, np.int64))
    assert batch.arrays.cost.tolist() == [1, 1, 1, 1] and not batch.arrays.invalid.any()
    assert (SCENARIO.catalog.card_type[batch.arrays.placed_item] > 0).all()


def test_request_arrives_after_its_latency_and_restarts_the_automatic_count():
    config = SCENARIO.config.replace(request_latency=3, page_size=10)
    patient = SyntheticUsers(SCENARIO.synthetic.replace(leave_bias=-20), config)
    batch = FeedBatch(1, "request", config, SCENARIO.catalog, patient)
    batch.reset(np.array([0]), np.array([5]))
    a = batch.arrays
    sent, arrived = [], []
    for t in range(25):
        mask = batch.observation()["action_mask"][0]
        in_flight = a.wire[0] > 0
        assert mask[1] == (not in_flight)
        batch.step(np.array([1 if t == 4 else 0]))
        if a.sent[0]:
            sent.append((t, int(a.sent[0])))
        if a.arrived[0]:
            arrived.append(t + 1)
    # asked for at 4, there at 7; the next automatic request 7 slots later, there at 17
    assert sent == [(4, 1), (14, 2), (24, 2)]
    assert arrived == [7, 17]
    assert a.requests[0] == 1


@pytest.mark.parametrize("sync", ["page", "periodic", "incremental"])
def test_what_the_cloud_knows_when_a_request_is_sent(sync):
    config = SCENARIO.config.replace(
        cloud={**SCENARIO.config.cloud.to_dict(), "sync": sync, "sync_period": 7}
    )
    patient = SyntheticUsers(SCENARIO.synthetic.replace(leave_bias=-20), config)
    batch = FeedBatch(1, "request", config, SCENARIO.catalog, patient)
    batch.reset(np.array([0]), np.array([5]))
    history = []
    for _t in range(8):  # the automatic request goes out at slot 8
        history.append(batch.arrays.interest[0].copy())
        batch.step(np.array([0]))
    history.append(batch.arrays.interest[0].copy())
    batch.step(np.array([0]))
    assert batch.arrays.sent[0] == 2
    known = history[7] if sync == "periodic" else history[8]
    assert np.array_equal(batch.arrays.wire_interest[0], known)
    assert not np.array_equal(history[7], history[8])
