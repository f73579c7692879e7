"""Train ESAN on exposed lists with mix-in cards; load it, fine-tuned or not, as an insertion policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.insertion.esan import ESAN, ESANConfig
from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.policies import TRACKS, InsertionPlan, policy_of
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import Report
from edgerec_gym.agents.learning.tensors import torch_seed
from edgerec_gym.agents.lists.evaluator_training import JudgeTrainer, train_judge
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Policy
from edgerec_gym.runs import Run, check_agent, check_sizes, read_run

AGENT, TUNED = AGENTS = ("esan", "esan-pg")


def train(
    out: str | Path,
    logs: str | Path,
    *,
    agent: str = AGENT,
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train ESAN and write the run's folder.

    Works as :func:`~edgerec_gym.agents.lists.evaluator_training.train`, on a log with mix-in cards; `hyper`
    are fields of :class:`~edgerec_gym.agents.insertion.esan.ESANConfig`.

    Raises:
        InputError: as there, or a log without mix-in cards.
    """
    settings, reader = ESANConfig.from_dict(hyper), LogReader(logs)
    if "cards" in reader.unidentified:
        raise InputError(f"{reader.folder} has no mix-in cards, which {agent} needs to learn from")
    options: dict[str, Any] = {"seed": seed, "resume": resume, "threads": threads, "progress": progress}
    return train_judge(ESANTrainer, out, reader, agent, "mix", settings, **options)


class ESANTrainer(JudgeTrainer[ESAN]):
    """Training of one ESAN."""

    def build(
        self, config: FeedConfig, settings: ESANConfig, identified: tuple[bool, ...], seed: int
    ) -> ESAN:
        """Make the network."""
        return build(config, settings, identified, seed)


def build(config: FeedConfig, settings: ESANConfig, identified: tuple[bool, ...], seed: int = 0) -> ESAN:
    """Make ESAN with initial parameters drawn from `seed`; the global generator is left untouched."""
    with torch_seed(seed):
        return ESAN(config, settings, identified)


def load_network(folder: str | Path | Run, config: FeedConfig) -> ESAN:
    """Load ESAN from a run of :data:`AGENTS`; InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    check_agent(run, AGENTS)
    check_sizes(run, config)
    settings = ESANConfig.from_dict(run.record.get("network", run.record["hyper"]))
    network = build(config, settings, tuple(run.record["identified"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path | Run, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play an environment of the tracks mix, joint or slate, by exact plans.

    A fine-tuned run plays at the price that its training ended with; otherwise the price is 0.

    Raises:
        InputError: no run, broken files, or an environment of another track or of other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    run = read_run(folder)
    if feed.track not in TRACKS:
        raise InputError(
            f"{run.folder} inserts cards; it plays the tracks {', '.join(TRACKS)}, not {feed.track!r}"
        )
    values = NetworkValues(load_network(run, feed.config), threads)
    price = run.record.get("price", 0.0)
    return policy_of(InsertionPlan(run.agent, values, feed.config, price=price), feed.track)
