from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from edgerec_gym.agents.attainable.policy import NAMES, AttainablePolicy
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.answers import DWELL_BUCKETS
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.registration import IDS, make_feeds, track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.synthetic import SyntheticArrays, world_feed
from edgerec_gym.users.world import make_world
from edgerec_gym.vector_env import EdgeFeedVectorEnv

FEW = 32  # particles, enough where only the machinery is tested
SLOTS = 22
LATENT = SyntheticArrays._fields[SyntheticArrays._fields.index("user") :]


def make_env(scenario: Scenario, env_id: str, num_envs: int, **config: Any) -> EdgeFeedVectorEnv:
    return make_feeds(env_id, num_envs, scenario=scenario, users="synthetic", **config)


def play(
    env: EdgeFeedVectorEnv, policy: AttainablePolicy, seed: int = 5, slots: int = SLOTS
) -> tuple[list[Any], list[dict[str, np.ndarray]], list[np.ndarray]]:
    """Actions, observations and the rows that ended after each; they restart."""
    observation, _ = env.reset(seed=seed)
    policy.bind(env)
    policy.reset(np.ones(env.num_envs, np.bool_))
    actions, observations, ended = [], [], []
    for _ in range(slots):
        observations.append(observation)
        actions.append(policy.act(observation))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        ended.append(terminated | truncated)
        policy.reset(ended[-1])
    return actions, observations, ended


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(np.array_equal(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


@pytest.mark.parametrize("env_id", sorted(IDS))
@pytest.mark.parametrize("items", NAMES.values())
def test_same_seed_same_legal_actions(lite: Scenario, env_id: str, items: str) -> None:
    first, observations, _ = play(make_env(lite, env_id, 4), AttainablePolicy(items, FEW))
    again, _, _ = play(make_env(lite, env_id, 4), AttainablePolicy(items, FEW))
    assert all(map(same, first, again))
    if track_of(env_id) != "slate":
        for action, observation in zip(first, observations, strict=True):
            assert observation["action_mask"][np.arange(4), action].all()


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedMix-v0"])
def test_a_row_of_a_batch_plays_as_alone(lite: Scenario, env_id: str) -> None:
    together, _, _ = play(make_env(lite, env_id, 3), AttainablePolicy(particles=FEW))
    for row in range(3):
        alone, _, _ = play(make_env(lite, env_id, 1), AttainablePolicy(particles=FEW), seed=5 + row)
        assert [int(action[0]) for action in alone] == [int(action[row]) for action in together]


def test_asking_twice_changes_nothing(lite: Scenario) -> None:
    env, policy = make_env(lite, "EdgeFeed-v0", 4), AttainablePolicy(particles=FEW)
    play(env, policy)
    observation = env.batch.observation()
    assert np.array_equal(policy.act(observation), policy.act(observation))


@pytest.mark.parametrize("env_id", sorted(IDS))
def test_never_reads_the_latent_state(lite: Scenario, env_id: str) -> None:
    actions, observations, ended = play(make_env(lite, env_id, 4), AttainablePolicy(particles=FEW))
    other, blind = make_env(lite, env_id, 4), AttainablePolicy(particles=FEW)
    other.reset(seed=99)
    for name in LATENT:
        values = getattr(other.users.arrays, name)
        values[:] = np.nan if values.dtype.kind == "f" else 0
    blind.bind(other)
    blind.reset(np.ones(4, np.bool_))
    for action, observation, over in zip(actions, observations, ended, strict=True):
        assert same(blind.act(observation), action)
        blind.reset(over)


@pytest.mark.parametrize("env_id", ["EdgeFeedMix-v0", "EdgeFeedSlate-v0"])
def test_is_scored_while_some_sessions_have_ended(lite: Scenario, env_id: str) -> None:
    played = evaluate(
        [AttainablePolicy(particles=FEW)], env_id=env_id, scenario=lite, users=["synthetic"], sessions=12
    )
    assert played[0]["exposures"]["mean"] > 10


def test_known_items_need_the_catalogue_only_when_asked(lite: Scenario) -> None:
    env = make_env(lite, "EdgeFeedRerank-v0", 1)
    for items, n in (("shipped", 0), ("known", len(lite.catalog))):
        policy = AttainablePolicy(items, FEW)
        policy.bind(env)
        know = policy.beliefs.arrays.know
        assert len(know.traits) == len(know.factors) == n


def test_is_found_by_name_and_refuses_learned_users(lite: Scenario) -> None:
    for name, items in NAMES.items():
        policy = find_policy(name, "EdgeFeed-v0", lite, "synthetic")
        assert (policy.name, policy.items) == (name, items)  # type: ignore[attr-defined]
    learned = make_feeds("EdgeFeed-v0", 1, scenario=lite, users="learned")
    with pytest.raises(InputError, match="synthetic"):
        AttainablePolicy().bind(learned)
    with pytest.raises(InputError, match="bind"):
        AttainablePolicy().act({})
    with pytest.raises(InputError, match="shipped, known"):
        AttainablePolicy(items="guessed")
    with pytest.raises(InputError, match="particles"):
        AttainablePolicy(particles=1)


@pytest.mark.parametrize("sync", ["page", "periodic", "incremental"])
@pytest.mark.parametrize("latency", [1, 3])
def test_takes_the_clouds_query_out_of_the_base_ctr(lite: Scenario, sync: str, latency: int) -> None:
    """With known items, what the regression expects must be what it expects of the catalogue itself."""
    cloud = lite.config.cloud.replace(sync=sync, sync_period=7)
    env = make_env(lite, "EdgeFeed-v0", 4, cloud=cloud, request_latency=latency)
    policy = AttainablePolicy(particles=FEW, request_margin=-1.0)
    play(env, policy, slots=40)
    b, items = policy.beliefs.arrays, env.batch.arrays.pool_items
    policy.act(env.batch.observation())
    for row in range(4):
        for r in np.flatnonzero(items[row] >= 0):
            assert np.allclose(b.candidate[row, r], b.know.expected[items[row, r]], atol=2e-3)


# --- an exact reference: two categories, everything else known ----------------------------------------


def two_categories() -> Scenario:
    """Users whose only secret is which of two intents they have, and items' attractiveness."""
    feed, users = preset("lite")
    feed = feed.replace(embedding_size=64)
    users = users.replace(
        n_categories=2, item_noise=0.0, long_term_noise=0.0, day_drift=0.0, intent_drift=0.0, satiation=0.0,
        weariness=0.0, surroundings=0.0, fatigue=0.0, patience=0.0, activity=0.2, intent_switch=0.1,
    )  # fmt: skip
    return Scenario("two", feed, make_world(users, world_feed(feed)).catalog, synthetic=users)


def answer_probability(interest: np.ndarray, seen: np.ndarray, click: bool, bias: float) -> np.ndarray:
    """Probability of dwell, count, speed, deletion and click at interests, as the users draw them."""
    edges = np.concatenate([[-np.inf], np.arange(DWELL_BUCKETS - 1) - 1.0, [np.inf]])  # log2 seconds
    bucket, dwell = round(seen[0] * (DWELL_BUCKETS - 1)), NormalDist(0, 0.9)
    means = 0.2 + 0.55 * interest
    found = np.array([dwell.cdf(edges[bucket + 1] - m) - dwell.cdf(edges[bucket] - m) for m in means])
    drawn_in = 1 / (1 + np.exp(2 - interest))
    count = np.stack([1 - 0.25 * drawn_in, 0.17 * drawn_in, 0.08 * drawn_in])[round(seen[1] * 3)]
    level, power = round(seen[2] * 4), 1 / (0.6 + drawn_in)
    speed = ((level + 1) / 5) ** power - (level / 5) ** power
    deletes = 0.02 * (1 - drawn_in)
    p = 1 / (1 + np.exp(-interest - bias))
    return found * count * speed * (deletes if seen[5] > 0 else 1 - deletes) * (p if click else 1 - p)


def test_equals_the_exact_filter_of_two_intents() -> None:
    scenario = two_categories()
    env, policy = make_env(scenario, "EdgeFeedRerank-v0", 1), AttainablePolicy(particles=400)
    observation, _ = env.reset(seed=11)
    policy.bind(env)
    policy.reset(np.ones(1, np.bool_))
    b, config, users = policy.beliefs.arrays, scenario.config, scenario.synthetic
    assert users is not None
    know, at = b.know, config.n_item_features + config.n_types
    variance = know.trait_variance[0] * users.pseudo_click**2 + users.intent**2 * know.offset_variance
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    taste = observation["user"][0, : config.embedding_size]
    odds = np.exp(3 * know.centres @ taste)
    prior = odds / odds.sum()
    exact, placed, largest = prior.copy(), [], 0.0
    for slot in range(30):
        action = policy.act(observation)
        own = [b.weight[0, b.category[0] == c].sum() for c in range(2)]
        largest = max(largest, abs(own[1] / sum(own) - exact[1]))
        placed.append(b.candidate[0, action[0]].copy())
        observation, _, terminated, _, _ = env.step(action)
        if terminated[0]:
            break
        answered = slot - config.lookahead
        if answered < 0:
            continue
        item, row = placed[answered], observation["exposures"][0, min(answered, config.exposure_history - 1)]
        stamps = np.rint(observation["page_views"][0, :, -1] * config.max_slots)
        view = (stamps == answered) & observation["page_views"][0].any(axis=1)
        factor, d = item[: config.embedding_size], config.embedding_size
        match = users.intent * know.centre_share * know.centres @ factor + users.taste * taste @ factor
        interest = match + users.pseudo_click * item[d]
        likely = np.zeros(2)
        for c in range(2):
            points = interest[c] + np.sqrt(variance) * nodes
            p = answer_probability(points, row[at:], bool(view.any()), users.click_bias)
            likely[c] = (weights * p).sum()
        if view.any():  # page views hardly tell the intents apart; follow the filter where they do
            exact = np.array(own) / sum(own)
            policy.act(observation)
            now = np.array([b.weight[0, b.category[0] == c].sum() for c in range(2)])
            exact = now / now.sum()
            continue
        exact = exact * likely
        exact = (1 - users.intent_switch) * exact / exact.sum() + users.intent_switch * prior
    assert slot > 10
    assert largest < 0.02


def test_the_config_may_differ_from_the_scenarios(lite: Scenario) -> None:
    short: dict[str, Any] = {"exposure_history": 3, "page_view_history": 1, "lookahead": 0}
    play(make_env(lite, "EdgeFeed-v0", 2, **short), AttainablePolicy(particles=FEW))
    play(make_env(lite, "EdgeFeedSlate-v0", 2, lookahead=4), AttainablePolicy(particles=FEW))
    assert FeedConfig.from_dict(lite.config.to_dict()) == lite.config
