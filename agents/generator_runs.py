"""Runs of generators and of the sequence search: what they are based on, and loading them to play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerec_gym.agents import checkpoint, evaluator_training, supervised
from edgerec_gym.agents.evaluator import EvaluatorConfig, ListEvaluator
from edgerec_gym.agents.pointer_net import PointerNet
from edgerec_gym.agents.reranker import Reranker, RerankerConfig
from edgerec_gym.agents.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Policy
from edgerec_gym.runs import check_sizes, read_run

GENERATORS = ("pointer-evaluator", "pointer-users", "pointer-distilled")
SEARCH = "sequence-search"
AGENTS = (*GENERATORS, SEARCH)
EVALUATOR, GENERATOR = "evaluator", "generator"
Parts = Mapping[str, Path]


def find_parts(agent: str, based_on: Sequence[str | Path]) -> dict[str, Path]:
    """Tell the runs that an agent is based on by what they hold.

    Returns:
        Folders by "evaluator" and "generator"; the second may be missing.

    Raises:
        InputError: a folder without a run, of another kind, or two of one kind; no evaluator where the agent
            needs one, or one where it needs none.
    """
    parts: dict[str, Path] = {}
    for folder in based_on:
        kind = read_run(folder).agent
        if kind == evaluator_training.AGENT:
            part = EVALUATOR
        elif kind in ("pointer", *GENERATORS):
            part = GENERATOR
        else:
            raise InputError(f"{folder} holds the agent {kind!r}, neither an evaluator nor a generator")
        if part in parts:
            raise InputError(f"{parts[part]} and {folder} both hold {part}s; give one")
        parts[part] = Path(folder)
    if agent == "pointer-users" and EVALUATOR in parts:
        raise InputError(f"agent {agent!r} is rewarded by users; leave the evaluator {parts[EVALUATOR]} out")
    if agent != "pointer-users" and EVALUATOR not in parts:
        raise InputError(f"agent {agent!r} needs an evaluator: give its run's folder with --based-on")
    return parts


def network_settings(parts: Parts) -> RerankerConfig:
    """Sizes of a generator: those of the one that it starts from, else the defaults."""
    if GENERATOR not in parts:
        return RerankerConfig()
    _, record = read_run(parts[GENERATOR])
    return RerankerConfig.from_dict(record["hyper"] if record["agent"] == "pointer" else record["network"])


def make_generator(parts: Parts, config: FeedConfig, seed: int) -> PointerNet:
    """Return the generator to start from, or a new one with parameters drawn from `seed`."""
    settings = network_settings(parts)
    network = supervised.build("pointer", config, settings, seed)
    assert isinstance(network, PointerNet)
    if GENERATOR in parts:
        run = read_run(parts[GENERATOR])
        check_sizes(run, config)
        checkpoint.load_parameters(run.parameters, network)
    return network


def make_evaluator(parts: Parts, config: FeedConfig) -> ListEvaluator | None:
    """Return the evaluator that an agent is based on, if there is one; it is not trained further."""
    if EVALUATOR not in parts:
        return None
    return evaluator_training.load_evaluator(parts[EVALUATOR], config).requires_grad_(False)


def describe(parts: Parts) -> dict[str, Any]:
    """Return what a record tells of the runs that it is based on; equal only for equal runs."""
    described = {}
    for name, folder in parts.items():
        record = read_run(folder).record
        told = ("agent", "seed", "hyper", "steps", "network", "identified")
        described[name] = {key: record[key] for key in told if key in record}
    return described


def load_network(folder: str | Path, config: FeedConfig) -> Reranker:
    """Load a generator or a sequence search; InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    if run.agent not in AGENTS:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}; allowed: {', '.join(AGENTS)}")
    check_sizes(run, config)
    settings = RerankerConfig.from_dict(run.record["network"])
    network = supervised.build("pointer", config, settings)
    if run.agent == SEARCH:
        assert isinstance(network, PointerNet)
        told = run.record["based_on"][EVALUATOR]
        evaluator = evaluator_training.build(
            config, EvaluatorConfig.from_dict(told["hyper"]), tuple(told["identified"])
        )
        generator = network if GENERATOR in run.record["based_on"] else None
        network = SequenceSearch(config, evaluator, generator, SearchConfig.from_dict(run.record["hyper"]))
    checkpoint.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play an environment of the tracks joint, rerank or slate; as supervised.load_policy."""
    feed = getattr(env, "unwrapped", env)
    record = read_run(folder).record
    supervised.check_track(folder, feed.track)
    network = load_network(folder, feed.config)
    return supervised.policy_of(record["agent"], network, feed, threads)
