"""Latency and size of exported re-rankers in each engine: one thread, batch 1, the paper's sizes.

    python -m benchmarks.device_latency [--calls 2000] [--moments 64] [--quick]

Moments are page arrivals of the default scenario about 50 slots into sessions, with 100 candidates. The
events of their histories are repeated before re-ranking is timed, so that it reads nearly all the codes that
a phone keeps (75; `codes`: mean of a sequence). A re-rank checks the observation and returns a list (CRBAN:
sorts the pool by its scores). A whole decision adds an event to each sequence first, as when a card has been
answered. The engines take turns call by call, so that other processes disturb them alike; torch encodes the
whole history for the same list. Weights are random, since latency does not depend on them, except for the
search's early stop: it is switched off, so its times are the longest. Wall time is shown with the process's
own processor time, since on a busy machine it includes other processes. Goals are those of the project.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgerec_gym.agents.data.exposed_lists import OUTCOMES
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.lists import evaluator_training
from edgerec_gym.agents.lists.evaluator import EvaluatorConfig
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.crban import CRBAN
from edgerec_gym.agents.rerank.reranker import ListScorer, Reranker, RerankerConfig
from edgerec_gym.agents.rerank.train import build
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.description import SEQUENCES
from edgerec_gym.device.engines.engine import ENGINES
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.evaluation.latency import measure, measured_on
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import CONTEXT

PLACES = 50  # K
GOALS = {"crban": 5.0, "pointer": 15.0, "sequence-search": 15.0}  # p99 in ms of a re-rank
GOAL_DECISION = 15.0
GOAL_BYTES = 3_000_000
PAGE_AGE, SLOT = CONTEXT.index("page_age"), CONTEXT.index("slot")


def page_arrivals(scenario: Scenario, wanted: int) -> list[Observation]:
    """Observations at second pages with their histories, one per session."""
    env = make_feeds("EdgeFeedRerank-v0", 256, scenario=scenario, users="synthetic", split="eval")
    observation, _ = env.reset(seed=0)
    found: list[Observation] = []
    draws = np.random.default_rng(0)
    while len(found) < wanted:
        legal = observation["action_mask"] > 0
        action = np.where(legal, draws.random(legal.shape), -1).argmax(1)
        observation, *_ = env.step(action)
        context = observation["context"]
        for row in np.flatnonzero((context[:, PAGE_AGE] == 0) & (context[:, SLOT] > 0)):
            found.append({key: values[row].copy() for key, values in observation.items()})
    return found[:wanted]


def networks(config: FeedConfig) -> dict[str, Reranker]:
    """The re-rankers at their default sizes with all parts, every parameter perturbed by noise."""
    generator = build(PointerNet, config, RerankerConfig(match=1))
    assert isinstance(generator, PointerNet)
    evaluator = evaluator_training.build(config, EvaluatorConfig(match=1), (True,) * len(OUTCOMES))
    draws = torch.Generator().manual_seed(0)
    crban = build(CRBAN, config, RerankerConfig(match=1))
    with torch.no_grad():
        for network in (crban, generator, evaluator):
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    search = SequenceSearch(config, evaluator, generator, SearchConfig(stability=1.0))
    return {"crban": crban, "pointer": generator, "sequence-search": search}


def torch_call(network: Reranker, observation: Observation) -> Callable[[], Any]:
    """The same decision with the torch module, which encodes the whole history every time."""
    tensors = to_tensors({key: values[None] for key, values in observation.items()})

    def call() -> Any:
        with torch.inference_mode():
            if isinstance(network, ListScorer):
                return network.score(tensors).topk(PLACES)
            return network.emit(tensors, PLACES)

    return call


def exports(name: str, network: Reranker, scenario: Scenario) -> dict[str, DeviceModel]:
    """Export a re-ranker for each engine."""
    found = {}
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            out, config = Path(folder) / "device", scenario.config
            export_network(
                network.eval(), out, find_agent(name), scenario.name, config, PLACES, engine=engine
            )
            found[engine] = load(out)
    return found


def rows_of(
    name: str, network: Reranker, scenario: Scenario, moments: list[Observation], count: int
) -> list[dict[str, Any]]:
    """Measure one re-ranker: events, re-rankings and whole decisions in each engine, and torch's lists."""
    models = exports(name, network, scenario)
    calls: dict[str, dict[str, list[Callable[[], Any]]]] = {
        kind: {engine: [] for engine in models}
        for kind in (*(f"event of {sequence}" for sequence in SEQUENCES), "re-rank", "whole decision")
    }
    about: dict[str, dict[str, Any]] = {}
    sessions = []
    for engine, model in models.items():
        for moment in moments:
            session = DeviceSession(model)
            sessions.append(session)
            last = {}
            for sequence in SEQUENCES:
                for row in moment[sequence][moment[sequence].any(axis=1)]:
                    session.append(sequence, row)
                    calls[f"event of {sequence}"][engine].append(partial(session.append, sequence, row))
                    last[sequence] = row
            calls["re-rank"][engine].append(partial(session.rerank, moment))
            calls["whole decision"][engine].append(partial(decide, session, moment, last))
        parts = session.kept.values()
        kept = sum(part.hidden.nbytes + part.keys.nbytes + part.values.nbytes for part in parts)
        about[engine] = {"bytes": model.bytes, "kept_bytes": kept}
    rows = []
    # Events come first, and many of them, so that re-rankings read all the codes that a phone keeps.
    for kind, by_engine in calls.items():
        for engine, times in measure(by_engine, count).items():
            row = {"model": name, "call": kind, "engine": engine, **times}
            if kind in ("re-rank", "whole decision"):
                goal = GOALS[name] if kind == "re-rank" else GOAL_DECISION
                row |= {"goal_p99": goal, **about[engine]}
            rows.append(row)
    codes = float(np.mean([len(part.read()["keys"]) for s in sessions for part in s.kept.values()]))
    reference = {"torch": [torch_call(network, moment) for moment in moments]}
    [in_torch] = measure(reference, max(20, count // 20)).values()
    rows.append({"model": name, "call": "re-rank", "engine": "torch", **in_torch, "codes": codes})
    return rows


def decide(session: DeviceSession, moment: Observation, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Take an event of each sequence, then re-rank."""
    for sequence, row in rows.items():
        session.append(sequence, row)
    return session.rerank(moment)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    title = f"milliseconds, one thread, batch 1, {PLACES} of 100 candidates"
    quantiles = ("p50", "p95", "p99", "least", "cpu_p50", "cpu_p99")
    heads = (key.replace("_", " ") for key in quantiles)
    table = Table("model", "call", "engine", *heads, "goal p99", "MB", title=title)
    for row in rows:
        times = (f"{row[key]:.3f}" for key in quantiles)
        size = f"{row['bytes'] / 1e6:.3f}" if "bytes" in row else ""
        goal = f"{row['goal_p99']:.0f}" if "goal_p99" in row else ""
        table.add_row(row["model"], row["call"], row["engine"], *times, goal, size)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000, help="counted calls of each kind")
    parser.add_argument("--moments", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="few calls; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count, wanted = (100, 8) if arguments.quick else (arguments.calls, arguments.moments)
    scenario = Scenario.load("default")
    moments = page_arrivals(scenario, wanted)
    rows: list[dict[str, Any]] = []
    for name, network in networks(scenario.config).items():
        rows += rows_of(name, network, scenario, moments, count)
    show(rows)
    if arguments.quick:
        return
    about = {
        **measured_on("onnxruntime", "MNN", "torch", "numpy"),
        "scenario": scenario.name,
        "weights": "random, not trained; the search's early stop is off",
        "moments": len(moments),
        "candidates": float(np.mean([moment["pool"].any(axis=1).sum() for moment in moments])),
        **{
            name: float(np.mean([moment[name].any(axis=1).sum() for moment in moments])) for name in SEQUENCES
        },
        "calls": count,
        "goal_bytes": GOAL_BYTES,
    }
    folder = make_folder(Path(__file__).parent / "results")
    write_json(folder / "device_latency.json", {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
