"""Re-rankers, generators and the sequence search on the ground truth, with common random numbers.

    python -m benchmarks.rerank_online [--scenario lite] [--logs FOLDER] [--id EdgeFeedRerank-v0] [--quick]

Everything is trained on one log, or on the users learned from such logs, and scored on synthetic users that
training never saw: clicks, purchases, value, gain over keep (95 %, paired by session, a row a training seed),
how different the cards on screen are (1 - cosine of neighbours), and milliseconds a decision of one session,
in batches. A run that was interrupted resumes; --quick trains a little with one seed, to see every part.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.agents.base import Observation, Policy
from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.diversity import DeterminantalPointProcess, MaximalMarginalRelevance
from edgerec_gym.agents.lookup import find_policy
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.reranker import RerankPolicy
from edgerec_gym.agents.supervised import load_reranker
from edgerec_gym.atomic import make_folder, read_json, write_json
from edgerec_gym.evaluate import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.metrics import mean_interval
from edgerec_gym.scenario import Scenario

RERANKERS = ("dnn", "dlcm", "prm", "setrank", "seq2slate", "crban", "pointer")
DIVERSIFIERS = {"mmr on dnn": MaximalMarginalRelevance, "dpp on dnn": DeterminantalPointProcess}
GENERATORS: dict[str, tuple[str, ...]] = {  # agent -> the runs that it is based on
    "pointer-evaluator": ("evaluator", "pointer"),
    "pointer-users": ("pointer",),
    "pointer-distilled": ("evaluator", "pointer"),
    "sequence-search": ("evaluator", "pointer-evaluator"),
}
FIGURES = ("value", "clicks", "purchases")
QUICK: dict[str, dict[str, Any]] = {
    "pointer-ppo": {},
    "sequence-search": {},
    **{agent: {"epochs": 1} for agent in (*RERANKERS, "evaluator")},
    **{agent: {"updates": 5, "batch_size": 16} for agent in GENERATORS if agent.startswith("pointer")},
}


class Watched:
    """A policy, its time, and how different the cards are that it has put on screen."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, policy.name
        self.seconds, self.decisions = 0.0, 0
        self.difference: list[np.ndarray] = []

    def reset(self, mask: np.ndarray) -> None:
        self.policy.reset(mask)
        self.slot = np.full(len(mask), -1.0)

    def act(self, observation: Observation) -> Any:
        slot = observation["context"][:, 0]
        live, self.slot = slot > self.slot, slot.copy()  # sessions that have ended stand still
        d = observation["pool"].shape[2] - 4
        items = observation["screen"][live, :, :d]
        there = (items != 0).any(axis=2).all(axis=1)
        self.difference.append(1 - (items[there, 1:] * items[there, :-1]).sum(2).mean(1))
        started = time.perf_counter()
        action = self.policy.act(observation)
        self.seconds += time.perf_counter() - started
        self.decisions += len(slot)
        return action


def train_all(out: Path, logs: Path, scenario: Scenario, seed: int, steps: int, quick: bool) -> None:
    """Train what is missing for one seed."""
    for agent in (*RERANKERS, "evaluator", *GENERATORS, "pointer-ppo"):
        reads_logs = agent not in ("pointer-ppo", "sequence-search", "pointer-users")
        train_agent(
            agent,
            out / f"{agent}-{seed}",
            logs=logs if reads_logs else None,
            based_on=[out / f"{name}-{seed}" for name in GENERATORS.get(agent, ())],
            seed=seed,
            resume=True,
            threads=1,
            hyper=QUICK[agent] if quick else {},
            env_id="EdgeFeedRerank-v0",
            scenario=scenario,
            steps=steps,
        )
        print(f"{agent}, seed {seed}: trained", flush=True)


