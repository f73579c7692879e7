"""What callers and users of one's own do wrong ends in an InputError, and never reaches a kernel."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from edgerec_gym.answers import CLICK, Focus, UserStart
from edgerec_gym.env import EdgeFeedEnv
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.users import make_users
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.vector_env import EdgeFeedVectorEnv


class Own:
    """Users of one's own, who do what `on_reset` and `on_respond` do to their answers."""

    name = "own"
    uncertainty = None

    def __init__(self) -> None:
        self.on_reset: Callable[[UserStart], Any] = lambda start: start
        self.on_respond: Callable[[Focus, np.ndarray], None] = lambda focus, response: None

    def allocate(self, num_envs, config, workers):
        self.size = config.n_user_features

    def reset(self, rows, keys, split):
        return self.on_reset(UserStart(np.zeros((len(rows), self.size), np.float32), np.full(len(rows), 7)))

    def respond(self, focus, response):
        response[focus.active] = 0
        self.on_respond(focus, response)


def started(env: EdgeFeedVectorEnv, steps: int = 4) -> EdgeFeedVectorEnv:
    """An environment in which cards are answered."""
    env.reset(seed=0)
    for _ in range(steps):
        env.step(env.action_masks().argmax(axis=1))
    return env


@pytest.mark.parametrize("kind", ["synthetic", "learned", "own"])
def test_a_user_model_belongs_to_one_environment(lite, kind):
    users = Own() if kind == "own" else make_users(kind, lite, lite.config)
    first = EdgeFeedVectorEnv(2, scenario=lite, users=users)
    with pytest.raises(InputError, match="user model serves another environment"):
        EdgeFeedEnv(scenario=lite, users=users)
    started(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_size": 32}, "embedding_size = 32 cannot be"),
        ({"profile_size": 9}, "profile_size = 9 cannot be"),
    ],
)
def test_users_of_other_sizes_are_refused(lite, options, message):
    with pytest.raises(InputError, match=message):
        EdgeFeedEnv(scenario=lite, users=SyntheticUsers(lite.synthetic, lite.config), **options)


def test_a_catalogue_of_other_sizes_is_refused(lite):
    with pytest.raises(InputError, match="embedding_size = 32 cannot be"):
        EdgeFeedEnv(scenario=lite, users="synthetic", embedding_size=32)
    small = SyntheticUsers(lite.synthetic.replace(n_items=1000), lite.config)
    with pytest.raises(InputError, match="users know 1000 items, the catalogue has 2000"):
        EdgeFeedEnv(scenario=lite, users=small)


def test_a_kernel_state_of_ones_own_is_checked(lite):
    users = Own()
    for state, message in (
        (object(), "AddressTable of SyntheticArrays"),
        (EdgeFeedEnv(scenario=lite, users="synthetic").users.kernel_state, "1 sessions, the environment 2"),
    ):
        users.kernel_state = state  # type: ignore[attr-defined]
        with pytest.raises(InputError, match=message):
            EdgeFeedVectorEnv(2, scenario=lite, users=users)


def test_live_arrays_are_read_only(env_id):
    env = gym.make_vec(env_id, num_envs=2, scenario="lite", users="synthetic", copy=False).unwrapped
    observation, infos = env.reset(seed=0)
    live = [*observation.values(), env.batch.reward, env.batch.reward_terms, *env.batch.outcomes.values()]
    live += [values for key, values in infos.items() if key[0] != "_" and key != "reward_terms"]
    live += [*infos["reward_terms"].values(), *env.batch._focus]
    for values in live:
        assert not values.flags.writeable
    assert env.batch.observation()["pool"].flags.writeable


def test_actions_are_copied_before_they_are_checked(env_id):
    env = gym.make_vec(env_id, num_envs=2, scenario="lite", users="synthetic").unwrapped
    env.reset(seed=0)
    actions = env.action_space.sample()
    checked = env.batch.check_actions(actions)
    if isinstance(actions, dict):
        fit = dict(zip(("order", "insert", "request"), checked, strict=True))
        pairs = [
            *zip((actions[name] for name in fit), checked, strict=True),
            *zip(checked, env.batch.check_actions(fit), strict=True),
        ]
    else:
        pairs = [(actions, checked), (checked, env.batch.check_actions(checked))]
    assert not any(np.shares_memory(given, copied) for given, copied in pairs)


def batch(lite, size=3) -> FeedBatch:
    return FeedBatch(size, "joint", lite.config, lite.catalog, SyntheticUsers(lite.synthetic, lite.config))


def test_a_batch_checks_actions_masks_and_rows(lite):
    feeds = batch(lite)
    keep = np.zeros(3, np.int64)
    with pytest.raises(InputError, match="reset row 0 first"):
        feeds.step(keep)
    for rows in ([3], [-1], [[0]], [0.0], np.ones(3, np.bool_)):
        with pytest.raises(InputError, match="rows must be whole numbers from 0 to 2"):
            feeds.reset(rows)
    feeds.reset([0, 2], [5, 6])
    with pytest.raises(InputError, match="reset row 1 first"):
        feeds.step(keep)
    feeds.step(keep, np.array([False, True, False]))
    assert feeds.arrays.slot.tolist() == [1, 0, 1]
    feeds.reset([1])
    for actions in (keep[:2], keep.astype(float), keep + 99, keep - 1, keep.astype(np.uint64) - np.uint64(1)):
        with pytest.raises(InputError, match="action"):
            feeds.step(actions)
    for skip in (np.zeros(2, np.bool_), keep):
        with pytest.raises(InputError, match="skip must be 3 booleans"):
            feeds.step(keep, skip)


