"""What does each column of the item table bring? Logs of a preset, their table, and the ground truth.

    python -m benchmarks.item_table [--scenario lite ...] [--logs FOLDER] [--sessions N] [--seed N]

First, how much of the items' hidden attractiveness and quality the shipped scalars explain, and how much with
the columns: R^2 of linear regressions over the items, weighted by exposures. Then what the lifts bring to a
re-ranker: device-greedy with each of them added in log-odds, on the ground truth (split `eval`, common random
numbers, 95 % intervals). Weights are those that the units suggest; nothing is tuned.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgerec_gym.agents.baselines import DeviceGreedy, ItemGreedy, Keep
from edgerec_gym.agents.oracle import OraclePolicy
from edgerec_gym.cloud.item_table import COUNT_SCALE, LIFT_SCALE, ItemTable
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.evaluation.intervals import interval_text
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.files import write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.item_statistics import learn_items
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.scenario import SHIPPED, Scenario
from edgerec_gym.spaces import N_SCALARS
from edgerec_gym.users.synthetic import SyntheticUsers

ENV_ID = "EdgeFeedRerank-v0"
RESULTS = Path(__file__).parent / "results" / "item_table.json"
CO_CLICKS = 8
FEW = 10  # exposures; items with fewer are cold


class WithColumns(DeviceGreedy):
    """Device-greedy plus some columns of the item table, each with a weight."""

    def __init__(self, name: str, weights: dict[str, float], columns: tuple[str, ...]) -> None:
        super().__init__(item_columns=columns)
        self.name = name
        self._weights = {columns.index(column): weight for column, weight in weights.items()}

    def scores(self, observation: Observation) -> np.ndarray:
        """Return device-greedy's scores plus the weighted columns, (B, N)."""
        first = observation["pool"].shape[2] - len(self.item_columns)
        assert first > N_SCALARS
        return super().scores(observation) + sum(
            weight * LIFT_SCALE * observation["pool"][:, :, first + at]
            for at, weight in self._weights.items()
        )


def explained(columns: list[np.ndarray], hidden: np.ndarray, weight: np.ndarray) -> float:
    """R^2 of the weighted linear regression of what is hidden (n,) on columns (n,)."""
    root = np.sqrt(weight / weight.sum())
    told = np.column_stack([np.ones(len(hidden)), *columns]) * root[:, None]
    left = hidden * root - told @ np.linalg.lstsq(told, hidden * root, rcond=None)[0]
    mean = (weight * hidden).sum() / weight.sum()
    return 1 - float((left**2).sum() / (weight / weight.sum() * (hidden - mean) ** 2).sum())


def knowledge(reader: LogReader, table: ItemTable) -> dict[str, Any]:
    """What the columns tell of the items' hidden traits."""
    scenario = Scenario.load(str(reader.provenance["preset"]))
    assert scenario.synthetic is not None
    world = SyntheticUsers(scenario.synthetic, scenario.config).world
    shipped = [
        *world.catalog.scalars.T,
        np.log(world.catalog.scalars[:, 2] / (1 - world.catalog.scalars[:, 2])),
    ]
    column = dict(zip(table.names, table.columns.T.astype(np.float64), strict=True))
    exposures = np.expm1(column["exposures"] * COUNT_SCALE)
    lifts = [name for name in column if name.endswith("_lift")]
    sets: dict[str, list[str]] = {
        "shipped": [],
        **{f"+ {name}": [name] for name in lifts},
        "+ all lifts": lifts,
    }
    told: dict[str, Any] = {
        trait: {
            label: explained([*shipped, *(column[name] for name in names)], getattr(world, trait), exposures)
            for label, names in sets.items()
        }
        for trait in ("attractiveness", "quality")
    }
    vectors = [values for name, values in column.items() if name.startswith("co_click")]
    embedding = list(world.catalog.embeddings.T)
    for label, more in (("shipped", []), ("+ co-clicks", vectors)):
        parts = [explained([*embedding, *more], factor, exposures) for factor in world.factors.T]
        told.setdefault("factors", {})[label] = float(np.mean(parts))
    told["items"], told["cold"] = len(exposures), float((exposures < FEW).mean())
    return told


