"""The whole benchmark: every track on its scenarios, with unshifted and shifted users, in one file of rows.

In a full run, each track first trains its policies and writes its own rows. A quick run plays the shipped
runs of the first training seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.bench import rows as rows_of
from edgerec_gym.bench.comparison import ATTAINABLE, Comparison, make_comparison
from edgerec_gym.bench.setting import Setting, check_policies
from edgerec_gym.bench.shipped import SHIPPED_SCENARIO, shipped_folder
from edgerec_gym.bench.track import Track, find_track, is_own, track_names
from edgerec_gym.config import SHIFTS
from edgerec_gym.errors import InputError, closest
from edgerec_gym.evaluation.cache import Entry, Place, Progress, Rows, play_times, played, save_rows
from edgerec_gym.runs import is_finished

NAME = "benchmark"  # stem of the file of rows
SHIFTED_SESSIONS = 2000  # per kind of shifted users
QUICK_SESSIONS = 400
SAME = ("track", "scenario", "quick")  # columns that identify a run in the file
ALL = "all"


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        tracks: names of tracks; all if empty.
        scenarios: scenarios with a ground truth; a track skips those it does not know.
        policies: names of policies and user policies as module:Class; all policies play if no name is given.
        shifts: names of :data:`~edgerec_gym.config.SHIFTS`; all if None.
        seeds: number of training seeds 0, 1, ...
        sessions: sessions that each policy plays; None for the track's own number.
        quick: whether to play the shipped runs on lite, with one seed and no training.
    """

    tracks: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ("lite",)
    policies: tuple[str, ...] = ()
    shifts: tuple[str, ...] | None = None
    seeds: int = 3
    sessions: int | None = None
    quick: bool = False

    @property
    def complete(self) -> bool:
        """Whether the tracks run as published: all policies, trained."""
        return not self.quick and not self.policies


def settings_of(order: Order, base: Path) -> list[Setting]:
    """Return the settings of an order; `base` holds the folders bench-TRACK-SCENARIO.

    Raises:
        InputError: an unknown track, scenario, shift or policy.
    """
    tracks = [find_track(name) for name in order.tracks or track_names()]
    check_policies(tracks, order.policies)
    for shift in order.shifts or ():
        if shift not in SHIFTS:
            raise InputError(f"unknown shift {shift!r}{closest(shift, SHIFTS)}")
    scenarios = (SHIPPED_SCENARIO,) if order.quick else order.scenarios
    known = {track.name: track.code("sizes") for track in tracks}
    for scenario in scenarios:
        if not any(scenario in sizes for sizes in known.values()):
            allowed = list(dict.fromkeys(name for sizes in known.values() for name in sizes))
            raise InputError(f"scenario {scenario!r} has no ground truth; allowed: {', '.join(allowed)}")
    return [
        _setting(order, track, scenario, base)
        for track in tracks
        for scenario in scenarios
        if scenario in known[track.name]
    ]


def _setting(order: Order, track: Track, scenario: str, base: Path) -> Setting:
    full = track.full_sizes(scenario)
    sessions = order.sessions or (QUICK_SESSIONS if order.quick else full.sessions)
    folder = base / f"bench-{track.name}-{scenario}"
    return Setting(
        track,
        scenario,
        replace(full, sessions=sessions),
        1 if order.quick else order.seeds,
        tuple(order.policies),
        runs=shipped_folder(track, scenario) if order.quick else folder,
        cache=base / f"bench-{track.name}-shipped" if order.quick else folder,
        quick=order.quick,
    )


def plan(order: Order, base: str | Path) -> list[str]:
    """Return one line per track and scenario that says what a run will do.

    Raises:
        InputError: an unknown track, scenario, shift or policy, or a user policy that cannot be made.
    """
    lines, shifts = [], len(SHIFTS if order.shifts is None else order.shifts)
    for setting in settings_of(order, Path(base)):
        needed, entries = setting.run_folders(), len(setting.entries())
        for name in setting.policies:
            if is_own(name):  # fail before the work starts
                find_policy(name, setting.track.env_id, setting.scenario, "synthetic")
                entries += 1
        missing = sum(not is_finished(run) for run in needed)
        sessions = setting.sizes.sessions
        training = f"{missing} of {len(needed)} runs to train, "
        if order.quick:
            training = f"{len(needed) - missing} shipped runs ({missing} are not shipped), "
        lines.append(
            f"{setting.track.name} on {setting.scenario}: {training}{entries} policies and seeds play "
            f"{sessions} sessions of the ground truth, {min(sessions, SHIFTED_SESSIONS)} with each of "
            f"{shifts} shifts, and {_learned_sessions(setting)} of learned users"
        )
    return lines


