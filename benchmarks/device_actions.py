"""How often an exported agent acts as its torch form does, and how fast: one phone per session.

    python -m benchmarks.device_actions [RUN=SCENARIO ...] [--sessions 1000] [--engine onnxruntime]

Both see the same observations, and the torch policy's actions are played. A session counts where all of its
actions are the same; the gap is between the scores behind them, where the policies explain themselves.
Decisions are timed one by one on one thread: events that are new, the agent's own logic, and its graphs.
Processor time of the thread stands beside wall time, which on a busy machine includes other processes.
Without RUN, the trained runs that are shipped are compared, each on its scenario and track.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.device.policy import load_policy as load_device_policy
from edgerec_gym.agents.export.export import export
from edgerec_gym.agents.registry import AGENTS, load_policy
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.latency import measured_on
from edgerec_gym.files import folder_bytes, make_folder, write_json
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario

SCENARIOS = Path(edgerec_gym.__file__).parent / "scenarios"
ROWS = 50  # sessions played side by side
WARM_UP = 50  # decisions that are not timed


def shipped() -> list[tuple[Path, str, str]]:
    """Runs that the scenarios ship, with scenario and track."""
    found = []
    for record in sorted(SCENARIOS.glob("*/agents/*/runs/*/policy.json")):
        if AGENTS[read_run(record.parent).agent].graphs is not None:
            found.append((record.parent, record.parts[-6], record.parts[-4]))
    return found


def compare(
    run: Path, scenario: str, track: str, sessions: int, engine: str = "onnxruntime"
) -> dict[str, Any]:
    """Play both forms of a run on the same observations."""
    place = Scenario.load(scenario)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "device"
        export(run, folder, scenario=place, engine=engine)
        size = folder_bytes(folder)
        env = make_feeds(track, min(ROWS, sessions), scenario=place, users="synthetic", split="eval")
        reference, device = load_policy(run, env), load_device_policy(folder, env)
    assert isinstance(device, DevicePolicy)
    slots = same = whole = 0
    gap, times = 0.0, []
    differences: list[dict[str, Any]] = []
    for first in range(0, sessions, env.num_envs):
        rows = min(env.num_envs, sessions - first)
        observation, _ = env.reset(seed=list(range(first, first + env.num_envs)))
        live, agreed = np.arange(env.num_envs) < rows, np.ones(env.num_envs, np.bool_)
        everything = np.ones(env.num_envs, np.bool_)
        reference.reset(everything)
        device.reset(everything)
        while live.any():
            expected = reference.act(observation)
            found = expected.copy()
            for row in np.flatnonzero(live).tolist():
                one = {key: values[row : row + 1] for key, values in observation.items()}
                started, started_own = time.perf_counter(), time.thread_time()
                found[row] = device.phones[row].act(one)[0]
                times.append((time.perf_counter() - started, time.thread_time() - started_own))
                gap = max(gap, _gap(reference, device, row))
            equal = found == expected
            for row in np.flatnonzero(live & ~equal)[:3].tolist():
                differences.append({"session": first + row, "actions": [int(expected[row]), int(found[row])]})
            slots, same = slots + int(live.sum()), same + int((live & equal).sum())
            agreed &= equal | ~live
            observation, _, terminated, truncated, _ = env.step(expected)
            live &= ~(terminated | truncated)
        whole += int(agreed[:rows].sum())
    wall, own = np.array(times[WARM_UP:]).T * 1e3
    return {
        "run": str(run.relative_to(SCENARIOS)) if run.is_relative_to(SCENARIOS) else run.name,
        "agent": read_run(run).agent,
        "scenario": scenario,
        "track": track,
        "engine": engine,
        "sessions": sessions,
        "slots": slots,
        "same_actions": same / slots,
        "different_actions": slots - same,
        "same_sessions": whole / sessions,
        "largest_gap": gap,
        "bytes": size,
        **{f"p{q}_ms": float(np.percentile(wall, q)) for q in (50, 95, 99)},
        **{f"cpu_p{q}_ms": float(np.percentile(own, q)) for q in (50, 95, 99)},
        "examples": differences[:5],
    }


def _gap(reference: Any, device: Any, row: int) -> float:
    """Largest difference between the scores of both, relative to 1 + their size; 0 if they tell none."""
    if not hasattr(reference, "explain"):
        return 0.0
    was, now = reference.explain(row), device.explain(row)
    gap = 0.0
    for a, b in (
        ((was.scores, now.scores), (was.matrix, now.matrix), (was.uplift, now.uplift)) if was and now else ()
    ):
        if a is None or b is None:
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        kept = np.isfinite(a) & np.isfinite(b) & (a > -1e6)
        a, b = a[kept], b[kept]
        gap = max(gap, float((np.abs(a - b) / (1 + np.abs(a))).max(initial=0.0)))
    return gap


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        "run", "track", "sessions", "same sessions", "differ", "gap", "p50 ms", "p99 ms", "cpu p99", "kB",
        title="the exported agent beside its torch form",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["run"], row["track"], str(row["sessions"]), f"{row['same_sessions']:.4f}",
            f"{row['different_actions']} of {row['slots']}", f"{row['largest_gap']:.1e}",
            f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['cpu_p99_ms']:.2f}",
            f"{row['bytes'] / 1e3:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="RUN=SCENARIO, played on the track that it was trained on")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--only", default="", help="text that a shipped run's folder must contain")
    parser.add_argument("--out", help="file to write; default: the results of benchmarks, for shipped runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [run for run in shipped() if arguments.only in str(run[0])]
    if arguments.runs:
        pairs = [text.rsplit("=", 1) for text in arguments.runs]
        chosen = [(Path(run), scenario, read_run(run).record["track"]) for run, scenario in pairs]
    about = measured_on("onnxruntime", "torch", "numpy")
    default = make_folder(Path(__file__).parent / "results") / "device_actions.json"
    rows: list[dict[str, Any]] = []
    for run, scenario, track in chosen:
        try:
            rows.append(compare(run, scenario, track, arguments.sessions, arguments.engine))
        except InputError as error:
            Console().print(f"{run}: {error}")
            continue
        write_json(Path(arguments.out) if arguments.out else default, {"about": about, "rows": rows})
    show(rows)


if __name__ == "__main__":
    main()
