"""Which update of a list generator is best: REINFORCE, GoalRank, Rerank-DPO, or NLGR's credit?

    python -m benchmarks.list_updates --scenario SCENARIO --logs LOGS --work FOLDER [--sessions N]
        [--seed 0 1 2] [--updates reinforce goalrank dpo nlgr] [--out FILE]

For every training seed, a generator learns from clicks (the warm start), and an evaluator from the logged
lists. Every update then trains the warm start on that evaluator, with as many lists per moment (a group) and
as many moments as the others. For NLGR, the evaluator also judges the neighbours of these lists. The warm
starts and the results play the same sessions of the ground truth (split `eval`). Intervals of 95 % are over
training seeds and sessions, those of one seed over sessions. An interrupted run resumes: finished trainings
and plays in FOLDER are read back.
"""

from __future__ import annotations

import argparse
import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.lists.list_updates import N_RANKERS
from edgerec_gym.agents.lists.policy_gradient import UPDATES
from edgerec_gym.agents.registry import find_agent, train_agent
from edgerec_gym.bench.rerank import ENV_ID, EVALUATOR, FULL, POINTER
from edgerec_gym.bench.rows import difference, gap_closed, mean
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import interval_text, mean_interval
from edgerec_gym.evaluation.play import play
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import is_finished, read_run
from edgerec_gym.scenario import Scenario

KEEP, ORACLE, START = "keep", "oracle", "warm start"
TUNED = "pointer-evaluator"
GROUP = 16  # lists that an update learns from at each moment
ENDS = 10  # updates at either end of a run over which the evaluator's values are averaged
BRIEFLY: dict[str, dict[str, Any]] = {
    POINTER: {"epochs": 1, "hidden": 8},
    EVALUATOR: {"epochs": 1, "hidden": 8},
    TUNED: {"updates": 3, "batch_size": 8},
}
COLUMNS = {"value": ".3f", "gap_closed": ".1%", "gain_over_start": "+.3f", "gain_over_reinforce": "+.3f"}
Figures = dict[str, dict[str, Any]]


class Study:
    """Trainings and plays in one folder; finished ones are read back.

    Args:
        scenario: with synthetic users.
        logs: a log of the scenario.
        work: folder of the runs and plays.
        hyper: hyper-parameters of the generator, the evaluator and all updates, by agent.
        sessions: number of sessions that each policy plays.
    """

    def __init__(
        self, scenario: str, logs: Path, work: Path, hyper: dict[str, dict[str, Any]], sessions: int
    ) -> None:
        self.scenario, self.logs, self.hyper, self.sessions = Scenario.load(scenario), logs, hyper, sessions
        self.reader, self.work = LogReader(logs), make_folder(work)

    def start(self, seed: int) -> Path:
        """Train the generator on clicks; return its run's folder."""
        return self._trained(POINTER, POINTER, seed, (), {})

    def result(self, update: str, seed: int) -> Path:
        """Train the warm start by an update; return the run's folder."""
        evaluator = self._trained(EVALUATOR, EVALUATOR, seed, (), {})
        drawn = GROUP - N_RANKERS if update == "goalrank" else GROUP
        more = {"update": update, "samples": drawn}
        return self._trained(TUNED, update, seed, (evaluator, self.start(seed)), more)

    def values(self, policy: str, label: str) -> np.ndarray:
        """Play a baseline or a run's folder; return the value of every session, (sessions,)."""
        path = self.work / "plays" / f"{self.scenario.name}-{label}-{self.sessions}.npy"
        if path.is_file():
            found: np.ndarray = np.load(path, allow_pickle=False)
            return found
        made = find_policy(policy, ENV_ID, self.scenario, "synthetic")
        with progress_bar(f"play {label}") as progress:
            played = play(
                made,
                env_id=ENV_ID,
                scenario=self.scenario,
                users="synthetic",
                sessions=self.sessions,
                seed=0,
                progress=partial(progress, text=""),
            )
        make_folder(path.parent)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, played["value"])
        return played["value"]

    def _trained(
        self, agent: str, name: str, seed: int, based_on: tuple[Path, ...], more: dict[str, Any]
    ) -> Path:
        """Train unless already done; InputError if the folder holds a run of other settings or logs."""
        run, hyper = self.work / f"{name}-{seed}", self.hyper[agent] | more
        if is_finished(run):
            record = read_run(run).record
            settings = find_agent(agent).code("config").from_dict(hyper).to_dict()
            logs = {"provenance": self.reader.provenance, "slots": self.reader.slots}
            if record["hyper"] != settings or any(record["logs"][key] != logs[key] for key in logs):
                raise InputError(f"{run} holds a run of other settings or logs; choose another --work")
            return run
        with progress_bar(f"train {name}, seed {seed}") as progress:
            train_agent(
                agent,
                run,
                logs=self.logs,
                based_on=based_on,
                seed=seed,
                resume=True,
                threads=1,
                hyper=hyper,
                progress=progress,
            )
        return run


