"""Plans made from a feed's state are legal when they are played."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerec_gym.agents.insertion.policies import InsertionState, feed_problems
from edgerec_gym.agents.planner.problem import insertions
from edgerec_gym.agents.planner.solve import DualPrices, plan_batch
from edgerec_gym.registration import make_feeds
from edgerec_gym.users import ground_truth

ROWS, TYPES = 4, 4
SCENARIO = ground_truth("lite")


def rules():
    gap = st.lists(st.integers(0, 14), min_size=TYPES, max_size=TYPES)
    share = st.lists(st.floats(0, 0.5), min_size=TYPES, max_size=TYPES)
    return st.fixed_dictionaries(
        {"share_caps": share, "gaps": gap, "first_slots": gap, "n_cards": st.integers(1, 9)}
    )


def values_of(rng, observation, config, horizon):
    """Random values of the cards that are there, and the cards' types."""
    kinds = observation["cards"][:, :, config.n_item_features + 1 :]
    values = rng.normal(0.5, 1, (*kinds.shape[:2], horizon))
    values[kinds.sum(axis=2) == 0] = -np.inf
    return values, kinds.argmax(axis=2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=rules(),
    seed=st.integers(0, 10_000),
    solver=st.sampled_from(["exact", "beam", "greedy", "dual", "fixed"]),
)
def test_plans_are_legal_slot_by_slot(changes, seed, solver):
    env = make_feeds("EdgeFeedMix-v0", ROWS, scenario=SCENARIO, users="synthetic", max_slots=40, **changes)
    config, rng = env.unwrapped.config, np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    free = DualPrices(np.zeros(TYPES), np.zeros(TYPES))
    for _ in range(4):
        horizon = int(rng.integers(1, 10))
        page = observation["cards"].copy()
        state = InsertionState.from_observation(observation, config)
        feed = env.unwrapped.batch.arrays
        assert np.array_equal(state.slot, feed.slot) and np.array_equal(state.counts, feed.type_count[:, 1:])
        values, types = values_of(rng, observation, config, horizon)
        plans = plan_batch(feed_problems(config, state, values, types), solver, prices=free)
        over = np.zeros(ROWS, bool)
        for actions in insertions(plans.slots, horizon).T:
            # A new page brings other cards, a new session other rules: what was planned is stale then.
            played = np.where(over, 0, actions)
            assert observation["action_mask"][np.arange(ROWS), played].all()
            observation, _, terminated, truncated, info = env.step(played)
            assert not np.any(info["invalid_action"])
            moved = (observation["cards"] != page) & observation["cards"].any(axis=2, keepdims=True)
            over |= terminated | truncated | moved.any(axis=(1, 2))
        while (terminated | truncated).any():
            observation, _, terminated, truncated, _ = env.step(np.zeros(ROWS, np.int64))
    env.close()


@pytest.mark.parametrize("preset", ["default", "lite"])
def test_slates_are_played_without_a_violation(preset):
    scenario = ground_truth(preset)
    env = make_feeds("EdgeFeedSlate-v0", 8, scenario=scenario, users="synthetic")
    config, rng, inserted = env.unwrapped.config, np.random.default_rng(0), 0
    observation, _ = env.reset(seed=1)
    for _ in range(40):
        values, types = values_of(rng, observation, config, config.slate_size)
        state = InsertionState.from_observation(observation, config)
        plans = plan_batch(feed_problems(config, state, values, types), "beam")
        action = {
            "order": np.tile(-np.arange(config.pool_size, dtype=np.float32), (8, 1)),
            "insert": insertions(plans.slots, config.slate_size),
            "request": np.zeros(8, np.int64),
        }
        observation, *_, info = env.step(action)
        assert not np.any(info["invalid_action"])
        inserted += int((action["insert"] > 0).sum())
    assert inserted > 50
    env.close()
