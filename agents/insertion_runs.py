"""Runs of ESAN, from logs or fine-tuned, as policies that insert cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents import checkpoint, esan_gradient, evaluator_training
from edgerec_gym.agents.esan import ESAN, ESANConfig
from edgerec_gym.agents.esan_values import NetworkValues
from edgerec_gym.agents.mix_policies import TRACKS, InsertionPlan, policy_of
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Policy
from edgerec_gym.runs import check_sizes, read_run

AGENTS = (evaluator_training.INSERTER, esan_gradient.AGENT)


def load_network(folder: str | Path, config: FeedConfig) -> ESAN:
    """Load ESAN from a run of :data:`AGENTS`; InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    if run.agent not in AGENTS:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}; allowed: {', '.join(AGENTS)}")
    check_sizes(run, config)
    settings = ESANConfig.from_dict(run.record.get("network", run.record["hyper"]))
    network = evaluator_training.build(config, settings, tuple(run.record["identified"]))
    checkpoint.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play an environment of the tracks mix, joint or slate, by exact plans.

    A fine-tuned run plays at the price that its training ended with; a card is free otherwise.

    Raises:
        InputError: nothing there, broken files, or an environment of another track or of other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    record = read_run(folder).record
    if feed.track not in TRACKS:
        raise InputError(
            f"{folder} inserts cards; it plays the tracks {', '.join(TRACKS)}, not {feed.track!r}"
        )
    values = NetworkValues(load_network(folder, feed.config), threads)
    price = record.get("price", 0.0)
    return policy_of(InsertionPlan(record["agent"], values, feed.config, price=price), feed.track)