def measure(study: Study, updates: list[str], seeds: list[int]) -> Figures:
    """Train and play everything; return the figures of the warm start and of every update."""
    keep, oracle = (study.values(name, name)[None] for name in (KEEP, ORACLE))
    runs = {START: [study.start(seed) for seed in seeds]}
    runs |= {update: [study.result(update, seed) for seed in seeds] for update in updates}
    played = {
        name: np.stack([study.values(str(run), run.name) for run in folders])
        for name, folders in runs.items()
    }
    figures: Figures = {KEEP: {"value": mean(keep)}, ORACLE: {"value": mean(oracle)}}
    start = played[START]
    for name, own in played.items():
        figures[name] = {"value": mean(own), "gap_closed": gap_closed(own, keep, oracle)}
        if name == START:
            continue
        figures[name]["gain_over_start"] = difference(own, start)
        if "reinforce" in updates and name != "reinforce":
            figures[name]["gain_over_reinforce"] = difference(own, played["reinforce"])
        figures[name]["by_seed"] = [mean_interval(one - other) for one, other in zip(own, start, strict=True)]
        reward = np.mean([read_run(run).record["reward"] for run in runs[name]], axis=0)
        ends = min(ENDS, max(1, len(reward) // 2))
        figures[name]["evaluator"] = {"first": reward[:ends].mean(), "last": reward[-ends:].mean()}
    return figures


def show(figures: Figures, title: str) -> None:
    """Print the table, and the gain over the warm start for each seed."""
    table = Table("policy", *COLUMNS, "evaluator's value of draws", title=title)
    for name, row in figures.items():
        cells = [
            interval_text(row[column], form) if column in row else "" for column, form in COLUMNS.items()
        ]
        ends = row.get("evaluator")
        table.add_row(name, *cells, f"{ends['first']:.3f} -> {ends['last']:.3f}" if ends else "")
    Console(width=150).print(table)
    for name, row in figures.items():
        if "by_seed" in row:
            gains = "; ".join(interval_text(interval, "+.3f") for interval in row["by_seed"])
            print(f"{name}: gain over the warm start by seed {gains}")


def main() -> None:
    """Train, play, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.list_updates", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--logs", type=Path, required=True, help="a log of the scenario's ground truth")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs and plays")
    parser.add_argument("--sessions", type=int, default=10_000, help="played by each policy")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--updates", nargs="+", choices=UPDATES, default=list(UPDATES))
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="train small networks briefly")
    given = parser.parse_args()
    torch.set_num_threads(1)
    full = FULL.get(Scenario.load(given.scenario).name, FULL["default"]).hyper
    hyper = BRIEFLY if given.quick else {agent: full[agent] for agent in BRIEFLY}
    study = Study(given.scenario, given.logs, given.work, hyper, given.sessions)
    updates, seeds = list(dict.fromkeys(given.updates)), list(dict.fromkeys(given.seed))
    figures = measure(study, updates, seeds)
    show(figures, f"{study.scenario.name}, {ENV_ID}, {given.sessions:,} sessions, seeds {seeds}")
    if given.out is not None:
        about = {
            "edgerec_gym": edgerec_gym.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "scenario": study.scenario.name,
            "logs": study.reader.provenance,
            "sessions": given.sessions,
            "training seeds": seeds,
            "lists per moment": GROUP,
            "hyper": hyper,
        }
        write_json(given.out, {"about": about, "figures": figures})


if __name__ == "__main__":
    main()
