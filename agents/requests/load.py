"""Load runs that request pages: uplift estimators and DQN, as policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.requests.dqn import DQNScore, load_network
from edgerec_gym.agents.requests.effects import TRACKS
from edgerec_gym.agents.requests.planner import RequestPlanner
from edgerec_gym.agents.requests.scores import UpliftScore
from edgerec_gym.agents.requests.train import load_model
from edgerec_gym.errors import InputError
from edgerec_gym.runs import Run, read_run


def load_planner(folder: str | Path | Run, env: Any, *, threads: int = 1) -> RequestPlanner:
    """Load an estimator's run to request pages whose estimated gain exceeds the cost of a request.

    Args:
        folder: the run's folder (finished, or with a complete checkpoint), or one checkpoint.
        env: any of the package's environments, of the track request or joint; its reward defines the cost.
        threads: torch threads.

    Raises:
        InputError: no run, broken files, or an environment of another track or of other sizes.
    """
    feed, run = _fitting(folder, env)
    score = UpliftScore(load_model(run, feed.config), threads=threads)
    return RequestPlanner(run.agent, score, -float(feed.config.reward.request))


def load_learner(folder: str | Path | Run, env: Any, *, threads: int = 1) -> RequestPlanner:
    """Load a run of DQN, as :func:`load_planner` does; its values include the cost of a request."""
    feed, run = _fitting(folder, env)
    return RequestPlanner(run.agent, DQNScore(load_network(run, feed.config), feed.config, threads), 0.0)


def _fitting(folder: str | Path | Run, env: Any) -> tuple[Any, Run]:
    feed, run = getattr(env, "unwrapped", env), read_run(folder)
    if feed.track not in TRACKS:
        raise InputError(
            f"{run.folder} requests pages; it plays the tracks {', '.join(TRACKS)}, not {feed.track!r}"
        )
    return feed, run
