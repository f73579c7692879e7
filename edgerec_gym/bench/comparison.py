"""The policies of a track that are compared on the same sessions, with keep as 0 and the oracle as 1."""

from __future__ import annotations

from dataclasses import dataclass

from edgerec_gym.bench.setting import Setting, own_entry
from edgerec_gym.bench.track import is_own
from edgerec_gym.evaluation.cache import Entry, Place, Progress
from edgerec_gym.runs import is_finished

ATTAINABLE = "attainable"  # the reference that sees only observations, in tracks that have it


@dataclass(frozen=True)
class Comparison:
    """The policies that are compared, and where.

    Attributes:
        place: the unshifted ground truth that they play.
        entries: the policies, including keep and the oracle.
        keep: name of the policy that scores 0.
        oracle: name of the policy that scores 1.
        oracle_sessions: number of sessions that the oracle plays, the first of the shared ones; None for all.
        missing: names of policies whose runs do not exist.
        ablations: names of policies that play only the unshifted ground truth.
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
        """The entries that also play shifted and learned users."""
        return tuple(entry for entry in self.entries if entry.policy not in self.ablations)


def make_comparison(setting: Setting, *, workers: int = 2, progress: Progress | None = None) -> Comparison:
    """Return the comparison of the policies whose runs exist.

    Args:
        setting: track and scenario to compare on.
        workers: number of processes for the track's preparation, if it has any.
        progress: called with (done, total, text).
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
    """Whether an entry's runs are finished and its price, if it needs one, is known."""
    return all(map(is_finished, entry.files)) and entry.arguments.get("price", 0.0) is not None
