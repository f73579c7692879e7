"""Tracks of the benchmark: what a track is, and the table of them.

A track is one id of the environment, the policies that play it, and what is measured of them. Its code is
named as Gymnasium names an entry point, "module:attribute", and imported when it is used. An installed
package adds tracks of its own through entry points of the group `edgerec_gym.tracks`, whose objects are
:class:`Track`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from edgerec_gym.errors import InputError

GROUP = "edgerec_gym.tracks"  # of entry points
Code = Any  # the object itself, or "module:attribute"


@dataclass(frozen=True, kw_only=True)
class Track:
    """One track of the benchmark.

    Attributes:
        name: as `edgerec bench --track` takes it.
        env_id: the id that its policies play.
        title: of its section in a report.
        summary: one line for help texts.
        sizes: scenario -> how much work a full run is, a dataclass with `sessions`, and perhaps
            `learned_sessions` and `oracle_sessions`.
        quick: the same for `edgerec bench NAME --quick`.
        policies: called without arguments; names of the policies, keep first, the oracle last.
        entries: called as `entries(setting, names)`; the :class:`~edgerec_gym.evaluation.cache.Entry` of some
            policies and training seeds, the oracle last, those whose runs are missing included.
        train: called as `train(setting, names, workers, progress)`; trains the runs that these policies need
            and that are missing.
        rows: the track by itself, called as `rows(out, scenario=..., sizes=..., seeds=..., policies=...,
            workers=..., progress=...)`: trains, plays, and returns the rows that the track publishes.
        tables: called as `tables(rows)`; header and body of its tables by title.
        picture: called as `picture(rows, path)`; draws a PNG file. None without one.
        prepare: called as `prepare(setting, place, entries, workers, progress)`; brings entries to where they
            can be compared, such as equal share. None where they can be as they are.
        ship: called as `ship(setting, folder)`; writes what `--quick` needs beside runs. None if nothing.
        shipped: folder of the runs that `--quick` plays, FOLDER/SCENARIO/runs/...; None for this package's
            own.
        ablations: names of policies that play the ground truth as it is only.
        seed: of the sessions that are scored.
        by_position: whether to tell what happened at each place of a page.
        budgets: whether policies come as families, one for each budget of requests.
    """

    name: str
    env_id: str
    title: str
    summary: str
    sizes: Code
    quick: Code
    policies: Code
    entries: Code
    train: Code
    rows: Code
    tables: Code
    picture: Code = None
    prepare: Code = None
    ship: Code = None
    shipped: str | Path | None = None
    ablations: Code = ()
    seed: int = 0
    by_position: bool = False
    budgets: bool = False

    def code(self, name: str) -> Any:
        """Return the object that an attribute names, e.g. "rows"; its module is imported now."""
        value = getattr(self, name)
        return resolve_name(value) if isinstance(value, str) else value

    def names(self) -> tuple[str, ...]:
        """Names of the policies: keep first, the oracle last."""
        return tuple(self.code("policies")())

    def chosen(self, policies: Sequence[str]) -> tuple[str, ...]:
        """Names that play: those asked for, or all if none is; one's own join; keep and oracle always."""
        keep, *others, oracle = self.names()
        own = [name for name in policies if is_own(name)]
        named = others if len(own) == len(policies) else [name for name in policies if name in others]
        return tuple(dict.fromkeys((keep, *named, *own, oracle)))

    def full_sizes(self, scenario: str) -> Any:
        """Return the sizes of a full run; InputError names the scenarios that the track runs on."""
        known = self.code("sizes")
        if scenario not in known:
            raise InputError(
                f"the track {self.name} runs on {', '.join(known)}; got the scenario {scenario!r}"
            )
        return known[scenario]


def _built_in(name: str, module: str, pictured: bool = True, **more: Any) -> Track:
    """A track of this package, whose module has the functions under their own names."""
    parts = ["sizes", "quick", "policies", "entries", "train", "rows", "tables"]
    parts += ["picture"] if pictured else []
    names = {"sizes": "FULL", "quick": "QUICK"}
    code = {part: f"edgerec_gym.bench.{module}:{names.get(part, part)}" for part in parts}
    return Track(name=name, **{**code, **more})


_ALL = (
    _built_in(
        "rerank",
        "rerank",
        env_id="EdgeFeedRerank-v0",
        title="Re-ranking",
        summary="Re-rankers, generators, sequence search and policy gradients on EdgeFeedRerank-v0.",
        by_position=True,
    ),
    _built_in(
        "mix",
        "mix.track",
        env_id="EdgeFeedMix-v0",
        title="Mixed insertion",
        summary="Insertion policies at equal share of cards on EdgeFeedMix-v0, and what ESAN predicts.",
        prepare="edgerec_gym.bench.mix.track:at_equal_share",
        ship="edgerec_gym.bench.mix.track:ship_prices",
    ),
    _built_in(
        "request",
        "request.track",
        env_id="EdgeFeedRequest-v0",
        title="Requests",
        summary="Uplift planners, rules, DQN and PPO on EdgeFeedRequest-v0 at many budgets.",
        tables="edgerec_gym.bench.request.rows:tables",
        seed=1,  # 0 was looked at while this was built
        budgets=True,
    ),
    _built_in(
        "joint",
        "joint",
        pictured=False,
        env_id="EdgeFeed-v0",
        title="All three decisions",
        summary="The whole EdgeRec agent, its ablations and single decisions on EdgeFeed-v0.",
        ablations="edgerec_gym.bench.joint:ONLY_TRUE",
    ),
)
TRACKS: dict[str, Track] = {track.name: track for track in _ALL}  # of this package, by name


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def track_names() -> tuple[str, ...]:
    """Names of all tracks, those of installed packages last; nothing is imported."""
    return (*TRACKS, *(name for name in _installed() if name not in TRACKS))


def find_track(name: str) -> Track:
    """Return a track by name, "module:attribute" included; InputError if there is none."""
    if name in TRACKS:
        return TRACKS[name]
    if name not in _installed() and ":" not in name:
        raise InputError(f"unknown track {name!r}; allowed: {', '.join(track_names())}, or module:TRACK")
    try:
        found = _installed()[name].load() if name in _installed() else resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"track {name!r} cannot be imported: {error}") from None
    if not isinstance(found, Track):
        raise InputError(f"track {name!r} is a {type(found).__name__}, not an edgerec_gym.bench.track.Track")
    return found


def all_tracks() -> list[Track]:
    """All tracks; those of installed packages that cannot be imported are left out."""
    found = []
    for name in track_names():
        try:
            found.append(find_track(name))
        except InputError:
            continue
    return found


def is_own(name: str) -> bool:
    """Whether a policy is the user's own: module:Class, or the folder of a trained run."""
    return ":" in name or Path(name).is_dir()
