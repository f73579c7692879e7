"""Training runs of a benchmark's track: where they lie, and training those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgerec_gym.evaluation.cache import Progress, run_jobs
from edgerec_gym.runs import is_finished

Job = tuple[str, int]  # name of a run, training seed


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Folder of one training run."""
    return out / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def train_missing(
    train_one: Callable[..., None],
    out: Path,
    scenario: str,
    sizes: Any,
    stages: Sequence[Sequence[Job]],
    workers: int,
    progress: Progress | None,
) -> None:
    """Train what is missing, several runs at once; finished runs are left as they are.

    Args:
        train_one: a function of a module (worker processes import it), called as
            `train_one(out, scenario, name, seed, sizes)`.
        out: folder of the track.
        scenario: a shipped name.
        sizes: of the track.
        stages: runs, of which later ones may start from those of earlier stages.
        workers: processes.
        progress: called with (runs that are there, in all, text).
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
