"""Runs of the EdgeRec agent: hyper-parameters, the network in a folder, the policy that plays it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec_gym.agents.edgerec.agent import NAME, EdgeRec
from edgerec_gym.agents.edgerec.judges import JointNetwork
from edgerec_gym.agents.edgerec.network import EdgeRecNetwork
from edgerec_gym.agents.edgerec.rules import FILE, Rules, load_rules
from edgerec_gym.agents.edgerec.values import FEATURES
from edgerec_gym.agents.insertion.esan import ESAN, ESANConfig
from edgerec_gym.agents.insertion.train import build
from edgerec_gym.agents.learning import parameters
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.runs import Run, check_sizes, read_run

AGENT = NAME


@dataclass(frozen=True)
class EdgeRecConfig(Config):
    """Hyper-parameters of the joint training."""

    hidden: int = bounded(32, 2, 4096)  # width of the order and request heads
    page_views: int = bounded(1, 0, 1)  # 0 hides page views and the actions in them
    match: float = bounded(0.5, 0.0, 100.0)  # initial weight of live match in the order; 1 = device-greedy's
    teach_sessions: int = bounded(512, 1, 1_000_000)  # sessions that the parts play
    teach_epochs: int = bounded(15, 1, 10_000)
    teach_rate: float = bounded(3e-3, 1e-7, 1.0)  # learning rate of Adam
    updates: int = bounded(60, 0, 1_000_000)  # policy-gradient updates
    learning_rate: float = bounded(2e-4, 1e-7, 1.0)  # learning rate of Adam, for the heads
    match_rate: float = bounded(0.01, 0.0, 1.0)  # learning rate of the weight of live match
    price_rate: float = bounded(1e-3, 0.0, 1.0)  # for prices of cards, scale and shift of a request's gain
    batch_size: int = bounded(64, 1, 1_000_000)  # sessions in an update
    samples: int = bounded(4, 2, 1000)  # copies of each session, with noise of their own
    moments: int = bounded(1024, 1, 1_000_000)  # plans of an update that its gradient is computed from
    order_noise: float = bounded(0.3, 1e-6, 1e3)  # standard deviation, logits
    card_noise: float = bounded(0.04, 1e-6, 1e3)  # standard deviation, reward
    request_noise: float = bounded(0.05, 1e-6, 1e3)  # standard deviation, reward
    anchor: float = bounded(0.1, 0.0, 1e6)  # weight of the divergence from the taught network
    discount: float = bounded(0.9, 0.0, 1.0)  # per slot, of what users do later
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    select_every: int = bounded(20, 1, 1_000_000)  # updates between selections
    select_sessions: int = bounded(2048, 2, 1_000_000)  # held-out sessions that decide which network is kept
    compare_sessions: int = bounded(1536, 0, 1_000_000)  # from which plan values are learned; 0: none
    compare_discount: float = bounded(0.97, 0.0, 1.0)  # per slot; a request's gain comes late
    compare_penalty: float = bounded(30.0, 0.0, 1e6)  # penalty of the regression, in moments


def make_network(esan: ESAN, settings: EdgeRecConfig) -> EdgeRecNetwork:
    """Make the network around an ESAN."""
    return EdgeRecNetwork(esan, settings.hidden, bool(settings.page_views), len(FEATURES), settings.match)


def load_network(folder: str | Path | Run, config: FeedConfig) -> EdgeRecNetwork:
    """Load what :func:`train` wrote; InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    if run.agent != AGENT:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, not {AGENT!r}")
    check_sizes(run, config)
    esan = build(config, ESANConfig.from_dict(run.record["network"]), tuple(run.record["identified"]))
    network = make_network(esan, EdgeRecConfig.from_dict(run.record["hyper"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(
    folder: str | Path | Run, env: Any, *, rules: Rules | None = None, threads: int = 1
) -> EdgeRec:
    """Load a run to play EdgeFeed-v0.

    Args:
        folder: the run's folder, or one checkpoint.
        env: the environment that it will play.
        rules: None for rules.toml in the folder, or the defaults if there is none.
        threads: torch threads.

    Raises:
        InputError: no run, broken files, bad rules, or an environment of another track or of other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    run = read_run(folder)
    if feed.track != "joint":
        raise InputError(f"{run.folder} takes all three decisions; it plays EdgeFeed-v0, not {feed.track!r}")
    network = load_network(run, feed.config)
    if rules is None:
        file = run.root / FILE
        rules = load_rules(file) if file.is_file() else Rules()
    return EdgeRec(JointNetwork(network, threads), feed.config, rules)
