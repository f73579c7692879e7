"""Latency and size of agents that take several decisions: whole sessions of `default`, 100 candidates.

    python -m benchmarks.device_decisions [--slots 150] [--sessions 8] [--quick]

Weights are random, sizes those of the agents' defaults: latency does not depend on what was learned, except
for how often a plan is made anew. A decision is all that a phone does at a slot: follow the events that are
new, and act. At most slots the whole agent goes on with its plan, so decisions with a new plan are told
apart; so is the order of the pool alone. Wall time stands beside the thread's processor time, since on a busy
machine it includes other processes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgerec_gym.agents.device.policy import DevicePolicy, Phone, load_policy
from edgerec_gym.agents.device.settings import ValueSettings
from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.load import EdgeRecConfig, make_network
from edgerec_gym.agents.edgerec.rules import Rules
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.export.whole import WholeAgent, WholeValues
from edgerec_gym.agents.insertion.esan import ESANConfig
from edgerec_gym.agents.insertion.train import build as build_esan
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.requests import train as requests
from edgerec_gym.agents.values.network import ValueConfig
from edgerec_gym.agents.values.policy import candidates_of
from edgerec_gym.agents.values.train import make_network as make_values
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.engines.engine import ENGINES
from edgerec_gym.evaluation.latency import measured_on
from edgerec_gym.files import folder_bytes, make_folder, write_json
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario

GOAL_DECISION, GOAL_BYTES = 15.0, 3_000_000  # p99 in ms; all files of a model
WARM_UP = 10  # slots that are not timed
IDENTIFIED = (True,) * 4


def sources(config: FeedConfig) -> dict[str, Any]:
    """Agents at their default sizes, every parameter moved by noise."""
    agent = make_network(build_esan(config, ESANConfig(), IDENTIFIED), EdgeRecConfig())
    values = make_values(config, ValueConfig())
    uplift = requests.build("uplift-x", config, requests.UpliftConfig())
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (agent, values, uplift):
            for parameter in network.eval().parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return {
        "edgerec": WholeAgent(agent, Rules()),
        "values-pg": WholeValues(values, uplift, ValueSettings(track="joint", margin=0.05)),
    }


def rerank(phone: Phone, one: Observation) -> None:
    """Order the pool alone, as a decision does."""
    policy: Any = phone.policy
    if isinstance(policy, EdgeRec):
        policy.judge.scores(one, np.zeros(1, np.int64))
    else:
        policy.values(one, candidates_of(one, policy.config.n_types))


def measure(
    agent: str, source: Any, engine: str, scenario: Scenario, slots: int, sessions: int
) -> list[dict[str, Any]]:
    """Play sessions on phones; rows for all decisions, for those with a new plan, and for the order alone."""
    env = make_feeds("joint", sessions, scenario=scenario, users="synthetic", split="eval")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "device"
        export_network(source, folder, find_agent(agent), scenario.name, scenario.config, engine=engine)
        size, policy = folder_bytes(folder), load_policy(folder, env)
    assert isinstance(policy, DevicePolicy)
    policy.reset(np.ones(sessions, np.bool_))
    observation, _ = env.reset(seed=list(range(sessions)))
    times: dict[str, list[tuple[float, float]]] = {"all": [], "with a new plan": [], "the order alone": []}
    actions, live = np.zeros(sessions, np.int64), np.ones(sessions, np.bool_)
    for slot in range(slots):
        for row in np.flatnonzero(live).tolist():
            one = {key: values[row : row + 1] for key, values in observation.items()}
            wall, own = time.perf_counter(), time.thread_time()
            actions[row] = policy.phones[row].act(one)[0]
            took = (time.perf_counter() - wall, time.thread_time() - own)
            wall, own = time.perf_counter(), time.thread_time()
            rerank(policy.phones[row], one)
            alone = (time.perf_counter() - wall, time.thread_time() - own)
            if slot >= WARM_UP:
                told = policy.explain(row)
                times["all"].append(took)
                times["the order alone"].append(alone)
                if told is not None and told.trigger is not None:
                    times["with a new plan"].append(took)
        observation, _, terminated, truncated, _ = env.step(actions)
        live &= ~(terminated | truncated)
    about = {"agent": agent, "engine": engine, "bytes": size}
    return [
        {**about, "decisions": name, **_quantiles(np.array(several) * 1e3)}
        for name, several in times.items()
        if several
    ]


def _quantiles(measured: np.ndarray) -> dict[str, float]:
    """Quantiles of wall and processor time (R, 2) in ms."""
    found: dict[str, float] = {"count": len(measured), "least": float(measured[:, 0].min())}
    for k, name in enumerate(("", "cpu_")):
        found |= {f"{name}p{q}": float(np.percentile(measured[:, k], q)) for q in (50, 95, 99)}
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=150)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="few slots; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scenario = Scenario.load("default")
    slots, sessions = (20, 2) if arguments.quick else (arguments.slots, arguments.sessions)
    table = Table("agent", "engine", "decisions", "number", "p50 ms", "p99 ms", "cpu p50", "cpu p99", "MB")
    rows = []
    for agent, source in sources(scenario.config).items():
        for engine in ENGINES:
            rows += measure(agent, source, engine, scenario, slots, sessions)
    for row in rows:
        shown = (f"{row[key]:.2f}" for key in ("p50", "p99", "cpu_p50", "cpu_p99"))
        told = (row["agent"], row["engine"], row["decisions"], str(row["count"]))
        table.add_row(*told, *shown, f"{row['bytes'] / 1e6:.2f}")
    Console(width=120).print(table)
    if arguments.quick:
        return
    about = {
        **measured_on("onnxruntime", "MNN", "torch", "numpy"),
        "scenario": scenario.name,
        "weights": "random, not trained",
        "goals": {"p99_ms": GOAL_DECISION, "bytes": GOAL_BYTES},
    }
    folder = make_folder(Path(__file__).parent / "results")
    write_json(folder / "device_decisions.json", {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
