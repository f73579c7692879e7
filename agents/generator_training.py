"""Train a generator of lists from rewards or from a search, or put a sequence search together.

| agent | learns from | needs |
| --- | --- | --- |
| pointer-evaluator | policy gradient, reward = the evaluator's value of the list | logs, an evaluator |
| pointer-users | policy gradient, reward = the rest of the session with the scenario's users | a scenario |
| pointer-distilled | cross-entropy to the list that the sequence search picks | logs, an evaluator |
| sequence-search | nothing: it joins an evaluator and, if given, a generator | an evaluator, a scenario |

Each can start from a trained generator. A run is a folder as :mod:`edgerec_gym.agents.supervised` writes it,
with the mean reward of every update; a killed run resumes after its last checkpoint and ends with the same
parameters as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents import checkpoint
from edgerec_gym.agents.epochs import Report
from edgerec_gym.agents.generator_runs import (
    AGENTS,
    GENERATOR,
    SEARCH,
    describe,
    find_parts,
    make_evaluator,
    make_generator,
    network_settings,
)
from edgerec_gym.agents.generator_trainer import GeneratorTrainer
from edgerec_gym.agents.policy_gradient import PolicyGradientConfig
from edgerec_gym.agents.reranker import torch_threads
from edgerec_gym.agents.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.atomic import make_folder
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import PARAMETERS, check_seed, find_start, model_sizes, new_record, write_record
from edgerec_gym.scenario import Scenario
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv

FIXED = ("agent", "based_on", "logs", "scenario", "users", "seed", "hyper", "network", "sizes")


def train(
    out: str | Path,
    *,
    agent: str,
    based_on: Sequence[str | Path] = (),
    logs: str | Path | None = None,
    scenario: str | Scenario = "default",
    users: str = "learned",
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train a generator, or join a sequence search, and write the run's folder.

    Args:
        out: the run's folder.
        agent: pointer-evaluator, pointer-users, pointer-distilled or sequence-search.
        based_on: folders of runs: an evaluator, and a generator to start from or to search with.
        logs: a log folder; pointer-users needs it for demonstrations only, a search not at all.
        scenario: where pointer-users and the search play; a shipped name, a folder, or a Scenario.
        users: who answers pointer-users, "learned" or "synthetic".
        seed: of initial parameters, draws, and the order of requests.
        resume: go on from the last checkpoint in `out`, if there is one.
        threads: torch threads.
        progress: called with (updates done, updates in all, text).
        **hyper: fields of :class:`~edgerec_gym.agents.policy_gradient.PolicyGradientConfig`, or of
            :class:`~edgerec_gym.agents.sequence_search.SearchConfig` for a search.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, runs or logs that are missing or do not fit, `out` not
            writable or in use by another run.
    """
    if agent not in AGENTS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(AGENTS)}")
    check_seed(seed)
    plays = agent in ("pointer-users", SEARCH)
    if agent == SEARCH and logs is not None:
        raise InputError(f"agent {agent!r} reads no logs; leave --logs out")
    if not plays and logs is None:
        raise InputError(f"agent {agent!r} learns from logs: give a log folder with --logs")
    settings = (SearchConfig if agent == SEARCH else PolicyGradientConfig).from_dict(hyper)
    parts = find_parts(agent, based_on)
    reader = None if logs is None else LogReader(logs)
    place = None
    if plays:
        place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
        config = place.config
    else:
        assert reader is not None
        config = reader.config
    run = make_folder(out)
    record = new_record(
        agent,
        "rerank",
        seed=seed,
        settings=settings,
        sizes=model_sizes(config),
        based_on=describe(parts),
        logs=None if reader is None else {"provenance": reader.provenance, "slots": reader.slots},
        scenario=None if place is None else place.name,
        users=users if agent == "pointer-users" else None,
        network=network_settings(parts).to_dict(),
        reward=[],
    )
    if place is not None and reader is not None and model_sizes(reader.config) != record["sizes"]:
        raise InputError(f"{reader.folder} was logged with other sizes than those of scenario {place.name!r}")
    start = find_start(run, record, resume, FIXED)
    evaluator, generator = make_evaluator(parts, config), make_generator(parts, config, seed)
    if isinstance(settings, SearchConfig):
        assert evaluator is not None
        found = generator if "generator" in parts else None
        search = SequenceSearch(config, evaluator, found, settings)
        checkpoint.save_parameters(run / PARAMETERS, search)
        write_record(run, record)
        return record
    env = None if place is None else _environment(place, users, settings)
    with torch_threads(threads):
        trainer = GeneratorTrainer(record, settings, generator, evaluator, reader, env)
        if start is not None:
            trainer.restore(start)
        elif GENERATOR in parts and agent != "pointer-distilled":
            generator.sharpen(settings.sharpness)
        while (done := trainer.record["steps"]) < settings.updates:
            trainer.update()
            done += 1
            if done % settings.checkpoint_every == 0 or done == settings.updates:
                checkpoint.save_checkpoint(run, generator, trainer.record, trainer.optimizer)
            if progress:
                progress(done, settings.updates, f"reward {np.mean(trainer.record['reward'][-20:]):.3f}")
    checkpoint.save_parameters(run / PARAMETERS, generator)
    write_record(run, trainer.record)
    return trainer.record


def _environment(scenario: Scenario, users: str, settings: PolicyGradientConfig) -> EdgeFeedSlateVectorEnv:
    rows = settings.batch_size * (settings.samples + settings.self_critical)
    return EdgeFeedSlateVectorEnv(rows, scenario=scenario, users=users, split="train", copy=False)
