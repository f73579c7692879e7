"""Do policies trained in one simulator of real users keep their value in another one?

    python -m benchmarks.cross_simulator BUNDLE [--out runs/cross_simulator] [--quick]

Real logs have no ground truth. So simulator 1 is fitted on the train week of an EB-NeRD bundle (networks,
`edgerec fit`), policies are trained in it, and all are scored again in simulator 2, boosted trees fitted on
the validation week (benchmarks/click_trees.py). Both play the same feed: the same articles, cloud, rules and
random numbers.

Prints the table and writes benchmarks/results/cross_simulator.json. An interrupted run resumes: the fit, each
training, and each (policy, simulator) that was scored. `--quick` runs every part in a minute or two and
writes its figures into the run's folder only.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from benchmarks.click_trees import fit_trees
from benchmarks.ground_truth import interval
from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.ppo.train import train
from edgerec_gym.agents.ppo.trained_policy import load_policy
from edgerec_gym.answers import UserModel
from edgerec_gym.evaluation.intervals import exploitation_interval, mean_interval
from edgerec_gym.evaluation.play import KEEP, play
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.sessions import SessionStream
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Policy
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.fit import fit
from edgerec_gym.vector_env import EdgeFeedVectorEnv

RESULTS = Path(__file__).parent / "results"
ENV_ID = "EdgeFeedRerank-v0"
BASELINES = (KEEP, "random", "greedy", "device-greedy")
EVAL_SEED = 0
FULL = {"ensemble": 2, "epochs": 8, "steps": 50_000, "seeds": 3, "sessions": 4000}
QUICK = {"ensemble": 1, "epochs": 1, "steps": 4000, "seeds": 1, "sessions": 200}

Values = dict[str, list[np.ndarray]]  # by policy: value of each session on simulators 1 and 2


def trained(scenario: Scenario, out: Path, settings: dict[str, int]) -> list[Policy]:
    """MaskablePPO with several seeds, trained in simulator 1."""
    policies: list[Policy] = []
    for seed in range(settings["seeds"]):
        folder = out / f"ppo{seed}"
        train(
            folder,
            env_id=ENV_ID,
            scenario=scenario,
            steps=settings["steps"],
            seed=seed,
            num_envs=64,
            resume=True,
        )
        env = EdgeFeedVectorEnv(1, track=track_of(ENV_ID), scenario=scenario)
        policy = load_policy(folder, env)
        env.close()
        policy.name = f"MaskablePPO, seed {seed}"
        policies.append(policy)
    return policies


def scored(
    policy: Policy, users: str | UserModel, scenario: Scenario, sessions: int, path: Path
) -> np.ndarray:
    """Value of each session (S,), played now or read from an earlier run."""
    if not path.exists():
        found = play(policy, env_id=ENV_ID, scenario=scenario, users=users, sessions=sessions, seed=EVAL_SEED)
        with atomic_path(path) as temporary:
            pl.DataFrame(found).write_parquet(temporary)
    return pl.read_parquet(path)["value"].to_numpy()


def ranking(values: Values) -> dict[str, Any]:
    """Kendall tau between both rankings, over all pairs and over those that are certain in simulator 2."""
    signs, certain = [], []
    for a, b in combinations(values, 2):
        first, second = (mean_interval(x - y) for x, y in zip(values[a], values[b], strict=True))
        signs.append(float(np.sign(first["mean"]) * np.sign(second["mean"])))
        certain.append(second["low"] > 0 or second["high"] < 0)
    sure = np.array(certain)
    return {
        "kendall_tau": float(np.mean(signs)),
        "pairs": len(signs),
        "kendall_tau_certain": float(np.array(signs)[sure].mean()) if sure.any() else None,
        "certain_pairs": int(sure.sum()),
    }


def compare(values: Values) -> list[dict[str, Any]]:
    """One row per policy: values, gains over keep, and bias relative to that of keep, all with intervals."""
    keep = values[KEEP]
    return [
        {
            "policy": name,
            "value_1": mean_interval(own[0]),
            "value_2": mean_interval(own[1]),
            "gain_1": mean_interval(own[0] - keep[0]),
            "gain_2": mean_interval(own[1] - keep[1]),
            "bias_relative_to_keep": exploitation_interval(own[0], own[1], keep[0], keep[1]),
        }
        for name, own in values.items()
    ]


def run(bundle: Path, out: Path, settings: dict[str, int], tell: Callable[[str], None]) -> dict[str, Any]:
    """Fit both simulators, train, score."""
    convert_ebnerd(bundle, make_folder(out) / "logs")
    tell("log converted")
    figures = fit(out / "logs", out / "simulator1", ensemble=settings["ensemble"], epochs=settings["epochs"])
    tell("simulator 1 fitted on the train week")
    scenario, reader = Scenario.load(out / "simulator1"), LogReader(out / "logs")
    first_day = reader.provenance["first_validation_day"]
    [late] = SessionStream(reader, list(range(first_day, first_day + 8))).chunks()
    trees, tree_figures = fit_trees(late, reader.config, out / "simulator2.txt")
    tell("simulator 2 fitted on the validation week")
    policies = [make_policy(name, ENV_ID, seed=0) for name in BASELINES]
    policies += trained(scenario, out, settings)
    tell("policies trained")
    values: Values = {}
    for k, policy in enumerate(policies):
        simulators: tuple[str | UserModel, ...] = ("learned", trees)
        values[policy.name] = [
            scored(policy, users, scenario, settings["sessions"], out / f"policy{k}-simulator{n}.parquet")
            for n, users in enumerate(simulators, 1)
        ]
        tell(f"scored {policy.name}")
    return {
        "simulator_1": {name: figures[name] for name in ("impression_auc", "click_auc", "click_ece")},
        "simulator_2": tree_figures,
        "policies": compare(values),
        **ranking(values),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    columns = {
        "value_1": "value on 1",
        "value_2": "value on 2",
        "gain_1": "gain on 1",
        "gain_2": "gain on 2",
        "bias_relative_to_keep": "bias - bias(keep)",
    }
    table = Table("policy", *columns.values(), title=f"{ENV_ID}: trained on simulator 1, scored on both")
    for row in result["policies"]:
        table.add_row(row["policy"], *(interval(row[column]) for column in columns))
    console.print(table)
    tau = result["kendall_tau_certain"]
    console.print(
        f"Kendall tau {result['kendall_tau']:.2f} over {result['pairs']} pairs; "
        f"{'none' if tau is None else format(tau, '.2f')} over the {result['certain_pairs']} of them that "
        "simulator 2 is certain of"
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder with train|validation/{behaviors,history}.parquet")
    parser.add_argument("--out", type=Path, default=Path("runs/cross_simulator"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    settings = QUICK if arguments.quick else FULL
    out = arguments.out / "quick" if arguments.quick else arguments.out
    result = run(arguments.bundle, out, settings, console.print)
    show(result, console)
    versions = {"edgerec_gym": edgerec_gym.__version__, "lightgbm": lightgbm.__version__}
    versions |= {"torch": torch.__version__, "numpy": np.__version__}
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    about = {"versions": versions, "machine": machine, "settings": settings, "seed": EVAL_SEED}
    file = out / "cross_simulator.json" if arguments.quick else make_folder(RESULTS) / "cross_simulator.json"
    write_json(file, {**about, **result})


if __name__ == "__main__":
    main()
