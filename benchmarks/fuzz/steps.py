"""Play random feeds and compare every step with the model of the rules; sample what costs more.

In every row of every step: mask, outcomes, request budget, share caps, gaps, first slots, no item twice,
context, reward and end. In one row of 16 also the whole observation against its space. Once per config: a
replay of the same actions, the single environment, the view for stable-baselines3, and calls that must be
refused.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

import edgerec_gym  # noqa: F401 - registers the ids
from benchmarks.fuzz.checks import Harm, check_observation
from benchmarks.fuzz.configs import LEARNED, SCRIPTED, Setup, make_setup
from benchmarks.fuzz.model import (
    FAULTS,
    draw_actions,
    follow,
    follow_plans,
    make_followed,
    make_rules,
    what_is_shown,
)
from benchmarks.fuzz.workers import Service
from edgerec_gym.compiled.arrays import AddressTable
from edgerec_gym.errors import InputError
from edgerec_gym.registration import SLATE, make_feeds, track_of

Rng = np.random.Generator
BYTES = 48 * 2**20  # of observations and marks in a batch
MOST_ROWS = 4096
LEARNED_ROWS, SCRIPTED_ROWS = 256, 512
LEARNED_SHARE, SCRIPTED_SHARE = 0.08, 0.5  # of the steps of a config, as these users take longer
CHECKED_STEPS = 40  # of the replay and of the single environment
SB3_EVERY = 4  # configs


@dataclass
class Played:
    """What a config gave."""

    config: str
    env_id: str
    users: str
    steps: int = 0
    sessions: int = 0
    compared: int = 0  # steps played twice or in other views
    seconds: float = 0.0
    refused: str = ""  # why the environment did not take the config
    faults: list[str] = field(default_factory=list)


def play_setup(setup: Setup, steps: int) -> Played:
    """Fuzz one config for about so many steps (slots)."""
    found = Played(str(setup), setup.env_id, setup.users)
    start = time.monotonic()
    rng = np.random.default_rng([setup.number, 1])
    try:
        env = make_feeds(setup.env_id, 1, **setup.options())
        env.close()
    except InputError as error:
        found.refused = str(error)
        return found
    try:
        _play_batch(setup, steps, rng, found)
        _compare(setup, rng, found)
    except Exception as error:  # the environment must not raise anything
        found.faults.append(f"{type(error).__name__}: {error}")
    found.seconds = time.monotonic() - start
    return found


def play_number(number: int, seed: int, steps: int, small: bool = False) -> Played:
    """Fuzz config `number` of a run."""
    return play_setup(make_setup(number, seed, small), steps)


def _rows(setup: Setup, probe: Any, steps: int) -> int:
    per_row = probe.batch.arrays.observation.nbytes + len(setup.scenario.catalog)
    most = {LEARNED: LEARNED_ROWS, SCRIPTED: SCRIPTED_ROWS}.get(setup.users, MOST_ROWS)
    return int(np.clip(BYTES // per_row, 1, min(most, max(1, steps // 20))))


def _play_batch(setup: Setup, steps: int, rng: Rng, found: Played) -> None:
    """Play a large batch against the model."""
    steps = round(steps * {LEARNED: LEARNED_SHARE, SCRIPTED: SCRIPTED_SHARE}.get(setup.users, 1.0))
    probe = make_feeds(setup.env_id, 1, **setup.options())
    rows = _rows(setup, probe, steps)
    env = make_feeds(setup.env_id, rows, copy=False, threads=int(rng.integers(1, 3)), **setup.options())
    slate = track_of(setup.env_id) == SLATE
    rules = make_rules(env.config, "joint" if slate else env.track, env.scenario.catalog)
    followed = make_followed(rules, rows)
    shown, plans = what_is_shown(env.batch)
    tables = [AddressTable(part) for part in (rules, followed, shown, plans) if part is not None]
    at = [table.address for table in tables]
    faults, ended, actions = np.zeros(rows, np.int64), np.ones(rows, np.bool_), np.zeros(rows, np.int64)
    wrong, cards, requests = (float(rng.choice(share)) for share in ([0, 0.1, 1], [0, 0.3, 1], [0, 0.1, 1]))
    env.reset(seed=setup.seed)
    step = 0
    plan: tuple[np.ndarray, ...] = _plan(rng, env, wrong, cards, requests) if slate else ()

    def compare() -> None:
        if plans is None:
            follow(*at, actions, ended, step, faults)
        else:
            follow_plans(*at, *plan, ended, step, faults)
        if faults.any():
            row = int(faults.argmax())
            raise Harm(f"row {row}, step {step}, slot {followed.slot[row]}: {FAULTS[faults[row]]}")

    compare()
    ended[:] = False
    while found.steps < steps:
        step += 1
        if slate:
            plan = _plan(rng, env, wrong, cards, requests)
            _, reward, terminated, truncated, _ = env.step(
                dict(zip(("order", "insert", "request"), plan, strict=True))
            )
        else:
            draw_actions(*at[:2], rng.random((rows, 2)), wrong, cards, requests, actions)
            _, reward, terminated, truncated, _ = env.step(actions)
        compare()
        found.steps += int(plans.slots.sum()) if plans is not None else rows - int(ended.sum())
        found.sessions += int(ended.sum())
        ended = terminated | truncated
    env.close()


def _plan(rng: Rng, env: Any, wrong: float, cards: float, requests: float) -> tuple[np.ndarray, ...]:
    rows, config = env.num_envs, env.config
    order = rng.random((rows, config.pool_size), np.float32)
    draw = rng.random()
    if draw < 0.1:
        order[:] = 0  # all equal
    elif draw < 0.2:
        order = (order - 0.5) * np.float32(3e38)
    insert = rng.integers(config.n_cards + 1, size=(rows, config.slate_size))
    share = max(cards, wrong * 0.5)
    insert[rng.random(insert.shape) >= share] = 0
    return order, insert, (rng.random(rows) < max(requests, 0.1 * wrong)).astype(np.int64)


# --- the same session in other ways ---------------------------------------------------------------------


def _compare(setup: Setup, rng: Rng, found: Played) -> None:
    """Play a few rows again: in a replay, alone, in SB3's view, and with calls that must be refused."""
    rows = 3
    options = {**setup.options(), "autoreset_mode": AutoresetMode.SAME_STEP}
    first = make_feeds(setup.env_id, rows, **options)
    observation, _ = first.reset(seed=setup.seed)
    taken: list[Any] = []
    told: list[Any] = [(observation,)]
    for _ in range(CHECKED_STEPS):
        taken.append(_any_action(first, observation, rng))
        seen = first.step(taken[-1])
        observation, infos = seen[0], seen[4]
        check_observation(observation, first.single_observation_space)
        for final in [last for last in infos.get("final_obs", ()) if last is not None]:
            if not first.single_observation_space.contains(final):
                raise Harm("final_obs lies outside the space")
        told.append(seen)
    _refuse(first, taken[0])
    first.close()

    again = make_feeds(setup.env_id, rows, **{**setup.options(), "autoreset_mode": AutoresetMode.SAME_STEP})
    _same("replay", told[0], again.reset(seed=setup.seed)[:1])
    for k, actions in enumerate(taken):
        _same(f"replay, step {k}", told[k + 1], again.step(actions))
    again.close()
    found.compared += 2 * rows * len(taken)
    if setup.users != LEARNED:  # whose sums of floats depend on the batch
        _play_alone(setup, rows - 1, taken, told, found)
    if setup.number % SB3_EVERY == 0 and track_of(setup.env_id) != SLATE:
        _play_sb3(setup, rows, taken, told, found)


