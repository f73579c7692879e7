"""The agents that `edgerec train` trains and `edgerec evaluate` loads, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerec_gym.agents import checkpoint, supervised, training
from edgerec_gym.agents.base import Policy
from edgerec_gym.errors import InputError

AGENTS = (*training.AGENTS, *supervised.RERANKERS)


def train_agent(
    agent: str,
    out: str | Path,
    *,
    logs: str | Path | None,
    seed: int,
    resume: bool,
    threads: int,
    hyper: dict[str, Any],
    progress: Callable[[int, int, str], None] | None = None,
    **play: Any,
) -> dict[str, Any]:
    """Train any agent.

    Args:
        agent: of :data:`AGENTS`.
        out: the run's folder.
        logs: the log folder that re-rankers learn from; None for agents that learn by playing.
        seed: of everything random.
        resume: go on from the last checkpoint in `out`.
        threads: torch threads.
        hyper: hyper-parameters by name.
        progress: of re-rankers, called with (epochs done, epochs at most, text); others show their own.
        **play: further arguments of :func:`~edgerec_gym.agents.training.train`, which re-rankers do not need.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown agent, logs missing or not used, and what the training itself refuses.
    """
    if agent not in AGENTS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(AGENTS)}")
    common: dict[str, Any] = {"agent": agent, "seed": seed, "resume": resume, "threads": threads, **hyper}
    if agent in supervised.RERANKERS:
        if logs is None:
            raise InputError(f"agent {agent!r} learns from logs: give a log folder with --logs")
        return supervised.train(out, logs, progress=progress, **common)
    if logs is not None:
        raise InputError(f"agent {agent!r} learns by playing and reads no logs; leave --logs out")
    return training.train(out=out, progress=progress is not None, **play, **common)


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load any agent's run to play an environment; InputError if it does not fit."""
    _, record = checkpoint.read_run(folder)
    module = supervised if record["agent"] in supervised.RERANKERS else training
    return module.load_policy(folder, env)
