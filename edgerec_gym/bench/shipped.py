"""Runs shipped with the package, so that `edgerec bench --quick` needs no training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from edgerec_gym.bench.setting import Setting
from edgerec_gym.bench.track import Track, find_track
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Progress
from edgerec_gym.files import make_folder
from edgerec_gym.runs import CHECKPOINTS, is_finished
from edgerec_gym.scenario import SHIPPED_FOLDER

SHIPPED_SCENARIO = "lite"
KINDS = (".safetensors", ".json", ".toml")  # of files that are needed to play


def shipped_folder(track: str | Track, scenario: str = SHIPPED_SCENARIO) -> Path:
    """Return the folder of a track's shipped runs."""
    known = track if isinstance(track, Track) else find_track(track)
    if known.shipped is not None:
        return Path(known.shipped) / scenario
    return SHIPPED_FOLDER / scenario / "agents" / known.name


def ship(setting: Setting, *, workers: int = 2, progress: Progress | None = None) -> list[Path]:
    """Copy the runs of the first training seed, and prices, to where `edgerec bench --quick` looks.

    Only files needed to play are copied: parameters, records and rules, but no checkpoints.

    Returns:
        The folders written.

    Raises:
        InputError: a run is not finished.
    """
    target, written = shipped_folder(setting.track, setting.scenario), []
    first = replace(setting, seeds=1)
    for run in first.run_folders():
        if not is_finished(run):
            raise InputError(
                f"{run} holds no finished run: run edgerec bench --track {setting.track.name} first"
            )
        folder = make_folder(target / run.relative_to(setting.runs))
        for file in run.rglob("*.*"):  # a run may hold another one, such as an estimator of requests
            inside = file.relative_to(run)
            if file.suffix in KINDS and CHECKPOINTS not in inside.parts:
                shutil.copyfile(file, make_folder((folder / inside).parent) / file.name)
        written.append(folder)
    if setting.track.ship is not None:
        setting.track.code("ship")(first, target, workers, progress)
    return written
