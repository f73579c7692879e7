"""Where a trained run or an exported model plays: the id and the scenario that its record names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgerec_gym.device.description import DESCRIPTION, read_description
from edgerec_gym.errors import InputError
from edgerec_gym.registration import IDS, track_of
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import SHIPPED


class RunPlace(NamedTuple):
    """Where a policy plays; None for what its record does not tell.

    Attributes:
        env_id: id of the environment.
        scenario: name of a shipped scenario, or a scenario's folder.
    """

    env_id: str | None = None
    scenario: str | None = None


def run_place(folder: str | Path) -> RunPlace:
    """Return where one run or exported model plays.

    Raises:
        InputError: the folder holds neither, or the scenario's folder is gone.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).is_file():
        served = read_description(folder).scenario
        return RunPlace(None, served if served in SHIPPED else None)
    record = read_run(folder).record
    env_id = record.get("id") or next((name for name in IDS if IDS[name] == record["track"]), None)
    if place := record.get("scenario_folder"):
        if not Path(place).is_dir():
            raise InputError(f"{folder} was trained in the scenario {place}, which is gone; give --scenario")
        return RunPlace(env_id, place)
    scenario = record.get("scenario")
    name = scenario.get("name") if isinstance(scenario, dict) else scenario
    if name is None:  # it learned from logs
        origin = (record.get("logs") or {}).get("provenance", {})
        name = origin.get("preset") or origin.get("scenario")
    return RunPlace(env_id, name if name in SHIPPED else None)


def common_place(names: Sequence[str], env_id: str | None, scenario: str | None) -> tuple[str, str]:
    """Return id and scenario for policies that play together.

    Args:
        names: policies; those that are folders tell where they play.
        env_id: the id to play, or None for the one that the folders name, else "EdgeFeed-v0".
        scenario: the scenario to play, or None for the one that the folders name, else "default".

    Raises:
        InputError: unknown id, a folder without a run, or folders that name different ids or scenarios.
    """
    if env_id is not None:
        track_of(env_id)
    if env_id is not None and scenario is not None:
        return env_id, scenario
    places = {name: run_place(name) for name in dict.fromkeys(names) if Path(name).is_dir()}
    found = [env_id, scenario]
    for k, (option, usual) in enumerate((("--id", "EdgeFeed-v0"), ("--scenario", "default"))):
        if found[k] is not None:
            continue
        told = {place[k]: name for name, place in places.items() if place[k] is not None}
        if len(told) > 1:
            (one, first), (other, second) = list(told.items())[:2]
            raise InputError(f"{first} plays {one}, {second} plays {other}; say which with {option}")
        found[k] = next(iter(told), usual)
    return str(found[0]), str(found[1])
