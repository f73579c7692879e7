"""The hidden ground truth: its phenomena, their switches, and the room it leaves for skill."""

import numpy as np
import pytest
from actions import random_action

from benchmarks.phenomena import OFF, effects
from edgerec_gym.agents.baselines import FixedInterval, FixedSlot, Keep
from edgerec_gym.agents.oracle import OraclePolicy
from edgerec_gym.config import SyntheticUserConfig, preset
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import evaluate, play
from edgerec_gym.registration import make_feeds
from edgerec_gym.users import ground_truth
from edgerec_gym.vector_env import EdgeFeedVectorEnv

SESSIONS = 1000
# Sign and least size of each effect against its value when off.
EXPECTED = {
    "taste": 0.1,
    "intent": 5.0,
    "intent_switch": -0.1,
    "intent_drift": 0.05,
    "satiation": -0.1,
    "weariness": -0.03,
    "pseudo_click": 3.0,
    "surroundings": -0.1,
    "type_taste": 2.0,
    "fatigue": -0.1,
    "patience": 0.3,
    "purchase": 0.05,
    "refresh": 0.1,
    "activity": 0.4,
    "day_drift": -0.03,
}


@pytest.fixture(scope="module")
def measured():
    return effects(sessions=400)


@pytest.mark.parametrize("name", EXPECTED)
def test_phenomenon_shows_in_simulated_data_and_can_be_switched_off(measured, name):
    change = measured[name]["on"] - measured[name]["off"]
    assert change * np.sign(EXPECTED[name]) > abs(EXPECTED[name]), measured[name]


def test_every_switch_is_measured():
    fixed = {
        "world_seed", "n_users", "n_items", "n_categories", "card_fraction", "n_days", "item_noise",
        "long_term_noise", "click_bias", "leave_bias",
    }  # fmt: skip
    assert set(SyntheticUserConfig().to_dict()) - fixed == set(OFF) == set(EXPECTED)


@pytest.fixture(scope="module")
def world():
    return ground_truth("default")


def scores(world, env_id, policies):
    rows = evaluate(policies, env_id=env_id, scenario=world, users=["synthetic"], sessions=SESSIONS)
    return {row["policy"]: row for row in rows}


def test_calibration_and_room_for_reranking(world):
    rows = scores(world, "EdgeFeedRerank-v0", [Keep(), OraclePolicy()])
    keep = rows["keep"]
    assert 0.04 < keep["click_rate"]["mean"] < 0.06
    assert 48 < keep["exposures"]["mean"] < 64
    assert rows["oracle"]["clicks"]["mean"] > 1.5 * keep["clicks"]["mean"]


def test_never_below_fixed_moments_below_right_moments_for_requests(world):
    rows = scores(world, "EdgeFeedRequest-v0", [Keep(), FixedInterval(every=28), OraclePolicy()])
    fixed, timed = rows["fixed-interval"], rows["oracle"]
    assert timed["requests"]["mean"] < fixed["requests"]["mean"]
    assert 0 < fixed["gain_over_keep"]["low"]
    assert fixed["gain_over_keep"]["high"] < timed["gain_over_keep"]["mean"]


def test_never_below_fixed_slots_below_right_slots_for_cards(world):
    rows = scores(world, "EdgeFeedMix-v0", [Keep(), FixedSlot("mix", every=6), OraclePolicy()])
    assert 0 < rows["fixed-slot"]["gain_over_keep"]["low"]
    assert rows["fixed-slot"]["gain_over_keep"]["high"] < rows["oracle"]["gain_over_keep"]["low"]


def test_click_rate_sags_toward_the_end_of_a_page(world):
    env = EdgeFeedVectorEnv(SESSIONS, scenario=world, users="synthetic", track="request")
    env.reset(seed=0)
    sums = np.zeros((2, env.config.page_size))
    done = np.zeros(SESSIONS, bool)
    a = env.batch.arrays
    while not done.all():
        env.batch.step(np.zeros(SESSIONS, np.int64), done)
        answered = a.focus_active & ~done
        age = a.focus_context[answered, 1].astype(int)
        np.add.at(sums, (0, age), a.response[answered, 19])
        np.add.at(sums, (1, age), 1)
        done |= a.terminated | a.truncated
    rate = sums[0] / sums[1]
    assert rate[:10].mean() > 1.4 * rate[-15:].mean()


def test_sampled_reward_and_true_value_agree(world):
    played = play(Keep(), env_id="EdgeFeed-v0", scenario=world, users="synthetic", sessions=SESSIONS, seed=1)
    difference = played["reward"] - played["value"]
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(SESSIONS)
    assert played["value"].std() < 0.9 * played["reward"].std()


def test_held_out_users_and_days():
    feed, synthetic = preset("lite")
    scenario = ground_truth("lite")
    seen = {}
    for split in ("log", "train", "eval"):
        env = EdgeFeedVectorEnv(2000, scenario=scenario, users="synthetic", split=split)
        env.reset(seed=0)
        seen[split] = (set(env.users.arrays.user), set(env.users.arrays.day))
    assert not seen["eval"][0] & (seen["log"][0] | seen["train"][0])
    assert max(seen["log"][1] | seen["train"][1]) < min(seen["eval"][1])


def test_oracle_refuses_learned_users():
    with pytest.raises(InputError, match="needs users='synthetic'"):
        OraclePolicy().bind(EdgeFeedVectorEnv(2, scenario="lite", users="learned"))


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_fused_step_equals_the_protocol(env_id):
    """The synthetic users answer the same through `respond` as inside the fused kernel."""
    scenario = ground_truth("lite")
    fused, apart = (make_feeds(env_id, 20, scenario=scenario, users="synthetic") for _ in range(2))

    class Protocol:
        """Hides the type, so that the batch goes through `respond`."""

        def __init__(self, users):
            self.reset, self.respond, self.uncertainty = users.reset, users.respond, users.uncertainty

    apart.batch.users, apart.batch._compiled_users = Protocol(apart.users), None
    observation, _ = fused.reset(seed=0)
    apart.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = random_action(fused, observation, rng)
        observation, reward, *_, infos = fused.step(actions)
        other, reward_other, *_, infos_other = apart.step(actions)
        assert np.array_equal(reward, reward_other)
        assert np.array_equal(fused.batch.arrays.observation, apart.batch.arrays.observation)
        assert np.array_equal(other["exposures"], observation["exposures"])
        for key in ("placed_item", "page_arrived", "request_sent", "invalid_action"):
            assert np.array_equal(infos[key], infos_other[key]), key
