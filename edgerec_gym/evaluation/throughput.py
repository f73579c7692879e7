"""Speed of the environment: steps per second, relative to plain copies of the same bytes in the same run.

Actions are random legal ones, or plans in random order. A batch is timed in `step` only, a single environment
over the whole loop, policy included. Every figure is the median over windows of a fraction of a second. They
alternate with windows of plain copies, because machines are shared and noisy.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numba
import numpy as np

from edgerec_gym import __version__
from edgerec_gym.compiled.jit import SOURCE_DIGEST
from edgerec_gym.documents import MOST_BYTES, OpenDocument, check, read_object
from edgerec_gym.evaluation.play import Progress
from edgerec_gym.feed.slate_batch import SlateBatch
from edgerec_gym.files import write_json
from edgerec_gym.registration import IDS, SLATE, make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.users import ground_truth
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.vector_env import EdgeFeedVectorEnv

BATCHES = (1, 16, 256, 4096)
WINDOWS = 7
Row = dict[str, Any]


def configurations(quick: bool = False) -> Iterator[Row]:
    """Yield what is measured: ids x presets x users x batch sizes x threads (of large batches) x copy."""
    for env_id in ("EdgeFeed-v0",) if quick else IDS:
        for preset in ("default",) if quick else ("default", "lite"):
            for users in ("synthetic", "learned"):
                for num_envs in BATCHES:
                    for threads in (1, 2) if num_envs >= 256 else (1,):
                        for copy in (True, False) if num_envs > 1 else (True,):
                            yield {
                                "id": env_id,
                                "preset": preset,
                                "users": users,
                                "num_envs": num_envs,
                                "threads": threads,
                                "copy": copy,
                            }


def measure(row: Row, seconds: float = 2.0) -> Row:
    """Measure one configuration.

    Returns:
        steps_per_s, slots_per_s (higher if a step plays a plan), copies_per_s (rows of plain copies per
        second), ratio of steps to copies, observation_bytes.
    """
    run = _single(row) if row["num_envs"] == 1 else _batch(row)
    step, buffer, close = run
    window, steps, slots, copies = seconds / WINDOWS / 2, [], [], []
    step(window / 2)  # compiles, warms caches
    for _ in range(WINDOWS):
        step_rate, slot_rate = step(window)
        steps.append(step_rate)
        slots.append(slot_rate)
        copies.append(_copies(buffer, window))
    close()
    return {
        "steps_per_s": float(np.median(steps)),
        "slots_per_s": float(np.median(slots)),
        "copies_per_s": float(np.median(copies)),
        "ratio": float(np.median(np.array(steps) / np.array(copies))),
        "observation_bytes": buffer.nbytes // len(buffer),
    }


Step = Callable[[float], tuple[float, float]]  # seconds to spend -> steps and slots per second


def _single(row: Row) -> tuple[Step, np.ndarray, Callable[[], None]]:
    """Return the timed loop of one environment of `gym.make`, policy included."""
    env: Any = gym.make(row["id"], scenario=row["preset"], users=row["users"])
    state = {"observation": env.reset(seed=0)[0]}
    draws = np.random.default_rng(0).random(1 << 16).tolist()
    config, slate = env.unwrapped.config, IDS[row["id"]] == SLATE
    rest = {"insert": np.zeros(config.slate_size, np.int64), "request": 0}

    def step(seconds: float) -> tuple[float, float]:
        n, slots, observation, start = 0, 0, state["observation"], time.perf_counter()
        while True:
            if slate:
                first = n & 0xFFF
                action = {"order": np.array(draws[first : first + config.pool_size]), **rest}
            else:
                legal = observation["action_mask"].nonzero()[0]
                action = legal[int(draws[n & 0xFFFF] * len(legal))]
            observation, _, terminated, truncated, info = env.step(action)
            slots += info["slots"] if slate else 1
            if terminated or truncated:
                observation, _ = env.reset()
            n += 1
            if n % 64 == 0 and time.perf_counter() - start > seconds:
                state["observation"] = observation
                spent = time.perf_counter() - start
                return n / spent, slots / spent

    return step, env.unwrapped.batch.arrays.observation, env.close


def _batch(row: Row) -> tuple[Step, np.ndarray, Callable[[], None]]:
    env = make_feeds(
        row["id"],
        row["num_envs"],
        scenario=row["preset"],
        users=row["users"],
        copy=row["copy"],
        threads=row["threads"],
    )
    return _batch_step(env), env.batch.arrays.observation, env.close


def _batch_step(env: EdgeFeedVectorEnv) -> Step:
    observation, rng = env.reset(seed=0)[0], np.random.default_rng(0)
    batch, rows = env.batch, env.num_envs
    plans = {"insert": np.zeros((rows, env.config.slate_size), np.int64), "request": np.zeros(rows, np.int64)}

    def draw() -> Any:
        if isinstance(batch, SlateBatch):
            scores = rng.random((env.num_envs, env.config.pool_size), np.float32)
            return plans | {"order": scores}
        mask = observation["action_mask"]
        return (rng.random(mask.shape, np.float32) * mask).argmax(axis=1)

    def step(seconds: float) -> tuple[float, float]:
        nonlocal observation  # held until the next one is made, as in a learner
        spent, n, slots = 0.0, 0, 0
        while spent < seconds:
            actions = draw()
            start = time.perf_counter()
            observation = env.step(actions)[0]
            spent += time.perf_counter() - start
            n += env.num_envs
            slots += int(batch.slates.slots.sum()) if isinstance(batch, SlateBatch) else env.num_envs
        return n / spent, slots / spent

    return step


def _copies(buffer: np.ndarray, seconds: float) -> float:
    """Return the rows per second of plain copies into fresh memory, each held until the next one is made."""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        held = buffer.copy()
        n += len(held)
    return n / (time.perf_counter() - start)


def memory_per_env(num_envs: int = 4096) -> float:
    """Return the bytes that one environment of a batch owns (synthetic users, default preset)."""
    scenario = Scenario.load("default")

    def allocated(n: int) -> int:
        tracemalloc.start()
        env = EdgeFeedVectorEnv(n, scenario=scenario, users="synthetic", copy=False)
        env.reset(seed=0)
        current = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        env.close()
        return current

    allocated(1)  # caches the shared world
    return (allocated(num_envs) - allocated(1)) / (num_envs - 1)


_START = """
import time
start = time.perf_counter()
import gymnasium
gymnasium_s = time.perf_counter() - start
import edgerec_gym
imported = time.perf_counter() - start
env = gymnasium.make("EdgeFeed-v0", users={users!r})
env.reset(seed=0)
env.step(env.unwrapped.action_masks().argmax())
print(gymnasium_s, imported, time.perf_counter() - start - imported)
"""


def start_times() -> Row:
    """Return the start-up times of a new process in seconds.

    They cover importing Gymnasium, importing edgerec_gym including Gymnasium, and first make to first step,
    with an empty kernel cache (cold) and with a full one (warm, best of three).
    """
    times: Row = {}
    with tempfile.TemporaryDirectory() as cache:
        for users in ("synthetic", "learned"):
            folder = str(Path(cache) / users)
            runs = [_start(users, folder) for _ in range(4)]
            times[f"first_make_cold_{users}_s"] = runs[0][2]
            times[f"first_make_warm_{users}_s"] = min(run[2] for run in runs[1:])
            times["import_gymnasium_s"] = min(run[0] for run in runs[1:])
            times["import_s"] = min(run[1] for run in runs[1:])
    return times


def _start(users: str, cache: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", _START.format(users=users)],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(x) for x in done.stdout.split()]


def catalogue_sizes(sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000), seconds: float = 4.0) -> list[Row]:
    """Return the steps per second of a batch of 256 by size of the catalogue, in alternating windows."""
    scenario = ground_truth("default")
    assert scenario.synthetic is not None
    runs = []
    for n_items in sizes:
        synthetic = scenario.synthetic.replace(n_items=n_items)
        users = SyntheticUsers(synthetic, scenario.config)
        larger = Scenario("larger", scenario.config, users.world.catalog, synthetic)
        env = EdgeFeedVectorEnv(256, scenario=larger, users="synthetic", copy=False)
        runs.append(_batch_step(env))
    found: list[list[float]] = [[] for _ in sizes]
    for _ in range(WINDOWS):
        for step, rates in zip(runs, found, strict=True):
            rates.append(step(seconds / WINDOWS)[0])
    smallest = np.array(found[0])
    return [
        {"n_items": n, "steps_per_s": float(np.median(rates)), "ratio": float(np.median(rates / smallest))}
        for n, rates in zip(sizes, found, strict=True)
    ]


class ThroughputRow(OpenDocument):
    """A configuration and what was measured in it."""

    id: str
    preset: str
    users: str
    num_envs: int
    threads: int
    copy: bool
    steps_per_s: float
    copies_per_s: float
    ratio: float
    observation_bytes: int
    slots_per_s: float


class Throughput(OpenDocument):
    """The file of :func:`bench`."""

    about: dict[str, str]
    rows: list[ThroughputRow]
    start: dict[str, float] = {}
    memory_per_env_bytes: float = 0.0
    catalogue: list[dict[str, float]] = []


def bench(
    out: Path,
    *,
    quick: bool = False,
    fresh: bool = False,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> Row:
    """Measure everything that `out` does not yet hold for this version and machine.

    Args:
        out: JSON file, written after every figure.
        quick: measure EdgeFeed-v0 on the default preset only.
        fresh: discard what `out` holds.
        seconds: time spent on each configuration.
        progress: called with (figures done, total).
    """
    about = {
        "version": __version__,
        "kernels": SOURCE_DIGEST[:12],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "numpy": np.__version__,
        "numba": numba.__version__,
    }
    results: Row = {"about": about, "rows": []}
    if out.exists() and not fresh:
        found = read_object(out, most_bytes=MOST_BYTES)
        if found.get("about") == about:  # else another version or machine wrote it
            check(out, found, Throughput)
            results = found
    single: dict[str, Callable[[], Any]] = {
        "start": start_times,
        "memory_per_env_bytes": memory_per_env,
        "catalogue": catalogue_sizes,
    }
    rows = list(configurations(quick))
    done = [{key: row[key] for key in rows[0]} for row in results["rows"]]
    for k, row in enumerate(rows):
        if progress:
            progress(k, len(rows) + len(single))
        if row not in done:
            results["rows"].append(row | measure(row, seconds))
            write_json(out, results)
    for k, (name, figure) in enumerate(single.items()):
        if progress:
            progress(len(rows) + k, len(rows) + len(single))
        if name not in results:
            results[name] = figure()
            write_json(out, results)
    return results


def throughput_tables(results: Row) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Format the figures of :func:`bench` as tables: title -> (header, rows)."""
    header = ["environments", "threads", "arrays", "steps/s", "slots/s", "copies/s", "ratio", "bytes"]
    tables: dict[str, tuple[list[str], list[list[str]]]] = {}
    for row in results["rows"]:
        title = f"{row['id']}, {row['preset']}, {row['users']} users"
        arrays = "fresh" if row["copy"] else "reused"
        body = [f"{row['num_envs']:,}", str(row["threads"]), arrays, f"{row['steps_per_s']:,.0f}"]
        body.append(f"{row['slots_per_s']:,.0f}")
        body += [f"{row['copies_per_s']:,.0f}", f"{row['ratio']:.2f}", f"{row['observation_bytes']:,}"]
        tables.setdefault(title, (header, []))[1].append(body)
    figures = [[name, f"{seconds:.2f} s"] for name, seconds in results["start"].items()]
    figures.append(["memory per environment", f"{results['memory_per_env_bytes'] / 1000:.1f} kB"])
    for row in results["catalogue"]:
        rate = f"{row['steps_per_s']:,.0f} ({row['ratio']:.2f} of the smallest)"
        figures.append([f"steps/s over {row['n_items']:,} items", rate])
    tables["Start, memory, catalogue"] = (["figure", ""], figures)
    return tables