def test_a_batch_refuses_slots_after_the_last(lite):
    config = lite.config.replace(max_slots=4)
    feeds = FeedBatch(1, "rerank", config, lite.catalog, SyntheticUsers(lite.synthetic, config))
    feeds.reset([0], [0])
    for slot in range(4):
        feeds.step([slot])
    with pytest.raises(InputError, match="row 0 has ended"):
        feeds.step([5])
    feeds.reset([0])
    feeds.step([0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda start: None, "must return a UserStart, got NoneType"),
        (lambda start: start._replace(features=start.features + np.nan), r"features .* is nan at \[0, 0\]"),
        (lambda start: start._replace(features=start.features + 2), r"features .* is 2.0"),
        (lambda start: start._replace(features=start.features[:, 1:]), "features .* of shape"),
        (lambda start: start._replace(features=start.features.astype(int)), "floats of shape"),
        (lambda start: start._replace(hour=start.hour + 17), r"hour .* is 24 at \[0\]; allowed: 0 to 23"),
        (lambda start: start._replace(hour=start.hour * 1.0), "hour .* whole numbers"),
    ],
)
def test_starts_of_users_of_ones_own_are_checked(lite, change, message):
    users = Own()
    env = started(EdgeFeedVectorEnv(2, scenario=lite, users=users))
    users.on_reset = change
    with pytest.raises(InputError, match=message):
        env.reset(seed=0)
    users.on_reset = lambda start: start
    with pytest.raises(InputError, match="reset row 0 first"):
        env.step([0, 0])
    started(env)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_answers_of_users_of_ones_own_are_checked(lite, env_id, value):
    users = Own()
    env = gym.make_vec(env_id, num_envs=2, scenario=lite, users=users).unwrapped
    actions = env.action_space.sample()

    def answer(focus, response):
        response[~focus.active] = value  # nobody reads these
        if focus.context[:, 0].max() > 2:
            response[1, CLICK] = value

    users.on_respond = answer
    env.reset(seed=0)
    with pytest.raises(InputError, match=rf"answered {value} in column {CLICK} of row 1"):
        for _ in range(9):
            env.step(actions)
    assert np.isfinite(env.batch.arrays.observation).all()
    with pytest.raises(InputError, match="reset row 0 first"):
        env.step(actions)


def test_users_cannot_write_into_the_feed(lite):
    users, held = Own(), []
    env = EdgeFeedVectorEnv(2, scenario=lite, users=users)
    users.on_respond = lambda focus, response: held.append((focus, response))
    started(env)
    focus, response = held[-1]
    for values in focus:
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0
    assert not np.shares_memory(response, env.batch.arrays.response)


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_users_that_raise_leave_the_environment_to_be_reset(lite, env_id):
    users = Own()
    env = gym.make(env_id, scenario=lite, users=users)
    action = env.action_space.sample()

    def fail(focus, response):
        if focus.active.any():
            raise ZeroDivisionError("mine")

    users.on_respond = fail
    env.reset(seed=0)
    with pytest.raises(ZeroDivisionError):
        for _ in range(9):
            env.step(action)
    with pytest.raises(InputError, match="reset row 0 first"):
        env.step(action)
    users.on_respond = lambda focus, response: None
    expected = EdgeFeedEnv(scenario=lite, users=Own()).reset(seed=0)[0]
    seen, _ = env.reset(seed=0)
    assert all(np.array_equal(seen[key], expected[key]) for key in seen)
    env.step(action)


def refusals(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The message of the InputError that a call raises, if any."""
    try:
        function(*arguments)
    except InputError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_one_step_at_a_time(lite, env_id):
    """Users that step their own environment, and another thread that steps it meanwhile."""
    for make in (gym.make, gym.make_vec):
        users, errors = Own(), []
        env: Any = make(env_id, scenario=lite, users=users).unwrapped
        action = env.action_space.sample()

        def meddle(focus, response, env=env, action=action, errors=errors):
            errors += refusals(env.step, action) + refusals(env.reset) + refusals(env.batch.reset, [0])
            thread = threading.Thread(target=lambda: errors.extend(refusals(env.step, action)))
            thread.start()
            thread.join()

        env.reset(seed=0)
        users.on_respond = meddle
        env.step(action)
        assert len(errors) >= 4 and {"being stepped already" in error for error in errors} == {True}
        users.on_respond = lambda focus, response: None
        env.step(action)


def test_threads_of_dropped_environments_end(users):
    before = set(threading.enumerate())
    env = started(EdgeFeedVectorEnv(128, threads=2, scenario="lite", users=users), 1)
    [worker] = set(threading.enumerate()) - before
    del env
    gc.collect()
    worker.join(timeout=20)
    assert not worker.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_start_again_in_a_forked_child(users):
    env = started(EdgeFeedVectorEnv(128, threads=2, scenario="lite", users=users), 2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            observation, *_ = env.step(env.action_masks().argmax(axis=1))
            os.write(writing, observation["context"].tobytes())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    observation, *_ = env.step(env.action_masks().argmax(axis=1))
    assert told == observation["context"].tobytes()
    env.close()
