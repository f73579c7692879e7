"""How much of the attainable gap do agents close? One run for each agent and training seed.

    python -m benchmarks.attainable_share RUN ... --scenario SCENARIO [--id ID] [--sessions N] [--shift NAME]
        [--against AGENT] [--cache FOLDER]

Every policy plays the same sessions of the ground truth (split `eval`); without a shift, the runs and keep
also play learned users, for the exploitation gap. Intervals of 95 % are over training seeds and sessions.
With --against AGENT, every run is also compared with the run of that agent in the same place. Sessions that
were played before are read from --cache.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgerec_gym.agents.baselines import baselines_of
from edgerec_gym.bench.rows import difference, exploitation_gap, gap_closed
from edgerec_gym.bench.setting import make_policy, reference_entry
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.config import SHIFTS
from edgerec_gym.evaluation.cache import Entry, Place, played
from edgerec_gym.evaluation.intervals import Interval, interval_text, seeds_interval
from edgerec_gym.files import write_json
from edgerec_gym.registration import track_of
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario

KEEP, ORACLE, ATTAINABLE = "keep", "oracle", "attainable"
HEURISTICS = ("device-greedy", "item-greedy", "fixed-slot", "fixed-interval")
FORMATS = {
    "value": ".3f", "gain_over_keep": "+.3f", "gap_closed": ".1%", "attainable_gap_closed": ".1%",
    "exploitation_gap": "+.1%",
}  # fmt: skip


def heuristics_of(env_id: str, scenario: Scenario) -> list[str]:
    """Return the heuristics that can play the environment in the scenario."""
    known = baselines_of(track_of(env_id), scenario.config.item_columns)
    return [name for name in known if name in HEURISTICS]


def entries_of(policy: str, runs: list[Path]) -> list[Entry]:
    """Return the entries of a policy: one for each run, or one of a policy that is not trained."""
    if policy == ATTAINABLE:
        return [reference_entry(policy)]
    if not runs:
        return [Entry(policy, make_policy, {"name": policy})]
    entries = []
    for seed, run in enumerate(runs):
        parts = sorted(file.parent for file in run.rglob("policy.json") if "checkpoints" not in file.parts)
        entries.append(Entry(policy, make_policy, {"name": str(run)}, tuple(parts), seed))
    return entries


def measure(
    runs: list[Path],
    scenario: str,
    env_id: str,
    sessions: int,
    shift: str | None,
    seed: int,
    cache: Path,
    against: str | None = None,
    learned_sessions: int | None = None,
    workers: int = 1,
) -> dict[str, dict[str, Interval]]:
    """Play everything and return the figures of every policy; the runs of an agent are one policy."""
    heuristics = heuristics_of(env_id, Scenario.load(scenario))
    agents: dict[str, list[Path]] = {}
    for run in runs:
        agents.setdefault(read_run(run).agent, []).append(run)
    entries = {name: entries_of(name, []) for name in (KEEP, *heuristics)}
    entries |= {agent: entries_of(agent, own) for agent, own in agents.items()}
    entries |= {name: entries_of(name, []) for name in (ATTAINABLE, ORACLE)}

    def values(policies: list[str], place: Place) -> dict[str, np.ndarray]:
        """Value of every session by policy, (seeds, sessions)."""
        wanted = [entry for policy in policies for entry in entries[policy]]
        with progress_bar(f"policies on {place.users} users") as progress:
            told = played(wanted, place, cache, workers=workers, progress=progress)
        return {
            policy: np.stack([told[entry.policy, entry.seed]["value"] for entry in entries[policy]])
            for policy in policies
        }

    fewer = min(sessions, learned_sessions or sessions)
    place = Place(env_id, scenario, sessions=sessions, seed=seed, shift=shift)
    true = values(list(entries), place)
    keep, oracle, ceiling = true[KEEP], true[ORACLE], true[ATTAINABLE]
    figures: dict[str, dict[str, Interval]] = {}
    for policy, own in true.items():
        figures[policy] = {"value": seeds_interval([own], lambda m: m[..., 0])}
        if policy != KEEP:
            figures[policy]["gain_over_keep"] = difference(own, keep)
            figures[policy]["gap_closed"] = gap_closed(own, keep, oracle)
            figures[policy]["attainable_gap_closed"] = gap_closed(own, keep, ceiling)
    learned = {}
    if shift is None:
        learned = values([KEEP, *agents], replace(place, users="learned", sessions=fewer))
    for agent in agents:
        if learned:
            both = true[agent][:, :fewer], learned[KEEP], keep[:, :fewer]
            figures[agent]["exploitation_gap"] = exploitation_gap(learned[agent], *both)
        for policy in heuristics:
            figures[agent][f"gain_over_{policy}"] = difference(true[agent], true[policy])
        if against is not None and agent != against:
            for k, (own, other) in enumerate(zip(true[agent], true[against], strict=True)):
                figures[agent][f"gain_over_{against}, run {k}"] = difference(own[None], other[None])
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attainable_share", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--id", default="EdgeFeedRerank-v0")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--against", help="agent to compare with, run by run")
    parser.add_argument("--learned-sessions", type=int, help="sessions of learned users; default: as many")
    parser.add_argument("--shift", choices=SHIFTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/attainable_share"), help="sessions played")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(
        arguments.runs,
        arguments.scenario,
        arguments.id,
        arguments.sessions,
        arguments.shift,
        arguments.seed,
        arguments.cache,
        arguments.against,
        arguments.learned_sessions,
        arguments.workers,
    )
    table = Table("policy", *FORMATS, title=f"{arguments.scenario}, {arguments.id}, {arguments.shift or ''}")
    for policy, told in figures.items():
        table.add_row(
            policy,
            *(interval_text(told[name], form) if name in told else "" for name, form in FORMATS.items()),
        )
    Console(width=150).print(table)
    for policy, told in figures.items():
        for name in [name for name in told if name not in FORMATS]:
            print(f"{policy}: {name} {interval_text(told[name], '+.3f')}")
    if arguments.out is not None:
        about: dict[str, Any] = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
        write_json(arguments.out, {"about": about, "figures": figures})


if __name__ == "__main__":
    main()
