"""The agents that `edgerec train` trains and `edgerec evaluate` loads, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgerec_gym.agents import (
    edgerec_runs,
    edgerec_training,
    esan_gradient,
    evaluator_training,
    generator_runs,
    generator_training,
    insertion_runs,
    request_dqn,
    supervised,
    trained_policy,
    training,
    uplift_training,
)
from edgerec_gym.agents.request_planner import load_learner, load_planner
from edgerec_gym.agents.uplift_models import ESTIMATORS
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Policy
from edgerec_gym.runs import read_run

AGENTS = (
    *trained_policy.AGENTS,
    *supervised.RERANKERS,
    evaluator_training.AGENT,
    *generator_runs.AGENTS,
    *insertion_runs.AGENTS,
    *ESTIMATORS,
    request_dqn.AGENT,
    edgerec_runs.AGENT,
)


def train_agent(
    agent: str,
    out: str | Path,
    *,
    logs: str | Path | None,
    seed: int,
    resume: bool,
    threads: int,
    hyper: dict[str, Any],
    based_on: Sequence[str | Path] = (),
    progress: Callable[[int, int, str], None] | None = None,
    **play: Any,
) -> dict[str, Any]:
    """Train any agent.

    Args:
        agent: of :data:`AGENTS`.
        out: the run's folder.
        logs: the log folder to learn from; None for agents that learn by playing.
        seed: of everything random.
        resume: go on from the last checkpoint in `out`.
        threads: torch threads.
        hyper: hyper-parameters by name.
        based_on: runs that generators, the sequence search, esan-pg and edgerec start from.
        progress: called with (epochs or updates done, in all, text); pointer-ppo and flat-ppo show their own.
        **play: further arguments of :func:`~edgerec_gym.agents.training.train`, which re-rankers do not need;
            generators, esan-pg and edgerec take scenario and users, edgerec also rules.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown agent, logs or runs missing or not used, and what the training itself refuses.
    """
    if agent not in AGENTS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(AGENTS)}")
    common: dict[str, Any] = {"seed": seed, "resume": resume, "threads": threads, **hyper}
    place = {name: play[name] for name in ("scenario", "users") if name in play}
    rules = play.pop("rules", None)
    if rules is not None and agent != edgerec_runs.AGENT:
        raise InputError(f"agent {agent!r} has no rules; leave --rules out")
    if agent in generator_runs.AGENTS:
        return generator_training.train(
            out, agent=agent, based_on=based_on, logs=logs, progress=progress, **place, **common
        )
    if agent in (esan_gradient.AGENT, edgerec_runs.AGENT):
        if logs is not None:
            raise InputError(f"agent {agent!r} learns by playing and reads no logs; leave --logs out")
        if agent == edgerec_runs.AGENT:
            return edgerec_training.train(
                out, based_on=based_on, rules=rules, progress=progress, **place, **common
            )
        return esan_gradient.train(out, based_on=based_on, progress=progress, **place, **common)
    if based_on:
        raise InputError(f"agent {agent!r} is based on no other run; leave --based-on out")
    if agent in (*trained_policy.AGENTS, request_dqn.AGENT) and logs is not None:
        raise InputError(f"agent {agent!r} learns by playing and reads no logs; leave --logs out")
    if agent == request_dqn.AGENT:
        playing = {name: play[name] for name in ("scenario", "users", "steps") if name in play}
        return request_dqn.train(out, **playing, **common)
    if agent in trained_policy.AGENTS:
        return training.train(out=out, agent=agent, progress=progress is not None, **play, **common)
    if logs is None:
        raise InputError(f"agent {agent!r} learns from logs: give a log folder with --logs")
    if agent in evaluator_training.AGENTS:
        return evaluator_training.train(out, logs, agent=agent, progress=progress, **common)
    learner = uplift_training if agent in ESTIMATORS else supervised
    return learner.train(out, logs, agent=agent, progress=progress, **common)


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load any agent's run to play an environment; InputError if it does not fit or does not play."""
    record = read_run(folder).record
    agent = record["agent"]
    if agent == evaluator_training.AGENT:
        raise InputError(
            f"{folder} holds an evaluator, which judges lists and plays none; "
            f"train a {generator_runs.SEARCH} --based-on it"
        )
    if agent in generator_runs.AGENTS:
        return generator_runs.load_policy(folder, env)
    if agent == edgerec_runs.AGENT:
        return edgerec_runs.load_policy(folder, env)
    if agent in insertion_runs.AGENTS:
        return insertion_runs.load_policy(folder, env)
    if agent in ESTIMATORS:
        return load_planner(folder, env)
    if agent == request_dqn.AGENT:
        return load_learner(folder, env)
    return (supervised if agent in supervised.RERANKERS else trained_policy).load_policy(folder, env)