def run(
    order: Order,
    base: str | Path,
    results: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Rows:
    """Train, play, compare and write, reusing what already exists.

    Args:
        order: what to run.
        base: folder that holds the folders bench-TRACK-SCENARIO.
        results: folder for benchmark.json and, in a complete run, TRACK.json with the track's own rows.
        workers: number of processes.
        progress: called with (done, total, text).
        tell: called with a line about policies that are left out.

    Returns:
        The rows of benchmark.json that this run made.
    """
    found, tasks = [], {}
    for setting in settings_of(order, Path(base)):
        start = monotonic()
        rows, scores = _run_one(order, setting, Path(results), workers, progress, tell)
        about = {
            "track": setting.track.name,
            "scenario": setting.scenario,
            "quick": order.quick,
            "seeds": setting.seeds,
            "sessions": setting.sizes.sessions,
            "minutes": round((monotonic() - start) / 60, 1),
            "workers": workers,
        }
        save_rows(Path(results) / f"{NAME}.json", rows, about, SAME)
        found += [{**item, **{key: about[key] for key in SAME}} for item in rows]
        tasks[setting.track.name, setting.scenario] = scores
    if len({track for track, _ in tasks}) > 1:
        everywhere = [task for scores in tasks.values() for task in scores]
        sessions = max(item["sessions"] for item in found)
        about = {"track": ALL, "scenario": ALL, "quick": order.quick}
        rows = rows_of.aggregate_rows(everywhere, sessions)
        if rows:  # only if some policy plays every track
            save_rows(Path(results) / f"{NAME}.json", rows, about, SAME)
            found += [{**item, **about} for item in rows]
    return found


def _run_one(
    order: Order,
    setting: Setting,
    results: Path,
    workers: int,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> tuple[Rows, list[dict[str, np.ndarray]]]:
    """Return the rows of one track on one scenario, and its scores by task."""
    options: dict[str, Any] = {"workers": workers, "progress": progress}
    _train(order, setting, results, options)
    comparison = make_comparison(setting, **options)
    if comparison.missing:
        tell(f"{setting.track.name}: no run of {', '.join(comparison.missing)}; left out")
    cache = setting.cache / "played"

    def play(place: Place, entries: Sequence[Entry] = comparison.entries) -> rows_of.Played:
        return played(entries, place, cache, **options)

    rows: Rows = []
    scores = []
    shifts = tuple(SHIFTS) if order.shifts is None else order.shifts
    sessions = min(comparison.place.sessions, SHIFTED_SESSIONS)
    fewer = replace(comparison.place, sessions=sessions, by_position=False)
    for shift in (None, *shifts):
        place = comparison.place if shift is None else replace(fewer, shift=shift)
        true = _with_oracle(
            comparison, place, comparison.entries if shift is None else comparison.contestants, play
        )
        rows += rows_of.value_rows(comparison, true, shift)
        scores.append(rows_of.shares(comparison, true))
        if shift is None:
            rows += rows_of.comparison_rows(comparison, true)
            rows += _speed(comparison, cache)
            place = replace(fewer, users="learned", sessions=_learned_sessions(setting))
            rows += rows_of.exploitation_rows(comparison, true, play(place, _playable(comparison, place)))
    rows += rows_of.aggregate_rows(scores, setting.sizes.sessions)
    return rows, scores


def _learned_sessions(setting: Setting) -> int:
    """Return the number of sessions on learned users: the track's own, so that the cache serves both."""
    return min(setting.sizes.sessions, getattr(setting.sizes, "learned_sessions", SHIFTED_SESSIONS))


def _train(order: Order, setting: Setting, results: Path, options: dict[str, Any]) -> None:
    """Run the track on its own, or only train its missing runs; do nothing in a quick run."""
    track = setting.track
    if order.complete:
        rows = track.code("rows")(setting, **options)
        about = {"track": setting.track.name, "scenario": setting.scenario, "quick": False}
        about |= {"seeds": setting.seeds, "sessions": setting.sizes.sessions}
        file = results / f"{track.name}.json"
        save_rows(file, rows, about, ("scenario", "quick"))
        if track.picture is not None:
            track.code("picture")(rows, file.with_name(f"{track.name}-{setting.scenario}.png"))
    elif not order.quick and not all(map(is_finished, setting.run_folders())):
        setting.train(**options)


def _with_oracle(
    comparison: Comparison, place: Place, entries: Sequence[Entry], play: Callable[..., rows_of.Played]
) -> rows_of.Played:
    """Play all entries; the oracle may play only the first of the sessions."""
    fewer = min(place.sessions, comparison.oracle_sessions or place.sessions)
    oracle = [entry for entry in entries if entry.policy == comparison.oracle]
    others = [entry for entry in entries if entry.policy != comparison.oracle]
    return play(place, others) | play(replace(place, sessions=fewer), oracle)


def _playable(comparison: Comparison, place: Place) -> list[Entry]:
    """Return the entries that can play learned users, which exclude those that read the ground truth."""

    def reads(entry: Entry) -> bool:
        return (
            entry.policy in (comparison.oracle, ATTAINABLE)
            or is_own(entry.policy)
            and hasattr(entry.make(place, **entry.arguments), "bind")
        )

    return [entry for entry in comparison.contestants if not reads(entry)]


def _speed(comparison: Comparison, cache: Path) -> Rows:
    others = [entry for entry in comparison.entries if entry.policy != comparison.oracle]
    return rows_of.speed_rows(play_times(others, comparison.place, cache), comparison.place.sessions)
