"""PointerPolicy against MultiInputPolicy in MaskablePPO, at equal environment steps, on the ground truth.

    python -m benchmarks.pointer_policy [--scenario lite] [--id ID ...] [--steps 50000] [--quick]

Both networks are tuned alike: for every id one training per setting of GRID, with a seed of its own, and the
best value on held-out *learned* users wins. The reported trainings follow, one per seed, on learned users;
the final parameters and two checkpoints are scored on synthetic users that training never saw, with common
random numbers. Prints the table and writes benchmarks/results/pointer_policy.json. An interrupted run
resumes from --work; --quick runs every part in a minute or two, and writes to --work only.
"""

from __future__ import annotations

import argparse
import platform
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.agents.baselines import Keep, make_policy
from edgerec_gym.agents.ppo.pointer_policy import PointerPolicy
from edgerec_gym.agents.ppo.train import train
from edgerec_gym.agents.ppo.trained_policy import AGENTS, FLAT, POINTER, TrainedPolicy, load_policy
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.play import Policy, play
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.registration import IDS, SLATE, make_feeds, track_of
from edgerec_gym.runs import checkpoints, is_finished, read_run
from edgerec_gym.scenario import Scenario

RESULTS = Path(__file__).parent / "results"
SLOT_IDS = tuple(env_id for env_id, track in IDS.items() if track != SLATE)
GRID = tuple(product((3e-3, 5e-4), (32, 64)))  # initial learning rate (final: a tenth of it), hidden
TUNING_SEED = 1000
POINTS = 3  # points of each curve
BASELINES = {
    "joint": "device-greedy",
    "rerank": "device-greedy",
    "mix": "fixed-slot",
    "request": "fixed-interval",
}
Setting = tuple[float, int]


class Study:
    """Trainings and scores of one scenario; finished ones are read back.

    Args:
        scenario: with learned and synthetic users.
        work: folder of runs and scores.
        steps: slots of each training.
        sessions: number of sessions scored for each policy.
    """

    def __init__(self, scenario: str, work: Path, steps: int, sessions: int) -> None:
        self.scenario, self.steps, self.sessions = Scenario.load(scenario), steps, sessions
        self.work = make_folder(work / self.scenario.name)

    def run(self, env_id: str, agent: str, setting: Setting, seed: int) -> Path:
        """Train unless already done; returns the run's folder."""
        rate, hidden = setting
        run = self.work / f"{track_of(env_id)}-{agent}-{rate:g}-{hidden}-{seed}"
        if not is_finished(run):
            train(
                run,
                env_id=env_id,
                agent=agent,
                scenario=self.scenario,
                steps=self.steps,
                seed=seed,
                checkpoint_every=self.steps // POINTS,
                keep_checkpoints=POINTS + 2,
                resume=True,
                tensorboard=False,
                learning_rate=rate,
                final_learning_rate=rate / 10,
                hidden=hidden,
            )
        return run

    def values(self, env_id: str, name: str, policy: Policy | Path, users: str = "synthetic") -> np.ndarray:
        """Value of each session of a policy, or of a run's folder; (sessions,) float64."""
        path = self.work / "scores" / f"{track_of(env_id)}-{name}-{users}.npy"
        if path.is_file():
            found: np.ndarray = np.load(path, allow_pickle=False)
            if len(found) == self.sessions:
                return found
        if isinstance(policy, Path):
            env = make_feeds(env_id, 1, scenario=self.scenario, users="learned")
            policy = load_policy(policy, env)
        played = play(
            policy, env_id=env_id, scenario=self.scenario, users=users, sessions=self.sessions, seed=0
        )
        make_folder(path.parent)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, played["value"])
        return played["value"]

    def tuned(self, env_id: str, agent: str) -> tuple[Setting, dict[str, float]]:
        """Best setting of the grid, and the value of each setting on learned users."""
        scores = {}
        for setting in GRID:
            run = self.run(env_id, agent, setting, TUNING_SEED)
            scores[setting] = float(self.values(env_id, run.name, run, "learned").mean())
        named = {
            f"learning rate {rate:g}, hidden {hidden}": score for (rate, hidden), score in scores.items()
        }
        return max(scores, key=lambda setting: scores[setting]), named

    def curve(self, env_id: str, agent: str, setting: Setting, seed: int) -> tuple[list[int], np.ndarray]:
        """Steps of a training's checkpoints, and the true values of their sessions (points, sessions)."""
        run = self.run(env_id, agent, setting, seed)
        steps, values = [], []
        for folder in checkpoints(run):
            steps.append(read_run(folder).record["steps"])
            values.append(self.values(env_id, f"{run.name}-{steps[-1]}", folder))
        return steps, np.stack(values)


