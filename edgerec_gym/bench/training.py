"""Training runs of a track: their folders, and training those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgerec_gym.bench.setting import Setting
from edgerec_gym.bench.track import Track, find_track, is_own
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Progress, Rows, run_jobs
from edgerec_gym.files import make_folder
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.logging_policy import DECISIONS
from edgerec_gym.runs import is_finished
from edgerec_gym.scenario import Scenario

Value = TypeVar("Value")
Job = tuple[str, int]  # name of a run, training seed
VALUES, GRADIENT = (
    "distilled-values",
    "values-pg",
)  # agents of several tracks; the second starts from the first
QUICK_VALUES = {"updates": 6, "sessions": 64, "select_every": 6, "select_sessions": 100}
QUICK_GRADIENT = {"updates": 4, "sessions": 64, "select_every": 4, "select_sessions": 100}
RUNS = {VALUES: "values"}  # folders of runs that are not named like their agent
TABLE_SEEDS = 1  # seeds of logs that item tables were learned from: 0; agents learn from other sessions


def every_version(by_scenario: dict[str, Value]) -> dict[str, Value]:
    """Return a table by scenario that also holds their second versions, as the scenarios themselves."""
    return by_scenario | {f"{name}-v2": value for name, value in by_scenario.items()}


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Return the folder of one training run."""
    return out / "runs" / f"{RUNS.get(name, name).replace(', ', '-').replace(' ', '-')}-{seed}"


def collect_logs(
    out: Path,
    scenario: str,
    sessions: int,
    *,
    seed: int = 0,
    randomise: Sequence[str] = DECISIONS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Log sessions of a scenario's ground truth, with its item columns; continue an incomplete log.

    Args:
        out: log folder.
        scenario: name of a shipped scenario.
        sessions: number of sessions.
        seed: seed of the sessions, beyond those of the item table if there is one.
        randomise: decisions that the logging policy draws.
        progress: called with (sessions done, total).
    """
    if Scenario.load(scenario).config.item_columns:
        source: dict[str, Any] = {"scenario": scenario, "seed": seed + TABLE_SEEDS}
    else:
        source = {"preset_name": scenario, "seed": seed}
    collect(out, **source, sessions=sessions, randomise=randomise, progress=progress)


def train_missing(
    train_one: Callable[..., None],
    out: Path,
    scenario: str,
    sizes: Any,
    stages: Sequence[Sequence[Job]],
    workers: int,
    progress: Progress | None,
) -> None:
    """Train the missing runs in parallel, leaving finished runs untouched.

    Args:
        train_one: a module-level function (worker processes import it), called as
            `train_one(out, scenario, name, seed, sizes)`.
        out: folder of the track.
        scenario: name of a shipped scenario.
        sizes: amount of work, a dataclass of the track.
        stages: runs by stage; those of a later stage may start from those of earlier ones.
        workers: number of processes.
        progress: called with (runs finished, total, text).
    """
    done, total = 0, sum(map(len, stages))
    for jobs in stages:
        waiting = [job for job in jobs if not is_finished(run_folder(out, *job))]
        done += len(jobs) - len(waiting)
        arguments = [(str(out), scenario, name, seed, sizes) for name, seed in waiting]
        for index in run_jobs(train_one, arguments, workers):
            done += 1
            if progress:
                name, seed = waiting[index]
                progress(done, total, f"trained {name}, seed {seed}")


def track_setting(
    name: str,
    out: str | Path,
    *,
    scenario: str = "lite",
    sizes: Any = None,
    seeds: int = 3,
    policies: Sequence[str] = (),
) -> Setting:
    """Return the setting of a track that runs on its own in one folder.

    Args:
        name: of the track.
        out: folder of logs, runs and sessions played.
        scenario: one that the track knows.
        sizes: amount of work; None for the full run of the scenario.
        seeds: number of training seeds 0, 1, ...
        policies: names of the track's policies, or user policies as module:Class or a run's folder.

    Raises:
        InputError: a track or scenario that does not exist, or seeds below 1.
    """
    track = find_track(name)
    full = track.full_sizes(scenario)
    if seeds < 1:
        raise InputError(f"seeds = {seeds} must be at least 1")
    out = make_folder(out)
    return Setting(track, scenario, sizes or full, seeds, tuple(policies), runs=out, cache=out)


def run_track(
    name: str, out: str | Path, *, workers: int = 2, progress: Progress | None = None, **options: Any
) -> Rows:
    """Run one track by itself: train, play and score, reusing what already exists.

    Args:
        name: of the track.
        out: folder of logs, runs and sessions played.
        workers: number of processes.
        progress: called with (done, total, text).
        **options: see :func:`track_setting`.
    """
    setting = track_setting(name, out, **options)
    rows: Rows = setting.track.code("rows")(setting, workers, progress)
    return rows


def asked(track: Track, policies: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return the policies that a track plays on its own: keep, the oracle, then the given ones.

    All policies play, in the given order, if `policies` has only user policies or is empty.
    """
    keep, *_, oracle = track.names()
    named = [*order, *policies] if all(map(is_own, policies)) else policies
    return tuple(dict.fromkeys((keep, oracle, *named)))
