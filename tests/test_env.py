"""Every id and both kinds of users: spaces, masks, rewards, resets, and agreement of single and batch."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from actions import keep_action, random_action, rows_of
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.answers import CLICK, LEAVE, SLOT, UserStart
from edgerec_gym.errors import InputError
from edgerec_gym.registration import IDS
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.vector_env import EdgeFeedVectorEnv


def test_check_env_passes_without_a_warning(env_id, users, recwarn):
    check_env(gym.make(env_id, scenario="lite", users=users).unwrapped)
    assert [str(w.message) for w in recwarn] == []


def test_check_env_of_stable_baselines3_passes(slot_id, users):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checker.check_env(gym.make(slot_id, scenario="lite", users=users).unwrapped)
    # The one expected remark: two-dimensional keys are no images and no vectors.
    assert [str(w.message) for w in caught if "unconventional shape" not in str(w.message)] == []


def test_observations_stay_inside_the_space(env_id, users):
    env = gym.make(env_id, scenario="lite", users=users)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=1)
    for _ in range(150):
        assert env.observation_space.contains(observation)
        assert np.array_equal(observation["action_mask"], info["action_mask"])
        assert observation["action_mask"].any()
        assert np.array_equal(env.unwrapped.action_masks(), observation["action_mask"] == 1)
        observation, reward, terminated, truncated, info = env.step(random_action(env, observation, rng))
        assert reward == pytest.approx(sum(info["reward_terms"].values()))
        if terminated or truncated:
            observation, info = env.reset()


def test_make_vec_and_sync_vectorisation(env_id):
    batch = gym.make_vec(env_id, num_envs=64, scenario="lite", users="synthetic")
    assert isinstance(batch, EdgeFeedVectorEnv)
    loop = gym.make_vec(env_id, num_envs=3, vectorization_mode="sync", scenario="lite", users="synthetic")
    a, _ = batch.reset(seed=5)
    b, _ = loop.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = random_action(batch, a, rng)
        a, reward_a, *_ = batch.step(actions)
        b, reward_b, *_ = loop.step(rows_of(actions, slice(3)))
        for key in b:
            assert np.array_equal(a[key][:3], b[key]), key
        assert np.array_equal(reward_a[:3], reward_b)


@pytest.mark.parametrize("scenario", ["default", "lite"])
@pytest.mark.parametrize("threads", [1, 2])
def test_row_of_a_batch_equals_the_single_env_bit_for_bit(env_id, scenario, threads):
    """500 steps, through resets."""
    size, row = 130, 100
    batch = gym.make_vec(env_id, num_envs=size, scenario=scenario, users="synthetic", threads=threads)
    single = gym.make(env_id, scenario=scenario, users="synthetic", disable_env_checker=True)
    a, _ = batch.reset(seed=11)
    b, _ = single.reset(seed=11 + row)
    rng = np.random.default_rng(0)
    ended = False
    resets = 0
    for _ in range(500):
        actions = random_action(batch, a, rng)
        a, rewards, terminated, truncated, infos = batch.step(actions)
        if ended:  # NEXT_STEP: the batch used this step for the reset
            b, info = single.reset()
            reward, over = 0.0, (False, False)
            resets += 1
        else:
            b, reward, *over, info = single.step(rows_of(actions, row))
        ended = any(over)
        assert rewards[row] == reward
        assert [terminated[row], truncated[row]] == list(over)
        for key in info.keys() - {"reward_terms", "action_mask"}:
            assert np.array_equal(infos[key][row], info[key]), key
        assert {k: v[row] for k, v in infos["reward_terms"].items()} == info["reward_terms"]
        for key in b:
            assert np.array_equal(a[key][row], b[key]), key
    assert resets > 2


def test_autoreset_modes_show_the_same_episodes(env_id):
    def episodes(mode):
        env = gym.make_vec(env_id, num_envs=8, scenario="lite", users="synthetic", autoreset_mode=mode)
        assert env.metadata["autoreset_mode"] == AutoresetMode(mode)
        observation, _ = env.reset(seed=3)
        out = [[] for _ in range(8)]
        ended = np.zeros(8, bool)
        for _ in range(150):
            skipped = ended if mode == "NextStep" else np.zeros(8, bool)
            actions = keep_action(env, observation)
            observation, reward, terminated, truncated, infos = env.step(actions)
            ended = terminated | truncated
            for row in np.flatnonzero(~skipped):
                last = observation
                if mode == "SameStep" and ended[row]:
                    last = {key: value[None] for key, value in infos["final_obs"][row].items()}
                out[row].append(
                    (reward[row], ended[row], last["context"][row if last is observation else 0].sum())
                )
        return out

    for next_step, same_step in zip(episodes("NextStep"), episodes("SameStep"), strict=True):
        n = min(len(next_step), len(same_step))
        assert n > 100 and next_step[:n] == same_step[:n]


@pytest.mark.parametrize("copy", [True, False])
def test_same_step_final_observation_and_info(env_id, copy):
    size = 32
    env, other = (
        gym.make_vec(
            env_id, num_envs=size, scenario="lite", users="synthetic", autoreset_mode=mode, copy=True
        )
        for mode in ("SameStep", "Disabled")
    )
    env.unwrapped.copy = copy
    observation, _ = env.reset(seed=0)
    other.reset(seed=0)
    ended = np.zeros(size, bool)
    while not ended.any():
        actions = keep_action(env, observation)
        observation, reward, terminated, truncated, infos = env.step(actions)
        last, _, _, _, last_infos = other.step(actions)
        ended = terminated | truncated
    assert np.array_equal(infos["_final_obs"], ended)
    row = int(ended.argmax())
    assert env.single_observation_space.contains(infos["final_obs"][row])
    assert all(np.array_equal(value, last[key][row]) for key, value in infos["final_obs"][row].items())
    assert infos["final_obs"][row]["context"][0] > 0 and observation["context"][row, 0] == 0
    for told in (infos, infos["final_info"]):
        assert np.array_equal(told["click_probability"], last_infos["click_probability"])
        assert sum(values[row] for values in told["reward_terms"].values()) == pytest.approx(reward[row])


def test_disabled_autoreset_needs_a_reset_mask(env_id):
    env = gym.make_vec(env_id, num_envs=4, scenario="lite", users="synthetic", autoreset_mode="Disabled")
    observation, _ = env.reset(seed=0)
    ended = np.zeros(4, bool)
    while not ended.any():
        observation, _, terminated, truncated, _ = env.step(keep_action(env, observation))
        ended = terminated | truncated
    with pytest.raises(InputError, match="has ended"):
        env.step(keep_action(env, observation))
    observation, _ = env.reset(options={"reset_mask": ended})
    assert np.array_equal(observation["context"][:, 0] == 0, ended)


def test_copy_false_reuses_the_buffer_and_copy_true_does_not(env_id):
    for copy in (True, False):
        env = gym.make_vec(env_id, num_envs=4, scenario="lite", users="synthetic", copy=copy)
        first, first_infos = env.reset(seed=0)
        second, *_, second_infos = env.step(keep_action(env, first))
        assert np.shares_memory(first["pool"], second["pool"]) is not copy
        for key in ("placed_item", "click_probability"):
            assert np.shares_memory(first_infos[key], second_infos[key]) is not copy


def test_cards_answer_lookahead_steps_later():
    env = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic")
    env.reset(seed=0)
    answered = [
        env.step(0 if t == 0 else int(env.unwrapped.action_masks().argmax()))[4]["answered"] for t in range(4)
    ]
    assert answered == [False, False, True, True]


@pytest.mark.parametrize("action", [-1, 29, 1.5, "a", None, True, [1, 2]])
def test_action_outside_the_space(action):
    env = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic").unwrapped
    env.reset(seed=0)
    with pytest.raises(InputError, match="0 to 28"):
        env.step(action)


def test_illegal_action_plays_keep_and_pays():
    a = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic").unwrapped
    b = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic").unwrapped
    for env in (a, b):
        env.reset(seed=0)
        env.step(0)
    observation_a, reward_a, *_, info_a = a.step(0)  # row 0 is used up
    observation_b, reward_b, *_, info_b = b.step(1)  # keep
    assert info_a["invalid_action"] and not info_b["invalid_action"]
    assert reward_a == pytest.approx(reward_b - 0.1)
    assert all(np.array_equal(observation_a[key], observation_b[key]) for key in observation_a)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pool_sise": 30}, "did you mean 'pool_size'"),
        ({"users": "real"}, "unknown users 'real'"),
        ({"scenario": "nowhere"}, "nowhere"),
        ({"split": "test"}, "splits are log, train, eval"),
    ],
)
def test_bad_arguments_of_make(kwargs, message):
    with pytest.raises(InputError, match=message):
        gym.make("EdgeFeed-v0", **({"scenario": "lite"} | kwargs))


@pytest.mark.parametrize("num_envs", [0, -1, 2.5])
def test_bad_num_envs(num_envs):
    with pytest.raises(InputError, match="num_envs"):
        EdgeFeedVectorEnv(num_envs, scenario="lite", users="synthetic")


def test_bad_batched_actions_and_seeds():
    env = EdgeFeedVectorEnv(3, scenario="lite", users="synthetic")
    with pytest.raises(InputError, match="reset"):
        env.step([0, 0, 0])
    for seed in ([1, 2], -1, [1, 2, -3]):
        with pytest.raises(InputError, match="seed"):
            env.reset(seed=seed)
    env.reset(seed=0)
    with pytest.raises(InputError, match="row 1"):
        env.step([0, 99, 0])
    with pytest.raises(InputError, match="3 whole numbers"):
        env.step([0, 0])


def test_ids_are_registered_with_both_entry_points():
    for env_id in IDS:
        spec = gym.spec(env_id)
        assert spec.entry_point and spec.vector_entry_point
    assert gym.make("edgerec_gym:EdgeFeed-v0", scenario="lite", users="synthetic").spec.id == "EdgeFeed-v0"


def test_unseeded_resets_differ_and_episodes_differ():
    env = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic")
    a, _ = env.reset(seed=0)
    b, _ = env.reset()
    c, _ = env.reset(seed=0)
    assert not np.array_equal(a["pool"], b["pool"]) and np.array_equal(a["pool"], c["pool"])


def test_splits_never_share_an_episode():
    pools = [
        gym.make("EdgeFeed-v0", scenario="lite", users="synthetic", split=split).reset(seed=0)[0]["pool"]
        for split in ("log", "train", "eval")
    ]
    assert not np.array_equal(pools[0], pools[1]) and not np.array_equal(pools[1], pools[2])


class Eager:
    """Users who click everything and leave at the fifth card."""

    name = "eager"
    uncertainty = None

    def allocate(self, num_envs, config, workers):
        self.size = config.n_user_features

    def reset(self, rows, keys, split):
        return UserStart(np.full((len(rows), self.size), 0.5, np.float32), np.full(len(rows), 7, np.int32))

    def respond(self, focus, response):
        response[focus.active] = 0
        response[focus.active, CLICK] = 1
        response[focus.active, LEAVE] = focus.context[focus.active, SLOT] == 4


def test_users_of_your_own():
    env = EdgeFeedVectorEnv(3, scenario="lite", users=Eager())
    observation, _ = env.reset(seed=0)
    assert np.all(observation["user"] == 0.5) and np.all(observation["context"][:, CONTEXT.index("hour")] > 0)
    clicks, terminated = np.zeros(3), np.zeros(3, np.bool_)
    for _ in range(env.config.lookahead + 5):
        assert not terminated.any()
        observation, reward, terminated, *_ = env.step(observation["action_mask"].argmax(axis=1))
        clicks += reward
    assert terminated.all() and clicks.tolist() == [5, 5, 5]
