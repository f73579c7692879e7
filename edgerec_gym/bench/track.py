"""Tracks of the benchmark: the class and the table of tracks.

A track consists of one environment id, the policies that play it, and the metrics they are measured by. Its
code is named like a Gymnasium entry point, "module:attribute", and is imported on first use. An installed
package adds its own tracks, objects of :class:`Track`, through entry points of the group
`edgerec_gym.tracks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from edgerec_gym.errors import InputError, closest

GROUP = "edgerec_gym.tracks"  # group of entry points
Code = Any  # the object itself, or "module:attribute"


@dataclass(frozen=True, kw_only=True)
class Track:
    """One track of the benchmark.

    Attributes:
        name: name for `edgerec bench --track`.
        env_id: environment id that the policies play.
        title: title of the track's section in a report.
        summary: one line for help texts.
        sizes: scenario -> amount of work of a full run, a dataclass with `sessions` and optionally
            `learned_sessions` and `oracle_sessions`.
        quick: amount of work of `edgerec bench NAME --quick`.
        policies: called without arguments; returns the names of the policies, keep first, the oracle last.
        entries: called as `entries(setting, names)`; returns a list of
            :class:`~edgerec_gym.evaluation.cache.Entry`, one per named policy and training seed, the oracle
            last, including those whose runs are missing.
        train: called as `train(setting, names, workers, progress)`; trains the missing runs that the named
            policies need.
        rows: called as `rows(setting, workers, progress)`; runs the track by itself and returns
            the rows that it publishes. Keep and the oracle always play.
        tables: called as `tables(rows)`; returns header and body of the track's tables by title.
        picture: called as `picture(rows, path)`; draws a PNG file. None if there is no picture.
        prepare: called as `prepare(setting, place, entries, workers, progress)`; returns the entries made
            comparable, for instance at an equal share of cards. None if they are comparable as they are.
        ship: called as `ship(setting, folder, workers, progress)`; writes what `--quick` needs besides runs.
            None if it needs nothing else.
        shipped: folder of the runs that `--quick` plays, FOLDER/SCENARIO/runs/...; None for this package's
            own.
        ablations: names of policies that play only the unshifted ground truth.
        seed: seed of the scored sessions.
        by_position: whether to record outcomes at each place of a page.
        budgets: whether policies form families with one policy per budget of requests.
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
        """Return the object behind an attribute such as "rows", importing its module if necessary."""
        value = getattr(self, name)
        return resolve_name(value) if isinstance(value, str) else value

    def names(self) -> tuple[str, ...]:
        """Return the names of the policies: keep first, the oracle last."""
        return tuple(self.code("policies")())

    def chosen(self, policies: Sequence[str]) -> tuple[str, ...]:
        """Return the policies that play: the given ones, or all if no name is given, and user policies.

        Keep and the oracle always play.
        """
        keep, *others, oracle = self.names()
        own = [name for name in policies if is_own(name)]
        named = others if len(own) == len(policies) else [name for name in policies if name in others]
        return tuple(dict.fromkeys((keep, *named, *own, oracle)))

    def full_sizes(self, scenario: str) -> Any:
        """Return the sizes of a full run on a scenario; raise InputError if the track does not know it."""
        known = self.code("sizes")
        if scenario not in known:
            raise InputError(
                f"the track {self.name} runs on {', '.join(known)}; got the scenario {scenario!r}"
            )
        return known[scenario]


def _built_in(name: str, module: str, pictured: bool = True, **more: Any) -> Track:
    """Return a track of this package, whose module names its functions like the attributes."""
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
        summary="Compare what ranks next items on EdgeFeedRerank-v0.",
        by_position=True,
    ),
    _built_in(
        "mix",
        "mix.track",
        env_id="EdgeFeedMix-v0",
        title="Mixed insertion",
        summary="Compare card insertion at equal shares on EdgeFeedMix-v0.",
        prepare="edgerec_gym.bench.mix.track:at_equal_share",
        ship="edgerec_gym.bench.mix.track:ship_prices",
    ),
    _built_in(
        "request",
        "request.track",
        env_id="EdgeFeedRequest-v0",
        title="Requests",
        summary="Compare requests at many budgets on EdgeFeedRequest-v0.",
        tables="edgerec_gym.bench.request.rows:tables",
        seed=1,  # seed 0 was used during development
        budgets=True,
    ),
    _built_in(
        "joint",
        "joint",
        pictured=False,
        env_id="EdgeFeed-v0",
        title="All three decisions",
        summary="Compare the whole agent and its parts on EdgeFeed-v0.",
        ablations="edgerec_gym.bench.joint:ONLY_TRUE",
    ),
)
TRACKS: dict[str, Track] = {track.name: track for track in _ALL}  # of this package, by name


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def track_names() -> tuple[str, ...]:
    """Return the names of all tracks, those of installed packages last; import nothing."""
    return (*TRACKS, *(name for name in _installed() if name not in TRACKS))


def find_track(name: str) -> Track:
    """Return a track by name or "module:attribute"; raise InputError if there is none."""
    if name in TRACKS:
        return TRACKS[name]
    if name not in _installed() and ":" not in name:
        raise InputError(f"unknown track {name!r}{closest(name, [*track_names(), 'or module:TRACK'])}")
    try:
        found = _installed()[name].load() if name in _installed() else resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"track {name!r} cannot be imported: {error}") from None
    if not isinstance(found, Track):
        raise InputError(f"track {name!r} is a {type(found).__name__}, not an edgerec_gym.bench.track.Track")
    return found


def all_tracks() -> list[Track]:
    """Return all tracks but those of installed packages that cannot be imported."""
    found = []
    for name in track_names():
        try:
            found.append(find_track(name))
        except InputError:
            continue
    return found


def is_own(name: str) -> bool:
    """Whether a name is a user policy: module:Class, or the folder of a trained run."""
    return ":" in name or Path(name).is_dir()
