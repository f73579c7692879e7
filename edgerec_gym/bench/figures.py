"""Figures of policies that have played the same sessions: means, paired differences, shares of a gap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgerec_gym.bench.mix.prices import cards_seen
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.evaluation.play import Sessions

Played = dict[tuple[str, int | None], Sessions]  # by (policy, training seed)
Values = Callable[[str], np.ndarray]


def values_of(played: Played, policy: str) -> Values:
    """Function from the name of a figure to its values (seeds, sessions); "cards" counts all types."""
    seeds = [sessions for (name, _), sessions in played.items() if name == policy]
    return lambda figure: np.stack([cards_seen(s) if figure == "cards" else s[figure] for s in seeds])


def mean(values: np.ndarray) -> Interval:
    """Mean of values (seeds, sessions)."""
    return seeds_interval([values], lambda m: m[..., 0])


def difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """Mean of `one` less that of `other`, both (seeds, sessions), paired by session."""
    return seeds_interval([one, other], lambda m: m[..., 0] - m[..., 1])


def ratio(one: np.ndarray, other: np.ndarray) -> Interval:
    """Mean of `one` over that of `other`, both (seeds, sessions)."""
    return seeds_interval([one, other], lambda m: m[..., 0] / m[..., 1])


def gap_closed(own: np.ndarray, keep: np.ndarray, oracle: np.ndarray) -> Interval:
    """Share of the way from keep to the oracle, of values (seeds, sessions)."""
    return seeds_interval([own, keep, oracle], lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1]))


def exploitation_gap(
    learned: np.ndarray, true: np.ndarray, kept_learned: np.ndarray, kept_true: np.ndarray
) -> Interval:
    """How much more learned users promise of a policy than the ground truth gives, beyond that of keep.

    All are (seeds, sessions); of the true ones the first sessions, as many as learned users played.
    """
    n_sessions = learned.shape[1]
    true, kept_true = true[:, :n_sessions], kept_true[:, :n_sessions]
    return seeds_interval(
        [learned, true, kept_learned, kept_true], lambda m: m[..., 0] / m[..., 1] - m[..., 2] / m[..., 3]
    )
