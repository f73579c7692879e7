"""How much does a preset, or a variant of it, leave to learn?

    python -m benchmarks.preset_room --scenario lite [--id ID] [--set satiation=1] [--cloud interest_decay=.9]

Collects logs of the variant, learns their item table, and plays its synthetic users (split `train`, so that
the sessions that judge agents stay unseen): keep, the heuristics, the attainable ceiling and the oracle. A
preset is a good benchmark when the ceiling of `EdgeFeedRerank-v0` is at least 40 % above keep and no
heuristic holds more than two thirds of the gap from keep to the ceiling. Results are added to the file.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.attainable_share import heuristics_of
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.bench.rows import difference, gap_closed
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.commands.policies import assignments
from edgerec_gym.config import PRESETS, preset
from edgerec_gym.evaluation.intervals import interval_text, seeds_interval
from edgerec_gym.evaluation.play import play
from edgerec_gym.files import write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.item_statistics import learn_items
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.synthetic import SyntheticUsers

RESULTS = Path(__file__).parent / "results" / "preset_room.json"


def variant(
    name: str, users: dict[str, Any], cloud: dict[str, Any], logs: Path, n: int, seed: int
) -> Scenario:
    """Return a preset with other synthetic users, and the item table that its own logs tell."""
    feed, synthetic = preset(name)
    synthetic = synthetic.replace(**users)
    with progress_bar("collect") as progress:
        collect(logs, preset_name=name, sessions=n, seed=seed, synthetic=users, progress=progress)
    table = learn_items(LogReader(logs), folds=0)
    config = feed.replace(item_columns=table.names, cloud=feed.cloud.replace(**cloud))
    catalog = SyntheticUsers(synthetic, config).world.catalog.with_table(table.columns)
    return Scenario(name=name, config=config, catalog=catalog, synthetic=synthetic)


def measure(scenario: Scenario, env_id: str, sessions: int, seed: int) -> dict[str, dict[str, Any]]:
    """Play keep, heuristics, ceiling and oracle, and return each one's figures."""
    told = {}
    for name in ("keep", *heuristics_of(env_id, scenario), "attainable", "oracle"):
        policy = find_policy(name, env_id, scenario, "synthetic", seed)
        with progress_bar(name) as progress:
            told[name] = play(
                policy,
                env_id=env_id,
                scenario=scenario,
                users="synthetic",
                sessions=sessions,
                seed=seed,
                split="train",
                progress=partial(progress, text=""),
            )
    keep, ceiling, oracle = (told[name]["value"] for name in ("keep", "attainable", "oracle"))
    found: dict[str, dict[str, Any]] = {}
    for name, metrics in told.items():
        own = metrics["value"]
        found[name] = {"value": seeds_interval([own[None]], lambda m: m[..., 0])}
        if name != "keep":
            found[name] |= {
                "gain_over_keep": difference(own[None], keep[None]),
                "relative_gain": float(own.mean() / keep.mean() - 1),
                "gap_closed": gap_closed(own[None], keep[None], oracle[None]),
                "attainable_gap_closed": gap_closed(own[None], keep[None], ceiling[None]),
            }
    return found


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    """Print the variant's table."""
    forms = {"value": ".2f", "gain_over_keep": "+.2f", "gap_closed": ".1%", "attainable_gap_closed": ".1%"}
    table = Table("policy", "over keep", *forms, title=title)
    for name, row in found.items():
        cells = [interval_text(row[metric], form) if metric in row else "" for metric, form in forms.items()]
        table.add_row(name, f"{row.get('relative_gain', 0):+.0%}", *cells)
    Console(width=150).print(table)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preset_room", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--scenario", choices=PRESETS, required=True)
    parser.add_argument("--id", default="EdgeFeedRerank-v0")
    parser.add_argument(
        "--set", action="append", default=[], help="a field of SyntheticUserConfig, NAME=NUMBER"
    )
    parser.add_argument("--cloud", action="append", default=[], help="a field of CloudConfig, NAME=NUMBER")
    parser.add_argument("--logs", type=Path, default=Path("runs/preset-room"), help="folder of the logs")
    parser.add_argument("--log-sessions", type=int, default=24_000)
    parser.add_argument("--sessions", type=int, default=1000, help="played by each policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    title = " ".join([arguments.scenario, *arguments.set, *arguments.cloud])
    logs = arguments.logs / title.replace(" ", "-")
    title += f", {arguments.id}"
    users, cloud = assignments(arguments.set), assignments(arguments.cloud)
    world = variant(arguments.scenario, users, cloud, logs, arguments.log_sessions, arguments.seed)
    found = measure(world, arguments.id, arguments.sessions, arguments.seed)
    show(title, found)
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    write_json(arguments.out, {**known, title: {"sessions": arguments.sessions, "policies": found}})


if __name__ == "__main__":
    main()
