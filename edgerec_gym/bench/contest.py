"""What the tracks of the benchmark have in common: which policies play where, and from which runs.

A track's own module trains its policies and has tables of its own. Here each track names its contest:
policies that play the same sessions of one id, between keep and the track's oracle. The runs come from a
folder in which the track has trained them, or from those of the first training seed that the package ships.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.bench.training import run_folder
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, Progress
from edgerec_gym.files import read_json
from edgerec_gym.policy import Policy
from edgerec_gym.runs import is_finished, read_run
from edgerec_gym.scenario import Scenario

MODULES = "edgerec_gym.agents"
TRACKS = ("rerank", "mix", "request", "joint")
PRICES = "prices.json"  # of shipped insertion policies: name -> price at which shares are equal
INTERVAL = 0.5  # of a page, between requests of the rule
CHANCE, INTENT, TRUE_EFFECT = 0.05, 0.45, 0.25  # budgets of other rules and of the oracle of requests
RATE = 1  # which of the track's budgets planners of requests play at


@dataclass(frozen=True)
class Contest:
    """Policies that are compared.

    Attributes:
        place: where; the ground truth as it is.
        entries: who, keep and the oracle among them.
        keep: name of the policy that is 0.
        oracle: name of the policy that is 1.
        oracle_sessions: that the oracle plays, the first ones of the same; None for all.
        missing: names of policies whose runs are not there.
        ablations: names of policies that play the ground truth as it is only.
    """

    place: Place
    entries: tuple[Entry, ...]
    keep: str
    oracle: str
    oracle_sessions: int | None = None
    missing: tuple[str, ...] = ()
    ablations: tuple[str, ...] = ()

    @property
    def contestants(self) -> tuple[Entry, ...]:
        """Entries that also play shifted and learned users."""
        return tuple(entry for entry in self.entries if entry.policy not in self.ablations)


def track_module(track: str) -> Any:
    """Return the module of a track; InputError if there is none."""
    if track not in TRACKS:
        raise InputError(f"unknown track {track!r}; allowed: {', '.join(TRACKS)}")
    try:
        return importlib.import_module(f"{MODULES}.{track}_track")
    except ModuleNotFoundError as error:
        if error.name != f"{MODULES}.{track}_track":
            raise
        raise InputError(f"the track {track!r} is not part of this version") from None


def tracks() -> tuple[str, ...]:
    """Return the tracks of this version."""
    return tuple(track for track in TRACKS if find_spec(f"{MODULES}.{track}_track"))


# --- who takes part -------------------------------------------------------------------------------------


def names_of(track: str) -> tuple[str, ...]:
    """Names of the policies of a track: keep first, the oracle last."""
    module = track_module(track)
    if track == "mix":
        oracle = next(name for name, (run, _) in module.PLANNERS.items() if run is None)
        return (module.KEEP, module.FIXED, *(name for name in module.PLANNERS if name != oracle), oracle)
    if track == "request":
        rules, learners = (
            ("keep", "one-extra", "interval", "chance", "intent"),
            ("pointer-ppo", "request-dqn"),
        )
        return (*rules, *module.ESTIMATORS, module.WAITING, *learners, "oracle")
    others = [name for name in module.POLICIES if name not in ("keep", "oracle")]
    return ("keep", *others, "oracle")


def is_own(name: str) -> bool:
    """Whether a policy is the user's own: module:Class, or the folder of a trained run."""
    return ":" in name or Path(name).is_dir()


def chosen(track: str, policies: Sequence[str]) -> tuple[str, ...]:
    """Names that play a track: those asked for, or all if none is; one's own join; keep and oracle always."""
    keep, *others, oracle = names_of(track)
    own = [name for name in policies if is_own(name)]
    named = others if len(own) == len(policies) else [name for name in policies if name in others]
    return tuple(dict.fromkeys((keep, *named, *own, oracle)))


def check_policies(tracks: Sequence[str], policies: Sequence[str]) -> None:
    """Raise InputError if a policy plays none of the tracks."""
    known = list(dict.fromkeys(name for track in tracks for name in names_of(track)))
    for name in policies:
        if not is_own(name) and name not in known:
            allowed = f"{', '.join(known)}, module:Class, or a run's folder"
            raise InputError(f"unknown policy {name!r}; allowed: {allowed}")


def make_own(place: Place, name: str) -> Policy:
    """Return a policy of the user's own."""
    return find_policy(name, place.env_id, place.scenario, place.users, place.seed)


def own_entry(name: str) -> Entry:
    """Entry of one's own policy; the content of its file decides, so a changed one plays anew."""
    if Path(name).is_dir():
        return Entry(name, make_own, {"name": name}, (Path(name),))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = find_spec(name.partition(":")[0])
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"policy {name!r}: cannot import {name.partition(':')[0]!r}")
    return Entry(name, make_own, {"name": name}, (Path(spec.origin),))


# --- contests -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a contest is made for.

    Attributes:
        track: of :data:`TRACKS`.
        scenario: that the track knows.
        sizes: of the track.
        seeds: training seeds 0, 1, ...
        policies: asked for, see :func:`chosen`.
        runs: folder of the track's runs, trained there or shipped.
        cache: folder of sessions played and prices found.
    """

    track: str
    scenario: str
    sizes: Any
    seeds: int
    policies: tuple[str, ...]
    runs: Path
    cache: Path

    def entries(self) -> list[Entry]:
        """All that should play but one's own, the oracle last; those whose runs are missing, too."""
        names = [name for name in chosen(self.track, self.policies) if not is_own(name)]
        find = {"mix": _mix, "request": _request, "joint": _joint}.get(self.track, _listed)
        return find(self, names)

    def run_folders(self) -> list[Path]:
        """Runs that these policies play from."""
        return list(dict.fromkeys(run for entry in self.entries() for run in entry.files))