def policies(out: Path, env_id: str, scenario: Scenario, seeds: int) -> dict[str, Callable[[], Policy]]:
    """How to make every policy that plays `env_id`, by name and seed."""
    k = scenario.config.slate_size
    made: dict[str, Callable[[], Policy]] = {
        name: lambda name=name: make_policy(name, env_id, 0, k)  # type: ignore[misc]
        for name in ("keep", "greedy", "device-greedy")
    }
    for seed in range(seeds):
        for agent in (*RERANKERS, *GENERATORS, "pointer-ppo"):
            if agent == "pointer-ppo" and env_id != "EdgeFeedRerank-v0":
                continue
            folder = str(out / f"{agent}-{seed}")
            made[f"{agent}, seed {seed}"] = lambda folder=folder: find_policy(  # type: ignore[misc]
                folder, env_id, scenario, "synthetic"
            )
        if env_id == "EdgeFeedRerank-v0":
            dnn = RerankPolicy("dnn", load_reranker(out / f"dnn-{seed}", scenario.config))
            for name, kind in DIVERSIFIERS.items():
                made[f"{name}, seed {seed}"] = lambda kind=kind, dnn=dnn: kind(scorer=dnn.scores)  # type: ignore[misc]
    return made


def score(policy: Policy, env_id: str, scenario: Scenario, sessions: int) -> dict[str, Any]:
    """Play, and return the figures of every session."""
    watched = Watched(policy)
    found = play(watched, env_id=env_id, scenario=scenario, users="synthetic", sessions=sessions, seed=0)
    return {
        **{name: found[name].tolist() for name in FIGURES},
        "difference": float(np.concatenate(watched.difference).mean()),
        "milliseconds": 1000 * watched.seconds / watched.decisions,
    }


def summary(played: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means and paired gains."""
    keep = np.array(played["keep"]["value"])
    return {
        name: {figure: mean_interval(np.array(row[figure])) for figure in FIGURES}
        | {"gain_over_keep": mean_interval(np.array(row["value"]) - keep)}
        | {key: row[key] for key in ("difference", "milliseconds")}
        for name, row in played.items()
    }


def show(results: dict[str, dict[str, Any]], title: str) -> None:
    """Print the table."""
    table = Table("policy", "clicks", "purchases", "value", "over keep", "difference", "ms", title=title)
    for name, row in results.items():
        gain = row["gain_over_keep"]
        table.add_row(
            name,
            *(f"{row[figure]['mean']:.3f}" for figure in ("clicks", "purchases", "value")),
            f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]",
            f"{row['difference']:.3f}",
            f"{row['milliseconds']:.2f}",
        )
    Console(width=140).print(table)


def main() -> None:
    """Collect, train, play, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="lite", choices=("lite", "default"))
    parser.add_argument("--logs", type=Path, help="a log folder of the scenario, instead of collecting one")
    parser.add_argument(
        "--id", default="EdgeFeedRerank-v0", choices=("EdgeFeedRerank-v0", "EdgeFeedSlate-v0")
    )
    parser.add_argument("--out", type=Path, help="folder of the runs; default runs/rerank-online-SCENARIO")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=4000, help="played by each policy")
    parser.add_argument("--steps", type=int, default=150_000, help="slots that pointer-ppo plays")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick, scenario = arguments.quick, Scenario.load(arguments.scenario)
    seeds, sessions = (1, 60) if quick else (arguments.seeds, arguments.sessions)
    out = arguments.out or Path(f"runs/rerank-online-{arguments.scenario}{'-quick' if quick else ''}")
    out, logs = make_folder(out), arguments.logs
    if logs is None:
        logs = out / "logs"
        collect(logs, preset_name=arguments.scenario, sessions=200 if quick else 3000)
    for seed in range(seeds):
        train_all(out, logs, scenario, seed, 4096 if quick else arguments.steps, quick)
    scored = make_folder(out / "scored")
    played: dict[str, dict[str, Any]] = {}
    for name, make in policies(out, arguments.id, scenario, seeds).items():
        file = scored / f"{arguments.id}-{sessions}-{name.replace(', ', '-').replace(' ', '-')}.json"
        if not file.exists():
            write_json(file, score(make(), arguments.id, scenario, sessions))
        played[name] = read_json(file)
        print(f"{name}: played", flush=True)
    results = summary(played)
    show(results, f"{arguments.id}, {scenario.name}, ground truth, {sessions} sessions")
    about = {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "scenario": scenario.name,
        "id": arguments.id,
        "sessions": sessions,
        "seeds": seeds,
    }
    target = out if quick else make_folder(Path(__file__).parent / "results")
    write_json(target / "rerank_online.json", {"about": about, "results": results})


if __name__ == "__main__":
    main()