def policies(columns: tuple[str, ...]) -> list[Policy]:
    """Keep, device-greedy without and with columns, and the oracle."""
    made: list[Policy] = [Keep(), DeviceGreedy(item_columns=columns)]
    for label, weights in (
        ("+ click_lift", {"click_lift": 1.0}),
        ("+ look_lift", {"look_lift": 1.0}),
        ("+ satisfaction_lift", {"satisfaction_lift": 0.1}),
    ):
        made.append(WithColumns(label, weights, columns))
    return [*made, ItemGreedy(columns), OraclePolicy()]


def study(
    name: str, folder: Path, sessions: int, seed: int, log_sessions: int | None = None
) -> dict[str, Any]:
    """Collect, learn, and play."""
    scenario = Scenario.load(name)
    n = log_sessions or scenario.provenance["logs"]["sessions"]
    with progress_bar(f"{name}: collect") as progress:
        collect(folder, preset_name=name, sessions=n, seed=seed, progress=progress)
    reader = LogReader(folder)
    table = learn_items(reader, folds=0, co_click_size=CO_CLICKS)
    n_own = len(table.names) - CO_CLICKS
    world = replace(
        scenario,
        config=scenario.config.replace(item_columns=table.names[:n_own]),
        catalog=scenario.catalog.with_table(table.columns[:, :n_own]),
        path=None,
    )
    with progress_bar(f"{name}: play") as progress:

        def shown(label: str, done: int, total: int) -> None:
            progress(done, total, label)

        results = evaluate(
            policies(table.names[:n_own]),
            env_id=ENV_ID,
            scenario=world,
            users=["synthetic"],
            sessions=sessions,
            seed=seed,
            progress=shown,
        )
    kept = ("value", "gain_over_keep", "gap_closed")
    rows = {row["policy"]: {metric: row[metric] for metric in kept if metric in row} for row in results}
    return {"log_sessions": n, "sessions": sessions, "knowledge": knowledge(reader, table), "policies": rows}


def show(name: str, found: dict[str, Any]) -> None:
    """Print both tables."""
    console, told = Console(), found["knowledge"]
    labels = [label for label in told["attractiveness"]]
    table = Table("R^2, items weighted by exposures", *labels, title=f"{name}: what is known of items")
    for trait in ("attractiveness", "quality"):
        table.add_row(trait, *(f"{told[trait][label]:.2f}" for label in labels))
    console.print(table)
    print(f"factors: {told['factors']['shipped']:.3f}, with co-clicks {told['factors']['+ co-clicks']:.3f}")
    print(f"items with fewer than {FEW} exposures: {told['cold']:.0%} of {told['items']:,}")
    table = Table("policy", "gain over keep", "share of keep -> oracle", title=f"{name}: {ENV_ID}")
    for policy, row in found["policies"].items():
        gain, closed = row.get("gain_over_keep"), row.get("gap_closed")
        cells = (
            "" if value is None else interval_text(value, form)
            for value, form in ((gain, "+.3f"), (closed, ".1%"))
        )
        table.add_row(policy, *cells)
    console.print(table)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.item_table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--scenario", action="append", choices=SHIPPED, help="repeatable; default: all")
    parser.add_argument("--logs", type=Path, default=Path("runs/item-table"), help="folder of the logs")
    parser.add_argument("--sessions", type=int, default=10_000, help="played by each policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name in arguments.scenario or SHIPPED:
        found[name] = study(name, arguments.logs / name, arguments.sessions, arguments.seed)
        show(name, found[name])
    write_json(arguments.out, found)


if __name__ == "__main__":
    main()
