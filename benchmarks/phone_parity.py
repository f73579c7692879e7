"""Do sessions through phone, connection and service equal those of the environment, bit for bit?

    python -m benchmarks.phone_parity [RUN=SCENARIO ...] [--sessions 200] [--users synthetic] [--workers 2]

Every run is exported and played twice with the same seeds: in the environment, and on a phone in virtual time
that speaks to a service over a socket. Compared are observations, actions, rewards and reward terms at every
slot. Without RUN, all trained runs that are shipped are compared, each on its scenario and track.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.device_actions import SCENARIOS, shipped
from edgerec_gym.agents.export.export import export
from edgerec_gym.bench.edge.parity import play_environment, play_phones
from edgerec_gym.bench.track import find_track
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.latency import measured_on
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.registration import track_of
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.local import local_service


def compare(run: Path, scenario: str, track: str, sessions: int, users: str, seed: int) -> dict[str, Any]:
    """Play a run in both ways; returns its row."""
    from edgerec_gym.agents.device.policy import DevicePolicy
    from edgerec_gym.device.session import load

    env_id = find_track(track).env_id
    seeds = range(seed, seed + sessions)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(run, folder / "model", scenario=Scenario.load(scenario))
        model = load(folder / "model")

        def make(env: Any) -> DevicePolicy:
            return DevicePolicy(run.name, model, env)

        expected = play_environment(make, env_id, scenario, users, seeds)
        started = time.perf_counter()
        with local_service(scenario, folder / "service", users=users) as service:
            found = asyncio.run(
                play_phones(make, track_of(env_id), scenario, users, seeds, service.phone, folder)
            )
        seconds = time.perf_counter() - started
    different = [a.differences(b) for a, b in zip(expected, found, strict=True)]
    slots = sum(len(trajectory.actions) for trajectory in expected)
    return {
        "run": str(run.relative_to(SCENARIOS)) if run.is_relative_to(SCENARIOS) else run.name,
        "agent": read_run(run).agent,
        "scenario": scenario,
        "track": track,
        "users": users,
        "sessions": sessions,
        "slots": slots,
        "different_slots": sum(different),
        "different_sessions": sum(map(bool, different)),
        "slots_a_second": slots / seconds,
    }


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN=SCENARIO", help="default: all shipped runs")
    parser.add_argument("--track", default="joint", help="track of the given runs")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--users", choices=("synthetic", "learned"), default="synthetic")
    parser.add_argument("--seed", type=int, default=0, help="of the first session")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/phone_parity.json"))
    arguments = parser.parse_args()
    jobs = shipped()
    if arguments.runs:
        jobs = []
        for text in arguments.runs:
            run, _, scenario = text.partition("=")
            if not scenario:
                raise InputError(f"{text!r} must read RUN=SCENARIO")
            jobs.append((Path(run), scenario, arguments.track))
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        waiting = [
            pool.submit(compare, *job, arguments.sessions, arguments.users, arguments.seed) for job in jobs
        ]
        for done in as_completed(waiting):
            rows.append(done.result())
            row = rows[-1]
            console.print(f"{row['run']}: {row['different_slots']} of {row['slots']} slots differ")
    rows.sort(key=lambda row: (row["scenario"], row["track"], row["run"]))
    make_folder(arguments.out.parent)
    about = {"sessions": arguments.sessions, "seed": arguments.seed, **measured_on("onnxruntime", "numpy")}
    write_json(arguments.out, {"about": about, "rows": rows})
    table = Table("run", "scenario", "track", "slots", "slots that differ")
    for row in rows:
        table.add_row(
            Path(row["run"]).name, row["scenario"], row["track"], f"{row['slots']:,}",
            str(row["different_slots"]),
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