def _play_alone(setup: Setup, row: int, taken: list[Any], told: list[Any], found: Played) -> None:
    """One row of the batch equals the single environment seeded alike."""
    env = gym.make(setup.env_id, **setup.options())
    observation, _ = env.reset(seed=setup.seed + row)
    _same("alone", [{key: v[row] for key, v in told[0][0].items()}], [observation])
    for k, actions in enumerate(taken):
        one = {key: v[row] for key, v in actions.items()} if isinstance(actions, dict) else int(actions[row])
        seen = env.step(one)
        there = told[k + 1]
        _same(f"alone, step {k}", [v[row] for v in there[1:4]], list(seen[1:4]))
        if seen[2] or seen[3]:
            last = there[4]["final_obs"][row]
            _same(f"alone, end {k}", [last], [seen[0]])
            observation, _ = env.reset()
        else:
            observation = seen[0]
        _same(f"alone, step {k}", [{key: v[row] for key, v in there[0].items()}], [observation])
    found.compared += len(taken)
    env.close()


def _play_sb3(setup: Setup, rows: int, taken: list[Any], told: list[Any], found: Played) -> None:
    """The view for stable-baselines3 shows the same."""
    from edgerec_gym.adapters.sb3 import make_vec_env

    env = make_vec_env(setup.env_id, rows, seed=setup.seed, **setup.options())
    _same("sb3", told[0][0], env.reset())
    for k, actions in enumerate(taken):
        seen: Any = env.step(actions)
        observation, reward, dones, infos = seen
        there = told[k + 1]
        _same(f"sb3, step {k}", there[0], observation)
        _same(f"sb3, step {k}", there[1].astype(np.float32), reward)
        _same(f"sb3, step {k}", there[2] | there[3], dones)
        if not np.array_equal(np.stack(env.env_method("action_masks")), observation["action_mask"] != 0):
            raise Harm(f"sb3, step {k}: action_masks differ from the observation")
        for row in np.flatnonzero(dones):
            _same(f"sb3, end {k}", there[4]["final_obs"][row], infos[row]["terminal_observation"])
    found.compared += rows * len(taken)
    env.close()


