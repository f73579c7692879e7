"""Policies of a track that are compared: they play the same sessions, between keep and the track's oracle."""

from __future__ import annotations

from dataclasses import dataclass

from edgerec_gym.bench.setting import Setting, own_entry
from edgerec_gym.bench.track import is_own
from edgerec_gym.evaluation.cache import Entry, Place, Progress
from edgerec_gym.runs import is_finished


@dataclass(frozen=True)
class Comparison:
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


def make_comparison(setting: Setting, *, workers: int = 2, progress: Progress | None = None) -> Comparison:
    """Return the comparison of those policies whose runs are there.

    Args:
        setting: what it is made for.
        workers: processes, where the track has something to prepare.
        progress: called with (done, in all, text).
    """
    track, found = setting.track, setting.entries()
    entries = [entry for entry in found if _is_ready(entry)]
    missing = dict.fromkeys(entry.policy for entry in found if entry not in entries)
    place = Place(
        track.env_id,
        setting.scenario,
        "synthetic",
        setting.sizes.sessions,
        seed=track.seed,
        by_position=track.by_position,
    )
    if track.prepare is not None:
        entries = track.code("prepare")(setting, place, entries, workers, progress)
    entries += [own_entry(name) for name in setting.policies if is_own(name)]
    return Comparison(
        place,
        tuple(entries),
        found[0].policy,
        found[-1].policy,
        getattr(setting.sizes, "oracle_sessions", None),
        tuple(missing),
        tuple(track.code("ablations")),
    )


def _is_ready(entry: Entry) -> bool:
    """Whether its runs are finished, and its price is known if it has one."""
    return all(map(is_finished, entry.files)) and entry.arguments.get("price", 0.0) is not None
