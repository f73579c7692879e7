"""What environments refuse and what they tell of themselves, at every id: single, batch and SB3 view."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.errors import InputError
from edgerec_gym.registration import IDS, SLATE
from edgerec_gym.scenario import Scenario

OPTIONS: dict[str, Any] = {"scenario": "lite", "users": "synthetic"}
MAKERS = {
    "single": lambda env_id, **options: gym.make(env_id, **OPTIONS | options),
    "batch": lambda env_id, **options: gym.make_vec(env_id, num_envs=2, **OPTIONS | options),
    "view": lambda env_id, **options: make_vec_env(env_id, 2, **OPTIONS | options),
}


@pytest.fixture(params=[(env_id, kind) for env_id in sorted(IDS) for kind in MAKERS])
def make(request: pytest.FixtureRequest) -> Any:
    """Make an id in one of three ways."""
    env_id, kind = request.param
    if kind == "view" and IDS[env_id] == SLATE:
        pytest.skip("stable-baselines3 takes no plans")
    return lambda **options: MAKERS[kind](env_id, **options)


@pytest.mark.parametrize("error", [TypeError, InputError])
def test_an_unknown_option_is_a_type_error_and_names_the_closest(make: Any, error: type[Exception]) -> None:
    """Libraries try options and go on at the usual TypeError; people want to know what is allowed."""
    with pytest.raises(error, match="unexpected keyword argument 'frameskip'; options are .*pool_size"):
        make(frameskip=1)
    with pytest.raises(error, match="unexpected keyword argument 'pool_sise'; did you mean 'pool_size'?"):
        make(pool_sise=30)
    with pytest.raises(error, match="did you mean 'scenario'?"):
        make(scenari="lite")


@pytest.mark.parametrize("env_id", sorted(IDS))
def test_options_of_a_batch_are_none_of_a_single_environment(env_id: str) -> None:
    for option in ({"num_envs": 2}, {"autoreset_mode": "SameStep"}):
        with pytest.raises(InputError, match=f"unexpected keyword argument '{next(iter(option))}'"):
            gym.make(env_id, **OPTIONS, **option)
    if IDS[env_id] == SLATE:
        with pytest.raises(InputError, match="unexpected keyword argument 'track'"):
            gym.make_vec(env_id, num_envs=2, track="mix", **OPTIONS)


def test_an_environment_tells_what_it_is(make: Any) -> None:
    env = make(max_slots=30, reward={"click": 2.0}, split="eval")
    told = repr(env)
    for part in ("'lite'", "'synthetic'", "split='eval'", "max_slots=30", "reward.click=2.0"):
        assert part in told
    assert len(told) < 250 and "pool_size" not in told


def test_the_spec_tells_the_longest_session_and_makes_the_same_again(env_id: str) -> None:
    env = gym.make(env_id, **OPTIONS, max_slots=30)
    assert env.spec is not None and env.spec.max_episode_steps == env.unwrapped.config.max_slots == 30
    assert gym.spec(env_id).max_episode_steps is None  # the scenario decides
    again = gym.make(env.spec)
    batch = gym.make_vec(env.spec, num_envs=2)
    assert batch.spec is not None and batch.spec.max_episode_steps == 30
    assert gym.make_vec(batch.spec).unwrapped.num_envs == 2
    assert again.unwrapped.config == batch.unwrapped.config == env.unwrapped.config
    with pytest.raises(InputError, match="shorten a session with max_slots"):
        gym.make_vec(env_id, num_envs=2, max_episode_steps=20, **OPTIONS)


def test_the_spec_of_the_view(slot_id: str) -> None:
    [spec, _] = make_vec_env(slot_id, 2, **OPTIONS, max_slots=30).get_attr("spec")
    assert spec.id == slot_id and spec.max_episode_steps == 30
    assert gym.make(spec).unwrapped.config.max_slots == 30


def test_a_config_tells_how_it_differs_from_the_closest_preset() -> None:
    assert repr(FeedConfig()) == "FeedConfig('default')"
    lite = preset("lite")[0]
    assert repr(lite) == "FeedConfig('lite')"
    changed = lite.replace(pool_size=30, cloud={"noise": 0.0})
    assert repr(changed) == "FeedConfig('lite', pool_size=30, cloud.noise=0.0)"


def test_a_scenario_tells_its_name_sizes_and_users() -> None:
    told = repr(Scenario.load("lite"))
    for part in ("'lite'", "2,000 items", "pool of 20", "up to 60 slots", "learned and synthetic"):
        assert part in told
    assert len(told) < 200