def _any_action(env: Any, observation: dict[str, np.ndarray], rng: Rng) -> Any:
    if env.track == SLATE:
        return dict(zip(("order", "insert", "request"), _plan(rng, env, 0.1, 0.3, 0.1), strict=True))
    mask = observation["action_mask"]
    legal = (rng.random(mask.shape) * mask).argmax(axis=1)
    anything = rng.integers(mask.shape[1], size=len(mask))
    return np.where(rng.random(len(mask)) < 0.1, anything, legal)


def _refuse(env: Any, action: Any) -> None:
    """Calls outside the space raise InputError and change nothing."""
    before = {key: values.copy() for key, values in env.batch.observation().items()}
    n = len(before["action_mask"])
    if isinstance(action, dict):
        wrong = [
            {**action, "request": action["request"] + 2},
            {**action, "order": action["order"] * np.nan},
            0,
        ]
    else:
        wrong = [np.full(n, -1), np.full(n, 2**40), np.zeros(n + 1, int), np.zeros(n), None, "a"]
    for actions in wrong:
        try:
            env.step(actions)
        except InputError:
            _same("refused action", before, env.batch.observation())
        else:
            raise Harm(f"the action {actions!r} was taken")


def _same(what: str, first: Any, second: Any) -> None:
    """Raise Harm unless both hold the same, bit for bit."""
    if isinstance(first, dict):
        if set(first) != set(second):
            raise Harm(f"{what}: keys {sorted(set(first) ^ set(second))} differ")
        for key in first:
            _same(f"{what}: {key}", first[key], second[key])
    elif isinstance(first, (list, tuple)):
        if len(first) != len(second):
            raise Harm(f"{what}: {len(first)} parts, not {len(second)}")
        for one, other in zip(first, second, strict=True):
            _same(what, one, other)
    elif isinstance(first, np.ndarray) and first.dtype == object:
        _same(what, list(first), list(second))
    elif first is None or second is None:
        if first is not second:
            raise Harm(f"{what}: {first!r} is not {second!r}")
    elif np.asarray(first).tobytes() != np.asarray(second).tobytes():
        raise Harm(f"{what}: values differ")


def summary(played: list[Played]) -> dict[str, Any]:
    """Totals of a run."""
    ids = Counter[str]()
    for one in played:
        ids[one.env_id] += one.steps
    return {
        "steps": sum(one.steps for one in played),
        "configs": sum(not one.refused for one in played),
        "refused_configs": sum(bool(one.refused) for one in played),
        "sessions": sum(one.sessions for one in played),
        "steps_compared": sum(one.compared for one in played),
        "steps_by_id": dict(ids),
        "faults": [f"{one.config}: {fault}" for one in played for fault in one.faults],
    }


def service(seed: int, each: int) -> Service:
    """Return what plays `each` steps of the configs whose numbers it is asked."""
    return Service(_start, partial(_answer, seed, each))


def _start() -> None:
    """Nothing to load: importing this module loads the environment."""


def _answer(seed: int, each: int, number: int, _folder: Path, _tell: Any) -> Played:
    return play_number(number, seed, each)
