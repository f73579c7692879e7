"""Do the engines play the same? Slots at which MNN plays what ONNX Runtime plays, with shipped runs.

    python -m benchmarks.device_parity [--sessions 1000] [--quick]

Each shipped run is exported for both engines. ONNX Runtime plays EdgeFeedSlate-v0 with synthetic users, and
at every list MNN is asked for its own, from the same events. A slot agrees if both lists hold the same card
there; padding is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgerec_gym.agents.export.export import export
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.insertion.values import pool_order
from edgerec_gym.bench.shipped import shipped_folder
from edgerec_gym.device.engines.engine import ENGINES
from edgerec_gym.evaluation.play import play
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.scenario import Scenario

WORLD, RUNS = "lite", ("crban-0", "pointer-0", "sequence-search-0")
REFERENCE, *OTHERS = ENGINES


class Compared:
    """Plans of one phone, compared with those of others that follow the same session.

    Attributes:
        same: slots with the same card, by engine.
        slots: slots compared.
        whole: lists that are the same, by engine.
        lists: lists compared.
    """

    name = "compared"

    def __init__(self, policies: dict[str, Policy], places: int) -> None:
        self.policies, self.places = policies, places
        self.same, self.whole = dict.fromkeys(OTHERS, 0), dict.fromkeys(OTHERS, 0)
        self.slots = self.lists = 0

    def reset(self, mask: np.ndarray) -> None:
        """Start new sessions on all phones."""
        for policy in self.policies.values():
            policy.reset(mask)

    def act(self, observation: Observation) -> Any:
        """Return the reference's plans, after comparing them."""
        plans = {name: policy.act(observation) for name, policy in self.policies.items()}
        lists = {
            name: pool_order(observation, plan["order"])[:, : self.places] for name, plan in plans.items()
        }
        present = observation["pool"].any(axis=2)
        there = np.take_along_axis(present, lists[REFERENCE], axis=1)
        self.slots += int(there.sum())
        self.lists += len(there)
        for name in OTHERS:
            same = (lists[name] == lists[REFERENCE]) | ~there
            self.same[name] += int((same & there).sum())
            self.whole[name] += int(same.all(axis=1).sum())
        return plans[REFERENCE]


def compare(run: str, sessions: int) -> list[dict[str, Any]]:
    """Play one run's exports; one row per engine."""
    scenario = Scenario.load(WORLD)
    options: dict[str, Any] = {"env_id": "EdgeFeedSlate-v0", "scenario": scenario, "users": "synthetic"}
    policies = {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in ENGINES:
            out = Path(folder) / engine
            export(shipped_folder("rerank", WORLD) / "runs" / run, out, scenario=scenario, engine=engine)
            policies[engine] = find_policy(str(out), **options)
    compared = Compared(policies, scenario.config.slate_size)
    play(compared, sessions=sessions, seed=0, num_envs=min(250, sessions), **options)
    return [
        {
            "run": run,
            "engine": name,
            "slots": compared.slots,
            "same_slots": compared.same[name],
            "share": compared.same[name] / compared.slots,
            "lists": compared.lists,
            "same_lists": compared.whole[name],
        }
        for name in OTHERS
    ]


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="few sessions; writes nothing")
    arguments = parser.parse_args()
    sessions = 20 if arguments.quick else arguments.sessions
    rows = [row for run in RUNS for row in compare(run, sessions)]
    table = Table("run", "engine", "slots", "same card", "same lists", title=f"against {REFERENCE}, {WORLD}")
    for row in rows:
        whole = f"{row['same_lists']:,} of {row['lists']:,}"
        table.add_row(row["run"], row["engine"], f"{row['slots']:,}", f"{row['share']:.4%}", whole)
    Console().print(table)
    if arguments.quick:
        return
    about = {"scenario": WORLD, "sessions": sessions, "reference": REFERENCE}
    versions = {name: version(name) for name in ("onnxruntime", "MNN", "numpy")}
    folder = make_folder(Path(__file__).parent / "results")
    write_json(folder / "device_parity.json", {"about": about | versions, "rows": rows})


if __name__ == "__main__":
    main()
