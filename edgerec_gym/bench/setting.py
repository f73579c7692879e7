"""A track on one scenario, with its runs, its entries and the user policies that join."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgerec_gym.agents.attainable.kernels import CODE
from edgerec_gym.agents.baselines import LIFTS, baselines_of
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.bench.track import Track, is_own
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, Progress
from edgerec_gym.policy import Policy
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario


@dataclass(frozen=True)
class Setting:
    """A track on one scenario, with the folders of its runs.

    Attributes:
        track: the track.
        scenario: a scenario that the track knows.
        sizes: amount of work, a dataclass of the track.
        seeds: number of training seeds 0, 1, ...
        policies: names given by the user, see :meth:`Track.chosen`.
        runs: folder of the track's runs, trained there or shipped.
        cache: folder of sessions played and prices found.
        quick: whether shipped runs are played.
    """

    track: Track
    scenario: str
    sizes: Any
    seeds: int
    policies: tuple[str, ...]
    runs: Path
    cache: Path
    quick: bool = False

    def names(self) -> list[str]:
        """Return the names of the track's policies that should play, without user policies."""
        return [name for name in self.track.chosen(self.policies) if not is_own(name)]

    def entries(self) -> list[Entry]:
        """Return the entries of these policies, the oracle last, including those whose runs are missing."""
        return list(self.track.code("entries")(self, self.names()))

    def playable(self, names: Sequence[str]) -> list[str]:
        """Return the policies without baselines that need an item table, if the scenario has none."""
        track, columns = track_of(self.track.env_id), Scenario.load(self.scenario).config.item_columns
        lacking = set(baselines_of(track, LIFTS)) - set(baselines_of(track, columns))
        return [name for name in names if name not in lacking]

    def run_folders(self) -> list[Path]:
        """Return the folders of the runs that these policies need."""
        return list(dict.fromkeys(run for entry in self.entries() for run in entry.files))

    def train(self, workers: int, progress: Progress | None) -> None:
        """Train the missing runs, and as little else as the track allows."""
        self.track.code("train")(self, self.names(), workers, progress)


# --- user policies --------------------------------------------------------------------------------------


def make_policy(place: Place, name: str) -> Policy:
    """Return a baseline, a user policy or a run's policy that can play a place."""
    return find_policy(name, place.env_id, place.scenario, place.users, place.seed)


def make_reference(place: Place, name: str, code: str) -> Policy:
    """Return the attainable ceiling; `code` identifies its code, so that a changed one plays anew."""
    return make_policy(place, name)


def reference_entry(name: str) -> Entry:
    """Return the entry of the attainable ceiling, one of :data:`ATTAINABLE`."""
    return Entry(name, make_reference, {"name": name, "code": CODE})


def own_entry(name: str) -> Entry:
    """Return the entry of a user policy, keyed by its file's content, so that a changed policy plays anew."""
    if Path(name).is_dir():
        return Entry(name, make_policy, {"name": name}, (Path(name),))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = find_spec(name.partition(":")[0])
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"policy {name!r}: cannot import {name.partition(':')[0]!r}")
    return Entry(name, make_policy, {"name": name}, (Path(spec.origin),))


def check_policies(tracks: Sequence[Track], policies: Sequence[str]) -> None:
    """Raise InputError if a policy plays none of the tracks."""
    known = list(dict.fromkeys(name for track in tracks for name in track.names()))
    for name in policies:
        if not is_own(name) and name not in known:
            allowed = f"{', '.join(known)}, module:Class, or a run's folder"
            raise InputError(f"unknown policy {name!r}; allowed: {allowed}")
