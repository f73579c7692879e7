"""Are off-policy estimates right? Three policies of EdgeFeedRequest-v0 against their true value.

One large log with at most three random request decisions per session is cut into many small ones. Each of
them estimates three policies; playing these on the same synthetic users gives the truth.

    python -m benchmarks.off_policy --out runs/off-policy --open-bandit FOLDER
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.open_bandit import open_bandit_rows
from edgerec_gym import __version__
from edgerec_gym.agents.baselines import Keep
from edgerec_gym.agents.data.logged_decisions import read_decisions
from edgerec_gym.agents.requests.moments import AtMoments
from edgerec_gym.agents.requests.scores import IntentScore
from edgerec_gym.commands import console
from edgerec_gym.config import FeedConfig
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import run_jobs
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.off_policy import ESTIMATORS, LoggedDecisions, off_policy_estimates
from edgerec_gym.evaluation.play import play
from edgerec_gym.files import json_ready, make_folder, write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation, Policy

SCENARIO, ENV_ID, MOMENTS = "lite", "EdgeFeedRequest-v0", 3
LOG_SEED, TRUTH_SEED = 5, 6  # same users and days, but never the same session
INTENT_PRICE = 0.45  # price of the change of interest, as in the request track
SIZES = {200: 200, 1000: 120, 5000: 24}  # sessions per log: number of logs


class HalfPage:
    """Request a page wherever it is legal: at the moments, when half of the last page has been shown."""

    name = "every half page"
    stateless = True

    def reset(self, mask: np.ndarray) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        return observation["action_mask"][:, 1].astype(np.int64)


class IntentRule:
    """Request a page when the interest has moved from the one that the last page was ranked for."""

    name = "intent rule"
    stateless = True

    def __init__(self, config: FeedConfig) -> None:
        self.score = IntentScore(config)

    def reset(self, mask: np.ndarray) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        return ((self.score(observation) > INTENT_PRICE) & (observation["action_mask"][:, 1] > 0)).astype(
            np.int64
        )


def part(decisions: LoggedDecisions, first: int, sessions: int) -> LoggedDecisions:
    """The log of some consecutive sessions."""
    rows = slice(*np.searchsorted(decisions.session, [first, first + sessions]))
    cut = {
        name: getattr(decisions, name)[rows]
        for name in ("action", "logging", "target", "reward", "features", "names")
    }
    return replace(
        decisions,
        session=decisions.session[rows] - first,
        before=decisions.before[first : first + sessions],
        **cut,
    )


def judge(decisions: LoggedDecisions, true: float, sessions: int, logs: int) -> list[dict[str, Any]]:
    """Error, width and coverage of each estimator, over disjoint logs of equal size."""
    found = [off_policy_estimates(part(decisions, k * sessions, sessions), seed=k) for k in range(logs)]
    rows = []
    for name in (*ESTIMATORS, "logged"):
        mean, low, high = (np.array([one[name][end] for one in found]) for end in ("mean", "low", "high"))
        error, covered = mean - true, (low <= true) & (true <= high)
        rows.append(
            {
                "estimator": name,
                "log_sessions": sessions,
                "logs": logs,
                "bias": float(error.mean()),
                "bias_error": float(error.std(ddof=1) / np.sqrt(logs)),
                "rmse": float(np.sqrt((error**2).mean())),
                "width": float((high - low).mean()),
                "coverage": float(covered.mean()),
                "effective_sessions": float(np.mean([one["effective_sessions"] for one in found])),
            }
        )
    return rows


def policies_of(config: FeedConfig) -> list[Policy]:
    """The policies to be judged."""
    return [Keep(), HalfPage(), IntentRule(config)]


def every_slot(out: Path, sessions: int) -> list[dict[str, Any]]:
    """Effective size of a log with random requests at every slot: dozens of random decisions per session."""
    collect(out / "every-slot", preset_name=SCENARIO, sessions=sessions, seed=LOG_SEED, randomise=["request"])
    reader = LogReader(out / "every-slot")
    rows = []
    for policy in policies_of(reader.config):
        decisions = read_decisions(reader, AtMoments(policy, reader.config, MOMENTS))
        try:
            found = off_policy_estimates(decisions)
        except InputError as error:
            found = {"error": str(error)}
        rows.append({"policy": policy.name, "log_sessions": sessions, **found})
    return rows


def study_one(out: Path, index: int, truth_sessions: int, sizes: dict[int, int]) -> None:
    """Play one policy, estimate it from all logs, and save both; index = number of policies: every slot."""
    file = out / f"policy-{index}.json"
    reader = LogReader(out / "logs")
    policies = policies_of(reader.config)
    if index == len(policies):
        write_json(file, json_ready({"every_slot": every_slot(out, min(5000, reader.sessions))}))
        return
    policy = policies[index]
    played = play(
        AtMoments(policy, reader.config, MOMENTS),
        env_id=ENV_ID,
        scenario=SCENARIO,
        users="synthetic",
        sessions=truth_sessions,
        seed=TRUTH_SEED,
        split="log",
        num_envs=4096,
    )
    true = mean_interval(played["value"])
    console.note(f"{policy.name}: {true['mean']:.3f} [{true['low']:.3f}, {true['high']:.3f}]")
    decisions = read_decisions(reader, policy, at_moments=True)
    rows: list[dict[str, Any]] = []
    for sessions, logs in sizes.items():
        rows += [{"policy": policy.name, **row} for row in judge(decisions, true["mean"], sessions, logs)]
    truth = {"policy": policy.name, **true, "requests": float(played["requests"].mean())}
    write_json(file, json_ready({"truth": [truth], "rows": rows, "cpu_seconds": round(time.process_time())}))


def study(out: Path, truth_sessions: int, sizes: dict[int, int], workers: int) -> dict[str, Any]:
    """Collect, play, estimate; existing parts are reused."""
    needed = max(sessions * logs for sessions, logs in sizes.items())
    collect(
        out / "logs",
        preset_name=SCENARIO,
        sessions=needed,
        seed=LOG_SEED,
        randomise=["request"],
        moments=MOMENTS,
    )
    parts = [out / f"policy-{index}.json" for index in range(4)]
    waiting = [(out, index, truth_sessions, sizes) for index, file in enumerate(parts) if not file.exists()]
    for index in run_jobs(study_one, waiting, workers):
        console.note(f"done: {waiting[index][1]}")
    found: dict[str, Any] = {"truth": [], "rows": [], "every_slot": []}
    for file in parts:
        content = read_json(file)
        for name in found:
            found[name] += content.get(name, [])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/off-policy"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/off_policy.json"))
    parser.add_argument("--open-bandit", type=Path, help="folder with exposures.csv.gz")
    parser.add_argument("--truth-sessions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="small logs, to try every part")
    arguments = parser.parse_args()
    sizes = {50: 10, 100: 5} if arguments.quick else SIZES
    truth_sessions = 500 if arguments.quick else arguments.truth_sessions
    found = study(make_folder(arguments.out), truth_sessions, sizes, arguments.workers)
    true = {row["policy"]: row["mean"] for row in found["truth"]}
    header = ["policy", "log", "estimator", "true", "bias", "rmse", "width", "coverage", "effective"]
    body = [
        [
            row["policy"],
            f"{row['log_sessions']:,}",
            row["estimator"],
            f"{true[row['policy']]:.3f}",
            f"{row['bias']:+.3f}",
            f"{row['rmse']:.3f}",
            f"{row['width']:.3f}",
            f"{row['coverage']:.0%}",
            f"{row['effective_sessions']:,.0f}",
        ]
        for row in found["rows"]
    ]
    console.print_table(
        f"off-policy estimates on {SCENARIO}, {MOMENTS} random decisions a session", header, body
    )
    body = [
        [row["policy"], f"{row['effective_sessions']:,.1f}" if "ips" in row else row["error"]]
        for row in found["every_slot"]
    ]
    console.print_table(
        "the same with a random decision at every slot", ["policy", "effective sessions"], body
    )
    if arguments.open_bandit is not None:
        found["open_bandit"] = open_bandit_rows(arguments.open_bandit)
        body = [
            [
                f"{row['campaign']}, position {row['position']}",
                row["estimator"],
                f"{row['mean']:.2%} [{row['low']:.2%}, {row['high']:.2%}]",
                f"{row['relative_error']:+.0%}" if "relative_error" in row else "",
            ]
            for row in found["open_bandit"]
        ]
        console.print_table("Open Bandit: click rate of BTS", ["", "estimator", "estimate", "error"], body)
    found["about"] = {
        "scenario": SCENARIO,
        "moments": MOMENTS,
        "quick": arguments.quick,
        "truth_sessions": truth_sessions,
        "seeds": {"log": LOG_SEED, "truth": TRUTH_SEED},
        "versions": {"edgerec_gym": __version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    write_json(arguments.results, json_ready(found))


if __name__ == "__main__":
    main()
