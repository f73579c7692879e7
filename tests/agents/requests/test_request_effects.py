"""Both futures of a moment: they are the sessions' own, share their luck, and leave the sessions alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.requests.effects import Futures
from edgerec_gym.answers import BUY, CLICK, CLICK_PROBABILITY, PURCHASE_PROBABILITY, SLOT
from edgerec_gym.bench.request.effects import audit, true_effects
from edgerec_gym.errors import InputError
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv

SIZE, BEFORE, HORIZON = 48, 6, 10


def played_to(slots: int, env_id: str = "EdgeFeedRequest-v0", **options: object) -> EdgeFeedVectorEnv:
    """Sessions in which keep has been played for some slots."""
    env = make_feeds(env_id, SIZE, scenario="lite", users="synthetic", split="eval", **options)
    env.reset(seed=5)
    done = np.zeros(SIZE, np.bool_)
    for _ in range(slots):
        env.batch.step(env.batch.observation(copy=False)["action_mask"].argmax(axis=1), done)
        done |= env.batch.arrays.terminated | env.batch.arrays.truncated
    env.live = np.flatnonzero(~done)  # type: ignore[attr-defined]
    return env


def own_future(env: EdgeFeedVectorEnv, rows: np.ndarray, request: bool) -> np.ndarray:
    """Play on in the sessions themselves: expected and drawn clicks and purchases, (R, 4)."""
    batch, a = env.batch, env.batch.arrays
    begin, sums = a.slot.copy(), np.zeros((SIZE, 4))
    done = ~np.isin(np.arange(SIZE), rows)
    for step in range(HORIZON + env.config.lookahead):
        actions = batch.observation(copy=False)["action_mask"].argmax(axis=1)
        if step == 0 and request:
            actions[rows] = batch.n_actions - 1
        batch.step(actions, done)
        ahead = a.focus_context[:, SLOT] - begin
        counts = ~done & a.focus_active & (ahead >= 0) & (ahead < HORIZON)
        sums += a.response[:, [CLICK_PROBABILITY, PURCHASE_PROBABILITY, CLICK, BUY]] * counts[:, None]
        done |= a.terminated | a.truncated
    return sums[rows]


@pytest.mark.parametrize("env_id", ["EdgeFeedRequest-v0", "EdgeFeed-v0"])
@pytest.mark.parametrize("request_now", [False, True])
def test_the_first_continuation_is_the_sessions_own_future(env_id: str, request_now: bool) -> None:
    env = played_to(BEFORE, env_id)
    rows = env.live  # type: ignore[attr-defined]
    found = Futures(env.batch, (5, HORIZON), continuations=1).effects(rows, np.full(len(rows), request_now))
    expected = own_future(env, rows, request_now)
    arm = found.requested if request_now else found.kept
    np.testing.assert_allclose(arm[:, 1], expected[:, :2], rtol=1e-6)
    np.testing.assert_allclose(found.drawn[:, 1], expected[:, 2:])
    assert (found.kept[:, 1] >= found.kept[:, 0]).all()


def test_sessions_are_left_as_they_are() -> None:
    env, twin = played_to(BEFORE), played_to(BEFORE)
    rows = env.live  # type: ignore[attr-defined]
    Futures(env.batch, continuations=3).effects(rows)
    np.testing.assert_array_equal(own_future(env, rows, True), own_future(twin, rows, True))


def test_continuations_differ_and_repeat() -> None:
    env = played_to(BEFORE)
    rows = env.live  # type: ignore[attr-defined]
    few, again, many = (Futures(env.batch, (HORIZON,), k).effects(rows) for k in (8, 8, 64))
    np.testing.assert_array_equal(few.tau, again.tau)
    assert (few.error > 0).any() and np.isnan(Futures(env.batch, continuations=1).effects(rows).error).all()
    # The standard error says how far a mean of 8 is from one of 64.
    z = (few.tau - many.tau)[:, 0, 0] / np.maximum(few.error[:, 0, 0], 1e-3)
    assert 0.5 < np.sqrt((z**2).mean()) < 2
    assert many.error.mean() < few.error.mean()


def test_a_request_pays_where_a_fresh_page_is_needed() -> None:
    """With users who love requested pages, and pages that are nearly over, the mean effect is clear."""
    sample = true_effects("lite", 150, seed=3, share=0.4, continuations=6)
    tau = sample.effects.tau[:, sample.horizons.index(15), 0]
    middle = np.rint(sample.observation["context"][:, 3] * 10) == 5
    assert tau[middle].mean() > 0.02 and (tau < 0).any()
    assert sample.treated.mean() == pytest.approx(0.5, abs=0.06)
    again = true_effects("lite", 150, seed=3, share=0.4, continuations=6)
    np.testing.assert_array_equal(again.effects.tau, sample.effects.tau)


def test_an_audit_tells_every_request_of_a_policy() -> None:
    found = audit(make_policy("fixed-interval", "request", every=5), "lite", 30, seed=2, continuations=4)
    assert len(found.slot) > 60 and (found.page_age == 5).all()
    assert found.kept.shape == found.requested.shape == (len(found.slot), 4, 2)
    none = audit(make_policy("keep", "request"), "lite", 5, seed=2, continuations=2)
    assert len(none.slot) == 0


def test_bad_input(lite: Scenario) -> None:
    env = played_to(BEFORE)
    with pytest.raises(InputError, match="continuations = 0"):
        Futures(env.batch, continuations=0)
    with pytest.raises(InputError, match="ascending"):
        Futures(env.batch, (10, 5))
    env.batch.step(np.ones(SIZE, np.int64))
    with pytest.raises(InputError, match="no request is legal in row"):
        Futures(env.batch).effects(env.live)  # type: ignore[attr-defined]
    learned = make_feeds("EdgeFeedRequest-v0", 2, scenario=lite, users="learned")
    with pytest.raises(InputError, match="need users='synthetic'"):
        Futures(learned.batch)
    rerank = make_feeds("EdgeFeedRerank-v0", 2, scenario=lite, users="synthetic")
    with pytest.raises(InputError, match="'rerank' has no requests"):
        Futures(rerank.batch)
    with pytest.raises(InputError, match="share = 0 in"):
        true_effects(lite, 5, share=0)