def untrained(env_id: str, scenario: Scenario) -> Policy:
    """Return the pointer policy before its first update, to measure its priors."""
    env = make_feeds(env_id, 1, scenario=scenario, users="learned")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PointerPolicy(
            cast(Any, env.single_observation_space),
            cast(Any, env.single_action_space),
            lambda _: 0.0,
            track=track_of(env_id),
        )
    return TrainedPolicy("untrained", network)


def rows_of(study: Study, env_id: str, seeds: range) -> list[dict[str, Any]]:
    """Figures for one id."""
    keep = study.values(env_id, "keep", Keep())
    baseline = BASELINES[track_of(env_id)]
    common = {"id": env_id, "sessions": study.sessions}
    rows: list[dict[str, Any]] = []

    def add(policy: str, metric: str, interval: dict[str, float], **more: Any) -> None:
        rows.append({"policy": policy, "metric": metric, **interval, **common, "seeds": len(seeds), **more})

    add("keep", "value", mean_interval(keep))
    gain = study.values(env_id, baseline, make_policy(baseline, env_id)) - keep
    add(baseline, "gain_over_keep", mean_interval(gain))
    start = study.values(env_id, "untrained", untrained(env_id, study.scenario))
    add(f"{POINTER} untrained", "gain_over_keep", mean_interval(start - keep))
    ends = {}
    for agent in AGENTS:
        (rate, hidden), tuning = study.tuned(env_id, agent)
        curves = [study.curve(env_id, agent, (rate, hidden), seed) for seed in seeds]
        ends[agent] = np.stack([values[-1] for _, values in curves])  # (seeds, sessions)
        add(agent, "value", mean_interval(ends[agent].mean(axis=0)))
        add(
            agent,
            "gain_over_keep",
            mean_interval(ends[agent].mean(axis=0) - keep),
            by_seed=[mean_interval(values - keep) for values in ends[agent]],
            learning_rate=rate,
            hidden=hidden,
            tuning=tuning,
            steps=curves[0][0],
            curve=np.mean([values.mean(axis=1) for _, values in curves], axis=0).tolist(),
        )
    for other, values in ((FLAT, ends[FLAT]), ("untrained", start)):
        difference = ends[POINTER] - values
        add(
            POINTER,
            f"gain_over_{other}",
            mean_interval(difference.mean(axis=0)),
            by_seed=[mean_interval(of_seed) for of_seed in difference],
        )
    return rows


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the table."""
    table = Table("id", "policy", "figure", "mean [95 %]", "by seed", "learning rate, hidden", title=title)
    for row in rows:
        table.add_row(
            row["id"],
            row["policy"],
            row["metric"],
            f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            " ".join(f"{seed['mean']:+.2f}" for seed in row.get("by_seed", ())),
            f"{row['learning_rate']:g}, {row['hidden']}" if "hidden" in row else "",
        )
    Console(width=140).print(table)


def main() -> None:
    """Tune, train, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="lite")
    parser.add_argument(
        "--id", action="append", choices=SLOT_IDS, help="only this id; may be given several times"
    )
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/pointer-policy"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one seed, few slots and sessions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    quick = given.quick
    work = given.work / ("quick" if quick else "full")
    seeds = range(1 if quick else given.seeds)
    study = Study(given.scenario, work, 4096 if quick else given.steps, 50 if quick else given.sessions)
    rows: list[dict[str, Any]] = []
    ids = tuple(given.id or SLOT_IDS)
    with progress_bar("pointer policy") as progress:
        for done, env_id in enumerate(ids):
            progress(done, len(ids))
            rows += rows_of(study, env_id, seeds)
        progress(len(ids), len(ids))
    show(rows, f"{study.scenario.name}, {study.steps:,} slots, ground truth, {study.sessions} sessions")
    about = {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "scenario": study.scenario.name,
        "steps": study.steps,
        "training seeds": list(seeds),
        "tuning": f"seed {TUNING_SEED}, {len(GRID)} settings of each network, by value on learned users",
    }
    target = work if quick else make_folder(given.out)
    write_json(target / "pointer_policy.json", {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
