"""The default logging policy draws what it says, and sessions differ."""

import numpy as np
import pytest

from edgerec_gym.config import preset
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.logging_policy import (
    FOCUS_STRENGTHS,
    INSERT_PROBABILITIES,
    REQUEST_PROBABILITIES,
    Habits,
    RandomisedPolicy,
    session_habits,
)
from edgerec_gym.logs.store import LogReader
from edgerec_gym.users.synthetic import SyntheticUsers

ROWS, SLOTS = 1500, 12


@pytest.fixture(scope="module", params=["order,insert,request", "order,insert,request,session"])
def drawn(request):
    """Actions, propensities, probabilities of requests and cards, masks of all slots; habits."""
    config, synthetic = preset("lite")
    users = SyntheticUsers(synthetic, config)
    batch = FeedBatch(ROWS, "joint", config, users.world.catalog, users, split="log")
    batch.reset(np.arange(ROWS), np.arange(ROWS))
    policy = RandomisedPolicy(request.param.split(","))
    habits, done = policy.habits(np.arange(ROWS)), np.zeros(ROWS, np.bool_)
    steps = []
    for slot in range(SLOTS):
        mask = batch.observation()["action_mask"] > 0
        action, propensity, p_request, _ = policy.draw(batch, slot, habits)
        assert mask[np.arange(ROWS), action].all() and (propensity > 0).all() and (propensity <= 1).all()
        steps.append([values[~done] for values in (action, propensity, p_request, habits.insert, mask)])
        batch.step(action, done)
        done = done | batch.arrays.terminated | batch.arrays.truncated
    return config, [np.concatenate([step[k] for step in steps]) for k in range(5)], habits


def test_weights_of_a_fixed_choice_average_to_one(drawn):
    config, (action, propensity, p_request, p_insert, mask), _ = drawn
    n_pool = config.pool_size
    keep = mask[:, :n_pool].argmax(axis=1)
    card = n_pool + mask[:, n_pool:-1].argmax(axis=1)
    possible = mask[:, n_pool:-1].any(axis=1) & (p_insert > 0)
    for chosen, where in ((keep, np.ones(len(keep), bool)), (card, possible)):
        weight = ((action == chosen) / propensity)[where]
        assert abs(weight.mean() - 1) < 5 * weight.std() / np.sqrt(len(weight))
    requested = action == mask.shape[1] - 1
    assert abs(requested.mean() - p_request.mean()) < 5 * np.sqrt(p_request.mean() / len(action))
    inserted = (action >= n_pool) & ~requested
    expected = p_insert * (1 - p_request) * possible
    assert abs(inserted.mean() - expected.mean()) < 0.02
    np.testing.assert_array_equal(propensity[requested], p_request[requested])


def test_sessions_differ_only_if_asked_to(drawn):
    _, (_, _, p_request, _, mask), habits = drawn
    rates = set(p_request[mask[:, -1]])
    if not habits.focus.any():
        assert rates == {0.03} and set(habits.insert) == {0.15}
    else:
        assert set(habits.focus) == set(FOCUS_STRENGTHS) and set(habits.insert) == set(INSERT_PROBABILITIES)
        assert rates == set(REQUEST_PROBABILITIES)


def test_focused_sessions_stay_with_what_was_looked_at():
    config, synthetic = preset("lite")
    users = SyntheticUsers(synthetic, config)
    batch = FeedBatch(400, "joint", config, users.world.catalog, users, split="log")
    batch.reset(np.arange(400), np.arange(400))
    policy = RandomisedPolicy()
    habits = Habits(np.repeat([0.0, 20.0], 200), np.full(400, 0.15), np.full(400, 0.03))
    matches, done = [], np.zeros(400, np.bool_)
    for slot in range(20):
        batch.step(policy.draw(batch, slot, habits)[0], done)
        placed = users.world.catalog.embeddings[batch.arrays.placed_item]
        matches.append((placed * batch.arrays.interest).sum(axis=1))
        done = done | batch.arrays.terminated | batch.arrays.truncated
    plain, focused = np.mean(matches[10:], axis=0).reshape(2, 200)
    assert focused.mean() - plain.mean() > 3 * np.sqrt((plain.var() + focused.var()) / 200)


def test_habits_depend_on_the_id_alone():
    ids = np.arange(3000)
    habits, again = session_habits(ids), session_habits(ids[::-1])
    np.testing.assert_array_equal(habits, np.array(again)[:, ::-1])
    shares = [np.mean(habits.focus == 0), np.mean(habits.insert == 0), np.mean(habits.request == 0.1)]
    np.testing.assert_allclose(shares, [1 / 2, 1 / 2, 1 / 3], atol=0.04)
    assert np.abs(np.corrcoef(np.array(habits)) - np.eye(3)).max() < 0.06


@pytest.mark.parametrize("wrong", [["ordr"], ["session"], ["order", "request", "session"]])
def test_what_cannot_be_randomised_is_refused(wrong):
    with pytest.raises(InputError, match="cannot randomise"):
        RandomisedPolicy(wrong)


def test_another_ground_truth_answers_the_same_policy(tmp_path):
    worlds = {"as it is": {}, "never clicks": {"click_bias": -20.0}}
    clicks = {}
    for name, changes in worlds.items():
        collect(tmp_path / name, preset_name="lite", sessions=20, synthetic=changes)
        reader = LogReader(tmp_path / name)
        clicks[name] = sum(table["click"].drop_null().to_numpy().sum() for table in reader.batches(["click"]))
        assert changes.items() <= reader.provenance["synthetic"].items()
    assert clicks["as it is"] > 0 == clicks["never clicks"]
    with pytest.raises(InputError, match="ground truth of a preset"):
        collect(tmp_path / "none", scenario="lite", sessions=2, synthetic={"taste": 0.0})
    with pytest.raises(InputError, match="did you mean 'taste'"):
        collect(tmp_path / "none", preset_name="lite", sessions=2, synthetic={"tste": 0.0})
