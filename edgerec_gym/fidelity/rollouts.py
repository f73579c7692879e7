"""Rollouts of learned users compared with logged sessions: distances of distributions, and their floors.

All compared quantities are whole numbers of slots, clicks or buckets, so a sample is one row of counts per
session. On counts, Kolmogorov-Smirnov and Wasserstein distances are sums, and equal those of scipy.stats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from edgerec_gym.answers import CLICK, DWELL_BUCKETS, PAGE_AGE, SLOT
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import RESPONSE_PREFIX
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.collect import SESSIONS_PER_PART, log_batch
from edgerec_gym.logs.logging_policy import RandomisedPolicy
from edgerec_gym.logs.sessions import LoggedSessions, split_sessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.losses import FLOOR_LEVEL
from edgerec_gym.users.learned import LearnedUsers

LEAST_SESSIONS = 20  # to compare anything
HALVES = 200  # random halves of the log for a floor
LEAST_SHARE = 0.05  # click rates leave out positions that a smaller share of sessions reaches
# Distribution -> what a log must record for it.
NEEDS = {
    "session_length": "leave",
    "clicks": None,
    "click_rate_by_slot": None,
    "click_rate_by_page_age": "position",
    "dwell": "exposure_actions",
    "click_gap": None,
    "card_type": "cards",
}
NOMINAL = ("card_type",)


class LogSample(NamedTuple):
    """Sessions as arrays, and the log table they come from, with one row for each of the same slots."""

    sessions: LoggedSessions
    table: pa.Table


def held_out(reader: LogReader, scenario: Scenario, most: int, whole: bool = False) -> LogSample:
    """Return the first `most` of the sessions that a fit of this scenario on this log holds out.

    Args:
        reader: the log.
        scenario: a scenario whose record of the fit names the first held-out day; default: the rule of `fit`.
        most: maximum number of sessions.
        whole: use all sessions, for a log that the users never saw.

    Raises:
        InputError: too few sessions, or the log's feed or catalogue is not the scenario's.
    """
    config, other = scenario.config.to_dict(), reader.config.to_dict()
    for name, value in config.items():
        if other.get(name) != value:
            raise InputError(f"{reader.folder}: {name} is {other.get(name)!r}, but {value!r} in the scenario")
    if not np.array_equal(scenario.catalog.embeddings, reader.catalog.embeddings):
        raise InputError(f"{reader.folder}: its catalogue differs from the scenario's")
    days, keep = None, None
    if not whole:
        first_day = scenario.provenance.get("fit", {}).get("held_out_from")
        stream = split_sessions(reader, first_day)[2]
        days, keep = stream.days, stream.keep
    chosen = _spread(reader, days, keep, most) if scenario.catalog.supply is not None else None
    tables, found = [], 0
    for table in reader.batches(days=days):
        session = table["session"].to_numpy()
        kept = np.ones(len(session), np.bool_) if keep is None else keep(session)
        ids = np.unique(session[kept])
        ids = ids[: most - found] if chosen is None else ids[np.isin(ids, chosen)]
        tables.append(table.filter(pa.array(np.isin(session, ids))))
        found += len(ids)
        if found >= most:
            break
    if found < LEAST_SESSIONS:
        raise InputError(
            f"{reader.folder} has {found} held-out sessions; at least {LEAST_SESSIONS} are needed to compare"
        )
    return _played(pa.concat_tables(tables).combine_chunks(), scenario)


def _spread(
    reader: LogReader, days: list[int] | None, keep: Callable[[np.ndarray], np.ndarray] | None, most: int
) -> np.ndarray:
    """Return ids of up to `most` sessions, evenly spread, since rollouts draw visits of the whole period."""
    ids = [np.unique(table["session"].to_numpy()) for table in reader.batches(["session"], days)]
    every = np.concatenate([part if keep is None else part[keep(part)] for part in ids])
    return every[np.unique(np.linspace(0, len(every) - 1, most).astype(np.int64))]


def _played(table: pa.Table, scenario: Scenario) -> LogSample:
    sessions = LoggedSessions.from_table(table, scenario.config, scenario.catalog)
    if scenario.config.responses:
        # A fraction, such as a rating, is the probability of a yes: users answer with yes or no.
        drawn = np.random.default_rng(0).random(sessions.responses.shape) < sessions.responses
        sessions = replace(sessions, responses=drawn.astype(np.float32))
    return LogSample(sessions, table)


def simulate(
    scenario: Scenario,
    sessions: int,
    randomise: Sequence[str],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LogSample:
    """Play the policy that randomises these decisions on the learned users of a scenario.

    A scenario with logged visits plays those of the held-out period.
    """
    split = "log" if scenario.catalog.supply is None else "eval"
    size = min(sessions, SESSIONS_PER_PART)
    batch = FeedBatch(size, "joint", scenario.config, scenario.catalog, LearnedUsers(scenario), split=split)
    policy, tables = RandomisedPolicy(randomise), []
    for first in range(0, sessions, size):
        wanted = min(size, sessions - first)
        tables.append(log_batch(batch, seed * CLI_SEED_STRIDE + first, first, wanted, policy, None))
        if progress:
            progress(first + wanted, sessions)
    return _played(pa.concat_tables(tables).combine_chunks(), scenario)


class Counts(NamedTuple):
    """Counts of each value in each session, (S, K); a rate divides them by `exposures` (S, K)."""

    events: np.ndarray
    exposures: np.ndarray | None = None


def counts(played: LogSample, scenario: Scenario) -> dict[str, Counts]:
    """Count the quantities of :data:`NEEDS`, with the same K for all sessions of a scenario.

    `response_<name>` is how often a session gives a named response.
    `click_gap` is the number of slots from one click of a session to the next.
    """
    sessions, config = played.sessions, scenario.config
    most, n = config.max_slots, len(sessions)
    rows = sessions.answered_rows(np.arange(n))
    owner = np.repeat(np.arange(n), sessions.answered)
    click = sessions.actions[rows, CLICK] > 0
    slot = sessions.context[rows, SLOT].astype(np.int64)
    age = sessions.context[rows, PAGE_AGE].astype(np.int64)
    dwell = np.rint(sessions.actions[rows, 0] * (DWELL_BUCKETS - 1)).astype(np.int64)
    kind = sessions.catalog.card_type[sessions.item[rows]]
    at = np.flatnonzero(click)
    again = owner[at[1:]] == owner[at[:-1]]
    gap = (at[1:] - at[:-1])[again]
    every = np.arange(n)
    given = np.zeros((n, config.n_responses), np.int64)
    np.add.at(given, owner, sessions.responses[rows].astype(np.int64))

    def table(owner: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
        cell = owner * size + np.minimum(value, size - 1)
        return np.bincount(cell, minlength=n * size).reshape(n, size).astype(np.float64)

    return {
        "session_length": Counts(table(every, sessions.answered, most + 1)),
        "clicks": Counts(table(every, np.bincount(owner, click, n).astype(np.int64), most + 1)),
        "click_rate_by_slot": Counts(table(owner[click], slot[click], most), table(owner, slot, most)),
        "click_rate_by_page_age": Counts(
            table(owner[click], age[click], config.page_size), table(owner, age, config.page_size)
        ),
        "dwell": Counts(table(owner, dwell, DWELL_BUCKETS)),
        "click_gap": Counts(table(owner[at[1:]][again], gap, most + 1)),
        "card_type": Counts(table(owner, kind, config.n_types)),
    } | {
        RESPONSE_PREFIX + name: Counts(table(every, given[:, r], most + 1))
        for r, name in enumerate(config.responses)
    }


def compare(
    log: LogSample, simulated: LogSample, scenario: Scenario, unidentified: frozenset[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the distances between logged and simulated sessions, and the floors that chance alone sets.

    Returns:
        By distribution: `ks` and `wasserstein` (in the unit of the values; total variation for card types);
        their floors `ks_floor` and `wasserstein_floor` (95th percentile between random halves of the log);
        `weak`, whether either exceeds twice its floor; and `log` and `simulated`, each with its `mean` (of a
        rate: over all slots) and `values`, the distribution or the rate by position (null where too few
        sessions reach it).
    """
    ours, theirs = counts(log, scenario), counts(simulated, scenario)
    n = len(log.sessions)
    rng = np.random.default_rng(seed)
    halves = (rng.random((HALVES, n)).argsort(axis=1) < n // 2).astype(np.float64)
    report = {}
    for name in ours:
        if NEEDS.get(name) not in unidentified:
            report[name] = _compare(ours[name], theirs[name], halves, name in NOMINAL)
    return report


def _compare(log: Counts, simulated: Counts, halves: np.ndarray, nominal: bool) -> dict[str, Any]:
    reached = np.ones(log.events.shape[1], np.bool_)
    if log.exposures is not None:
        reached = log.exposures.sum(0) >= LEAST_SHARE * len(log.exposures)

    def shape(events: np.ndarray, exposures: np.ndarray | None) -> np.ndarray:
        """Return totals (..., K) as a distribution over values; rates are scaled to sum to 1."""
        values = events if exposures is None else events / np.maximum(exposures, 1)
        values = values * reached
        return values / np.maximum(values.sum(-1, keepdims=True), 1e-12)

    def halved(values: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        if values is None:
            return None, None
        half = halves @ values
        return half, values.sum(0) - half

    (events, other_events), (exposures, other_exposures) = halved(log.events), halved(log.exposures)
    assert events is not None and other_events is not None
    chance = _distances(shape(events, exposures), shape(other_events, other_exposures), nominal)
    totals = [
        (c.events.sum(0), None if c.exposures is None else c.exposures.sum(0)) for c in (log, simulated)
    ]
    ks, wasserstein = (float(d) for d in _distances(shape(*totals[0]), shape(*totals[1]), nominal))
    ks_floor, wasserstein_floor = (float(np.quantile(d, FLOOR_LEVEL)) for d in chance)
    return {
        "ks": ks,
        "ks_floor": ks_floor,
        "wasserstein": wasserstein,
        "wasserstein_floor": wasserstein_floor,
        "weak": bool(ks > 2 * ks_floor or wasserstein > 2 * wasserstein_floor),
        "log": _describe(*totals[0], reached),
        "simulated": _describe(*totals[1], reached),
    }


def _distances(p: np.ndarray, q: np.ndarray, nominal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the Kolmogorov-Smirnov and Wasserstein distances of distributions (..., K) over 0..K-1."""
    apart = np.abs(np.cumsum(p - q, axis=-1))
    # Nominal values are equally far apart, so their Wasserstein distance is the total variation.
    return apart.max(-1), np.abs(p - q).sum(-1) / 2 if nominal else apart.sum(-1)


def _describe(events: np.ndarray, exposures: np.ndarray | None, reached: np.ndarray) -> dict[str, Any]:
    if exposures is None:
        values = events / max(events.sum(), 1)
        return {"mean": float(values @ np.arange(len(values))), "values": values.tolist()}
    rate = events / np.maximum(exposures, 1)
    values = [
        float(r) if shown and far else None for r, shown, far in zip(rate, exposures, reached, strict=True)
    ]
    return {"mean": float(events.sum() / max(exposures.sum(), 1)), "values": values}
