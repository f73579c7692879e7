"""The hidden ground truth: its phenomena, its calibration, and the room it leaves for skilful policies.

    python -m benchmarks.ground_truth [--sessions 10000] [--quick]

Prints the tables and writes benchmarks/results/ground_truth.json.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import edgerec_gym
from benchmarks.phenomena import PHENOMENA, effects
from edgerec_gym.agents.baselines import FixedInterval, FixedSlot, Keep
from edgerec_gym.agents.oracle import OraclePolicy
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.policy import Policy
from edgerec_gym.users import ground_truth

RESULTS = Path(__file__).parent / "results"
# For every track: keep, the same actions at fixed moments, and at the oracle's moments.
TRACKS: dict[str, list[Policy]] = {
    "EdgeFeedRerank-v0": [Keep(), OraclePolicy()],
    "EdgeFeedRequest-v0": [Keep(), FixedInterval(every=28), OraclePolicy()],
    "EdgeFeedMix-v0": [Keep(), FixedSlot("mix", every=6), OraclePolicy()],
    "EdgeFeed-v0": [Keep(), OraclePolicy()],
}
COLUMNS = ("value", "clicks", "click_rate", "exposures", "requests", "gain_over_keep")


def interval(metric: dict[str, float] | None) -> str:
    """Show a mean with its 95 % interval."""
    if metric is None:
        return ""
    return f"{metric['mean']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sessions")
    sessions = parser.parse_args().sessions // (10 if parser.parse_args().quick else 1)
    console = Console(width=160)

    measured = effects(sessions=min(sessions, 3000))
    measures = {p.name: p.measure for p in PHENOMENA} | {
        "day_drift": "cosine of one user's taste on two days"
    }
    table = Table("phenomenon", "measured", "on", "off", title="Phenomena, each alone in a plain world")
    for name, effect in measured.items():
        table.add_row(name, measures[name], f"{effect['on']:.3f}", f"{effect['off']:.3f}")
    console.print(table)

    rows: list[dict[str, Any]] = []
    world = ground_truth("default")
    for env_id, policies in TRACKS.items():
        rows += evaluate(policies, env_id=env_id, scenario=world, users=["synthetic"], sessions=sessions)
    table = Table("id", "policy", *COLUMNS, title=f"{sessions} sessions of the ground truth, default preset")
    for row in rows:
        table.add_row(row["env_id"], row["policy"], *(interval(row.get(column)) for column in COLUMNS))
    console.print(table)

    write_json(
        make_folder(RESULTS) / "ground_truth.json",
        {
            "versions": {"edgerec_gym": edgerec_gym.__version__, "numpy": np.__version__},
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "seed": 0,
            "phenomena": measured,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