def is_trained(run: Path) -> bool:
    """Whether a run has been finished."""
    return is_finished(run)


def train(setting: Setting, workers: int, progress: Progress | None) -> None:
    """Train what is missing, and as little else as the track allows."""
    module, place = track_module(setting.track), (setting.runs, setting.scenario, setting.sizes)
    names = [name for name in chosen(setting.track, setting.policies) if not is_own(name)]
    if setting.track == "joint":
        needed = module.needed(names, setting.scenario)
        module.train_all(*place, range(setting.seeds), needed, workers, progress)
    elif setting.track == "rerank":
        module.train_all(*place, module.needed(names), range(setting.seeds), workers, progress)
    else:
        module.train_all(*place, range(setting.seeds), workers, progress)


def make_contest(setting: Setting, *, workers: int = 2, progress: Progress | None = None) -> Contest:
    """Return the contest of those policies whose runs are there.

    Args:
        setting: what it is made for.
        workers: processes, where prices have to be found.
        progress: called with (done, in all, text).
    """
    module, found = track_module(setting.track), setting.entries()
    oracle = found[-1].policy
    entries = [entry for entry in found if _is_ready(entry)]
    missing = dict.fromkeys(entry.policy for entry in found if entry not in entries)
    place = Place(
        module.ENV_ID,
        setting.scenario,
        "synthetic",
        setting.sizes.sessions,
        # As the tracks play themselves, so that nothing is played twice.
        seed=module.SEED if setting.track == "request" else 0,
        by_position=setting.track == "rerank",
    )
    if setting.track == "mix":
        entries = _priced(setting, place, entries, workers, progress)
    entries += [own_entry(name) for name in setting.policies if is_own(name)]
    fewer = getattr(setting.sizes, "oracle_sessions", None)
    ablations = (*module.ABLATIONS, module.NO_PAGE_VIEWS) if setting.track == "joint" else ()
    return Contest(place, tuple(entries), found[0].policy, oracle, fewer, tuple(missing), ablations)


def _is_ready(entry: Entry) -> bool:
    """Whether its runs are finished, and its price is known if it has one."""
    return all(map(is_trained, entry.files)) and entry.arguments.get("price", 0.0) is not None


def _listed(setting: Setting, names: Sequence[str]) -> list[Entry]:
    return list(track_module(setting.track).entries(setting.runs, range(setting.seeds), names))


def _joint(setting: Setting, names: Sequence[str]) -> list[Entry]:
    track = track_module(setting.track)
    return list(track.entries(setting.runs, range(setting.seeds), names, setting.scenario))


def _mix(setting: Setting, names: Sequence[str]) -> list[Entry]:
    track = track_module(setting.track)
    rules = {
        track.KEEP: Entry(track.KEEP, track.make_keep),
        track.FIXED: Entry(track.FIXED, track.make_fixed, {"every": track.EVERY}),
    }
    planned = [name for name in names if name in track.PLANNERS]
    found = [rules[name] for name in names if name in rules]
    return found + track.planner_entries(setting.runs, range(setting.seeds), planned)


def _priced(
    setting: Setting, place: Place, entries: list[Entry], workers: int, progress: Progress | None
) -> list[Entry]:
    """Insertion policies at equal share, at prices that are shipped or found."""
    track = track_module(setting.track)
    free = [entry for entry in entries if "price" in entry.arguments]
    if (setting.runs / PRICES).is_file():
        prices = read_json(setting.runs / PRICES)
        priced = [track.at_price(entry, prices[entry.policy]) for entry in free]
    else:
        fixed = Entry(track.FIXED, track.make_fixed, {"every": track.EVERY})
        where = replace(place, sessions=setting.sizes.price_sessions)
        priced = track.find_prices(
            free, fixed, where, setting.cache / "prices", workers=workers, progress=progress
        )
    return [entry for entry in entries if entry not in free] + priced


def _request(setting: Setting, names: Sequence[str]) -> list[Entry]:
    track, seeds = track_module(setting.track), range(setting.seeds)
    page, rate = Scenario.load(setting.scenario).config.page_size, setting.sizes.rates[RATE]
    numbers = {"interval": max(1, round(INTERVAL * page)), "chance": CHANCE, "intent": INTENT}
    found = []
    for name in names:
        if name == "oracle":
            found.append(Entry(f"true-effect {TRUE_EFFECT:g}", track.make_oracle, {"price": TRUE_EFFECT}))
        elif name in track.ESTIMATORS:
            for seed in seeds:
                run = run_folder(setting.runs, name, seed)
                arguments = {"run": str(run), "price": _price_of(track, run, rate)}
                found.append(Entry(f"{name} {rate:g}", track.make_planner, arguments, (run,), seed))
        elif name == track.WAITING:
            for seed in seeds:
                run = run_folder(setting.runs, track.PLANNER, seed)
                found += track.waiting_entries(run, [setting.sizes.waiting_rates[RATE]], seed)
        elif name in (track.PPO, track.request_dqn.AGENT):
            for seed in seeds:
                run = run_folder(setting.runs, name, seed)
                found.append(Entry(name, track.make_learner, {"run": str(run)}, (run,), seed))
        else:
            number = numbers.get(name)
            arguments = {"kind": name} | ({} if number is None else {"number": number})
            policy = name if number is None else f"{name} {number:g}"
            found.append(Entry(policy, track.make_baseline, arguments))
    return found


def _price_of(track: Any, run: Path, rate: float) -> float | None:
    """Price at which an estimator spends a share of the moments; None while it is not trained."""
    if not is_trained(run):
        return None
    return track.price_of(np.array(read_run(run).record["quantiles"]), rate)
