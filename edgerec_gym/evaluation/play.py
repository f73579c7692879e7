"""Score policies on exactly the first episode of each key, with the same keys for every policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.answers import (
    BUY,
    CLICK,
    CLICK_PROBABILITY,
    FOCUSED,
    PAGE_AGE,
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
    UserModel,
)
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import RESPONSE_PREFIX
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import (
    Interval,
    bias_interval,
    exploitation_interval,
    gap_closed_interval,
    mean_interval,
    ratio_interval,
)
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.feed.slate_batch import SlateBatch
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.state import NO_ITEM
from edgerec_gym.vector_env import EdgeFeedVectorEnv

KEEP, REFERENCE = "keep", "oracle"
POSITIONS = ("exposures", "expected_clicks")
MISSED_BUDGETS = "missed_budgets"
Progress = Callable[[int, int], None]
Sessions = dict[str, np.ndarray]


@dataclass
class Times:
    """Time spent on playing, without the first step of each batch.

    Attributes:
        steps: number of steps played in all sessions.
        policy: seconds spent in the policy.
        env: seconds spent in the environment.
    """

    steps: int = 0
    policy: float = 0.0
    env: float = 0.0

    def add(self, steps: int, policy: float, env: float) -> None:
        """Add one step of a batch."""
        self.steps, self.policy, self.env = self.steps + steps, self.policy + policy, self.env + env


def play(
    policy: Policy,
    *,
    env_id: str,
    scenario: str | Scenario,
    users: str | UserModel,
    sessions: int,
    seed: int,
    num_envs: int = 512,
    members: Sequence[int] | None = None,
    config: dict[str, Any] | None = None,
    by_position: bool = False,
    split: str = "eval",
    shift: str | None = None,
    times: Times | None = None,
    progress: Progress | None = None,
) -> Sessions:
    """Play sessions of one policy.

    Args:
        policy: the policy that plays.
        env_id: an id or a track.
        scenario: a shipped name, a folder, or a Scenario.
        users: "learned", "synthetic", or a UserModel.
        sessions: number of sessions, at least 1.
        seed: seed of the sessions.
        num_envs: number of sessions played together.
        members: networks that learned users draw from; None for all.
        config: FeedConfig fields that differ from the scenario's.
        by_position: also return outcomes at each place of a page (not in EdgeFeedSlate-v0).
        split: "eval", or "train" for sessions that may be learned from.
        shift: name of :data:`~edgerec_gym.config.SHIFTS`, synthetic users with other parameters.
        times: receives the time spent, added to what it holds.
        progress: called with (sessions done, total).

    Returns:
        Per-session sums, (sessions,) float64 each: reward, value, clicks, purchases, exposures, requests,
        violations, cards of each type as `cards_<type>`, and each named response as `response_<name>`.
        A policy whose decisions have a latency budget also has `decisions` and `missed_budgets`.
        `value`, `expected_clicks`,
        `expected_card_clicks` (of mix-in cards only) and `expected_purchases` sum the true (or the
        simulator's) click and purchase probabilities along the played feed instead of the drawn outcomes.
        `value` has the mean of the reward (if the reward has no `leave` term) with far less noise; named
        responses count in it as drawn. With
        `by_position` also `exposures_by_position` and `expected_clicks_by_position`, (sessions, page_size)
        float32; the last place includes all places beyond it.
    """
    if sessions < 1:
        raise InputError(f"sessions must be at least 1, got {sessions}")
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    chunks = []
    size = min(num_envs, sessions)  # of every batch, even the last: policies keep one row per session
    for first in range(0, sessions, size):
        env = make_feeds(
            env_id,
            size,
            scenario=scenario,
            users=users,
            split=split,
            copy=False,
            members=members,
            shift=shift,
            **(config or {}),
        )
        wanted = min(size, sessions - first)
        chunks.append(_play_batch(policy, env, seed * CLI_SEED_STRIDE + first, wanted, by_position, times))
        env.close()
        if progress:
            progress(first + wanted, sessions)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _play_batch(
    policy: Policy,
    env: EdgeFeedVectorEnv,
    seed: int,
    wanted: int,
    by_position: bool,
    times: Times | None = None,
) -> Sessions:
    """Play the first `wanted` rows of a batch; the others do not move."""
    batch, config, size = env.batch, env.config, env.num_envs
    a, reward, types = batch.arrays, config.reward, env.scenario.catalog.card_type
    names = ["reward", "value", "clicks", "purchases", "exposures", "requests", "violations"]
    names += ["expected_clicks", "expected_purchases", "expected_card_clicks"]
    names += [f"cards_{name}" for name in config.card_types]
    names += [f"{RESPONSE_PREFIX}{name}" for name in config.responses]
    timed = getattr(policy, "timed", None)
    names += [] if timed is None else ["decisions", MISSED_BUDGETS]
    sums = {name: np.zeros(size) for name in names}
    positions = {f"{name}_by_position": np.zeros((size, config.page_size), np.float32) for name in POSITIONS}
    env.reset(seed=seed)
    if hasattr(policy, "bind"):
        policy.bind(env)
    policy.reset(np.ones(size, np.bool_))
    done = np.arange(size) >= wanted
    first = True
    while not done.all():
        counted = None if timed is None else np.stack([timed.decisions, timed.missed])
        start = perf_counter()
        actions = _act(policy, batch, done)
        decided = perf_counter()
        batch.step(actions, done)
        if times is not None and not first:  # the first step also loads compiled code
            times.add(int((~done).sum()), decided - start, perf_counter() - decided)
        first = False
        live, last = ~done, _last_step(batch)
        if timed is not None and counted is not None:
            sums["decisions"] += np.where(live, timed.decisions - counted[0], 0)
            sums[MISSED_BUDGETS] += np.where(live, timed.missed - counted[1], 0)
        answered = live[:, None] & (last.answered_item != NO_ITEM)
        card_type = np.where(answered, types[last.answered_item], 0)
        probability = last.click_probability.astype(np.float64)
        expected = reward.value(
            probability,
            last.purchase_probability,
            card=card_type > 0,
            responses=config.response_value(last.responses) if config.responses else 0.0,
        )
        paid = reward.cost(last.requested, last.invalid)
        sums["reward"] += np.where(live, batch.reward, 0)
        sums["value"] += np.where(live, paid, 0) + np.where(answered, expected, 0).sum(axis=1)
        sums["clicks"] += (answered & last.clicked).sum(axis=1)
        sums["purchases"] += (answered & last.purchased).sum(axis=1)
        sums["expected_clicks"] += np.where(answered, probability, 0).sum(axis=1)
        sums["expected_purchases"] += np.where(answered, last.purchase_probability, 0).sum(
            axis=1, dtype=np.float64
        )
        sums["expected_card_clicks"] += np.where(card_type > 0, probability, 0).sum(axis=1)
        sums["exposures"] += answered.sum(axis=1)
        sums["requests"] += live & last.requested
        sums["violations"] += np.where(live, last.invalid + last.cost, 0)
        for k, name in enumerate(config.card_types):
            sums[f"cards_{name}"] += (card_type == k + 1).sum(axis=1)
        for k, name in enumerate(config.responses):
            sums[f"{RESPONSE_PREFIX}{name}"] += np.where(answered, last.responses[..., k], 0).sum(axis=1)
        if by_position:
            rows = np.flatnonzero(answered[:, 0])
            place = np.minimum(a.focus_context[rows, PAGE_AGE].astype(np.int64), config.page_size - 1)
            positions["exposures_by_position"][rows, place] += 1
            positions["expected_clicks_by_position"][rows, place] += probability[rows, 0]
        done |= a.terminated | a.truncated
    found: Sessions = {**sums, **positions} if by_position else sums
    return {name: values[:wanted] for name, values in found.items()}


def _act(policy: Policy, batch: FeedBatch, done: np.ndarray) -> Any:
    """Return the actions of all rows; stateless policies see only live rows, as other actions are ignored."""
    observation = batch.observation(copy=False)
    if not getattr(policy, "stateless", False) or not done.any():
        return policy.act(observation)
    live = np.flatnonzero(~done)
    acted = policy.act({key: value[live] for key, value in observation.items()})

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.zeros((len(done), *values.shape[1:]), values.dtype)
        full[live] = values
        return full

    return {key: spread(v) for key, v in acted.items()} if isinstance(acted, dict) else spread(acted)


class _LastStep(NamedTuple):
    """Outcomes of the last step in B rows, by slot (S = 1, or K for a plan)."""

    answered_item: np.ndarray  # (B, S), -1 if none
    clicked: np.ndarray  # (B, S) bool
    purchased: np.ndarray  # (B, S) bool
    click_probability: np.ndarray  # (B, S)
    purchase_probability: np.ndarray  # (B, S)
    responses: np.ndarray  # (B, S, R)
    requested: np.ndarray  # (B,) bool, by the policy
    invalid: np.ndarray  # (B,) illegal actions
    cost: np.ndarray  # (B,) rule violations played


def _last_step(batch: FeedBatch) -> _LastStep:
    a = batch.arrays
    if isinstance(batch, SlateBatch):
        s = batch.slates
        return _LastStep(
            s.answered_item, s.clicked, s.purchased, s.click_probability, s.purchase_probability,
            s.responses, s.sent == 1, s.invalid_positions.sum(axis=1), s.cost,
        )  # fmt: skip
    answer = a.response[:, None]
    return _LastStep(
        np.where(a.focus_active, a.window_items[:, FOCUSED], NO_ITEM)[:, None],
        answer[..., CLICK] > 0, answer[..., BUY] > 0,
        answer[..., CLICK_PROBABILITY], answer[..., PURCHASE_PROBABILITY], answer[..., RESPONSE_SIZE:],
        a.sent == 1, a.invalid.astype(np.int64), a.cost,
    )  # fmt: skip


def kinds_of_users(scenario: Scenario) -> list[str]:
    """Return the kinds of users that a scenario has."""
    return ["learned"] if scenario.synthetic is None else ["learned", "synthetic"]


def with_references(names: Sequence[str], users: Sequence[str]) -> list[str]:
    """Return names of policies between keep and, where synthetic users play, the oracle."""
    return [KEEP, *names, *([REFERENCE] if "synthetic" in users else [])]


def evaluate(
    policies: Sequence[Policy],
    *,
    env_id: str = "EdgeFeed-v0",
    scenario: str | Scenario = "default",
    users: Sequence[str] = ("learned", "synthetic"),
    sessions: int = 2000,
    seed: int = 0,
    num_envs: int = 512,
    progress: Callable[[str, int, int], None] | None = None,
    keep_sessions: dict[tuple[str, str], Sessions] | None = None,
) -> list[dict[str, Any]]:
    """Score policies with common random numbers and 95 % bootstrap intervals.

    Gains are reported only if a policy named "keep" is included, and the share of the gap closed only if
    one named "oracle" is, too. Oracles read latent state and are scored on synthetic users only.
    `keep_sessions` receives the results of :func:`play`, by (policy, users).

    Returns:
        One dict for each (policy, users): policy, users, env_id, scenario, sessions, seed, and metrics as
        {"mean", "low", "high"}: reward, value, clicks, click_rate, purchases, exposures, requests,
        share_<type>, response_<name>, violations, gain_over_keep (paired, of value), gap_closed (synthetic
        users), and, on learned users if synthetic users were also scored, bias and exploitation_gap.
        Policies with a latency budget also have missed_budgets, the share of their decisions that were late.
    """
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    played: dict[tuple[str, str], Sessions] = {} if keep_sessions is None else keep_sessions
    for policy in policies:
        for kind in users:
            if kind != "synthetic" and hasattr(policy, "bind"):
                continue
            label = f"{policy.name} on {kind} users"
            played[policy.name, kind] = play(
                policy,
                env_id=env_id,
                scenario=scenario,
                users=kind,
                sessions=sessions,
                seed=seed,
                num_envs=num_envs,
                progress=partial(progress, label) if progress else None,
            )
    common = {"env_id": env_id, "scenario": scenario.name, "sessions": sessions, "seed": seed}
    return [
        {"policy": name, "users": kind, **common, **_metrics(played, name, kind, seed)}
        for name, kind in played
    ]


def _metrics(played: dict[tuple[str, str], Sessions], name: str, kind: str, seed: int) -> dict[str, Interval]:
    own = played[name, kind]
    metrics = {
        key: mean_interval(own[key], seed)
        for key in ("reward", "value", "clicks", "purchases", "exposures", "requests", "violations")
    }
    metrics["click_rate"] = ratio_interval(own["clicks"], own["exposures"], seed)
    for key in own:
        if key.startswith(RESPONSE_PREFIX):
            metrics[key] = mean_interval(own[key], seed)
        if key.startswith("cards_"):
            metrics["share_" + key.removeprefix("cards_")] = ratio_interval(own[key], own["exposures"], seed)
    if MISSED_BUDGETS in own:
        metrics[MISSED_BUDGETS] = ratio_interval(own[MISSED_BUDGETS], own["decisions"], seed)
    keep, reference = played.get((KEEP, kind)), played.get((REFERENCE, kind))
    if keep is not None:
        metrics["gain_over_keep"] = mean_interval(own["value"] - keep["value"], seed)
        if reference is not None and name != KEEP:
            metrics["gap_closed"] = gap_closed_interval(own["value"], keep["value"], reference["value"], seed)
    true = played.get((name, "synthetic"))
    if kind == "learned" and true is not None:
        metrics["bias"] = bias_interval(own["value"], true["value"], seed)
        keep_true = played.get((KEEP, "synthetic"))
        if keep is not None and keep_true is not None:
            metrics["exploitation_gap"] = exploitation_interval(
                own["value"], true["value"], keep["value"], keep_true["value"], seed
            )
    return metrics
