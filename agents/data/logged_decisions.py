"""Pair the random decisions of a log with another policy's choices, for off-policy estimates.

A decision is a page request, or in an imported log with propensities the item of a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.daily_items import DailyItems, DailyLog, has_item_propensities
from edgerec_gym.agents.data.log_stream import log_tables
from edgerec_gym.agents.data.logged_observations import TrackLog, answer_rewards, step_rewards
from edgerec_gym.agents.perception.live_interest import LiveInterest
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.off_policy import LoggedDecisions
from edgerec_gym.logs.schema import OPTIONAL, SCHEMA
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation, Policy

TRACK, ITEM_TRACK = "request", "rerank"
BLOCK = 4096  # observations per call of a stateless policy
ROWS = 256  # sessions per call of a stateful policy, whose first call fixes the batch size
COLUMNS = [name for name in (*SCHEMA.names, *OPTIONAL) if name != "time"]
Progress = Callable[[int, int], None]


def action_probabilities(policy: Policy, observation: Observation) -> np.ndarray:
    """Return the probability of every action, (B, A) float64.

    A stochastic policy has a method `probabilities(observation)`; any other is treated as deterministic.
    """
    if hasattr(policy, "probabilities"):
        return np.asarray(policy.probabilities(observation), np.float64)
    found = np.zeros(observation["action_mask"].shape)
    found[np.arange(len(found)), np.asarray(policy.act(observation))] = 1.0
    return found


def decision_features(observation: Observation, config: FeedConfig) -> np.ndarray:
    """Return covariates of a request's value, (B, d) float64: context, user, pool, match with behaviour."""
    score = LiveInterest(item_columns=config.item_columns).scores(observation)
    left = (observation["pool"] != 0).any(axis=2)
    ctr = observation["pool"][:, :, config.embedding_size + 1]
    count = np.maximum(left.sum(axis=1), 1)
    best = np.where(left, score, -np.inf).max(axis=1)
    shown = np.column_stack(
        [
            np.where(left, score, 0).sum(axis=1) / count,
            np.where(np.isfinite(best), best, 0.0),
            np.where(left, ctr, 0).sum(axis=1) / count,
            np.where(left, ctr, 0).max(axis=1),
            observation["exposures"][:, :, -7].mean(axis=1),
        ]
    )
    return np.concatenate([observation["context"], observation["user"], shown], axis=1, dtype=np.float64)


def read_decisions(
    reader: LogReader,
    policy: Policy,
    *,
    at_moments: bool = False,
    progress: Progress | None = None,
) -> LoggedDecisions:
    """Read the random decisions of a log and what a policy would have done.

    These are the requests of a log of this package (policies of EdgeFeedRequest-v0), or the items of an
    imported log with propensities (policies of EdgeFeedRerank-v0). Of items, only the probability of the
    logged one is known, so there are two actions: 0 = that item, 1 = any other one. The candidates of a page
    are the items of its day (:class:`~edgerec_gym.agents.data.daily_items.DailyItems`).

    The policy sees every session slot by slot, as the device saw it. Memory is bounded by a chunk of the log.

    Args:
        reader: a log in which only requests were randomised (`edgerec collect --randomise request`), or an
            imported one with propensities.
        policy: the policy to evaluate; one with `stateless` is called in any order.
        at_moments: evaluate the policy only at the log's random decisions; elsewhere, keep the logged action.
        progress: called with (sessions read, total).

    Raises:
        InputError: if propensities are missing, order or cards were randomised too, the policy acts where the
            log never does, or :class:`~edgerec_gym.evaluation.off_policy.LoggedDecisions` rejects the data.
    """
    items = DailyItems.of(reader) if has_item_propensities(reader) else None
    parts: list[dict[str, np.ndarray]] = []
    done = 0
    for table in log_tables(reader, None, lambda ids: np.ones(len(ids), np.bool_), COLUMNS):
        part = _chunk(reader, table, policy, at_moments, items)
        _check_support(LoggedDecisions(**part), policy, items is not None)
        part["session"] = part["session"] + done
        done += len(part["before"])
        parts.append(part)
        if progress:
            progress(done, reader.sessions)
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return LoggedDecisions(**joined)


def _check_support(decisions: LoggedDecisions, policy: Policy, of_items: bool) -> None:
    bad = decisions.unsupported()
    if bad is not None:
        more = decisions.target[bad, 1] > decisions.logging[bad, 1]
        does = "shows another item" if of_items else "requests a page" if more else "keeps"
        raise InputError(
            f"{decisions.name(bad)}: policy {policy.name!r} {does} where the log never does (propensity 0), "
            "so the log cannot judge it; --at-moments judges it at the log's random decisions only"
        )


def _chunk(
    reader: LogReader, table: pa.Table, policy: Policy, at_moments: bool, items: DailyItems | None
) -> dict[str, np.ndarray]:
    """Return the fields of LoggedDecisions for some sessions."""
    config = reader.config
    sessions = LoggedSessions.from_table(table, config, reader.catalog)
    log: TrackLog
    if items is None:
        log, logging = TrackLog(table, sessions, config, TRACK), _logging(reader, table)
        action, reward = table["request"].to_numpy().astype(np.int64), step_rewards(table, sessions, config)
        logged = None
    else:
        log, logging = DailyLog(table, sessions, config, ITEM_TRACK, items), _item_logging(reader, table)
        action, reward = np.zeros(len(logging), np.int64), answer_rewards(sessions, config)
        logged = log.pages.pool_row

    def probabilities(rows: np.ndarray, slot: np.ndarray) -> np.ndarray:
        found = action_probabilities(policy, log.observations(session[rows], slot))
        if logged is None:
            return found
        same = found[np.arange(len(rows)), logged[rows]]
        return np.column_stack([same, 1 - same])

    length = np.diff(sessions.starts)
    session = np.repeat(np.arange(len(length)), length)
    slot = np.arange(len(session)) - sessions.starts[session]
    drawn = (logging > 0).all(axis=1)
    target = logging.copy()
    if getattr(policy, "stateless", False):
        rows = np.flatnonzero(drawn) if at_moments else np.arange(len(session))
        for at in range(0, len(rows), BLOCK):
            some = rows[at : at + BLOCK]
            target[some] = probabilities(some, slot[some])
    else:
        _ask_slot_by_slot(sessions.starts, policy, probabilities, target)
    if at_moments:
        target[~drawn] = logging[~drawn]
    # A deterministic decision is uninformative, unless the policy disagrees: then it lacks support.
    rows = np.flatnonzero(drawn | (np.abs(target - logging).max(axis=1) > 0))
    total = np.concatenate([[0.0], np.cumsum(reward)])
    following = np.append(rows[1:], len(session))
    end = np.minimum(following, sessions.starts[session[rows] + 1])
    first = sessions.starts[1:].copy()
    np.minimum.at(first, session[rows], rows)
    observed = [
        decision_features(log.observations(session[some], slot[some]), config)
        for some in (rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK))
    ]
    return {
        "session": session[rows],
        "action": action[rows],
        "logging": logging[rows],
        "target": target[rows],
        "reward": total[end] - total[rows],
        "before": total[first] - total[sessions.starts[:-1]],
        "features": np.concatenate(observed) if observed else np.zeros((0, 0)),
        "names": np.array([f"session {sessions.session[session[r]]}, slot {slot[r]}" for r in rows], np.str_),
    }


def _logging(reader: LogReader, table: pa.Table) -> np.ndarray:
    """Return the probability of keep and request per slot, (P, 2) float64; InputError if more was random."""
    for name in ("request_propensity", "propensity"):
        if table[name].null_count:
            raise InputError(
                f"{reader.folder}: propensities are missing (column {name}); off-policy estimates need the "
                "log of a stochastic policy: edgerec collect --randomise request"
            )
    probability = table["request_propensity"].to_numpy()
    wrong = ~((probability >= 0) & (probability <= 1))
    if wrong.any():
        raise InputError(f"{reader.folder}: request_propensity is {probability[wrong][0]}; allowed: 0 to 1")
    logging = np.column_stack([1 - probability, probability])
    of_action = np.where(table["request"].to_numpy(), probability, 1 - probability)
    other = np.flatnonzero(
        (np.abs(table["propensity"].to_numpy() - of_action) > 1e-9) | (table["card_type"].to_numpy() > 0)
    )
    if len(other):
        session, slot = (table[name][int(other[0])].as_py() for name in ("session", "slot"))
        raise InputError(
            f"{reader.folder}: session {session}, slot {slot}: more than the request was randomised there; "
            "off-policy estimates need a log whose order and cards are the cloud's: "
            "edgerec collect --randomise request"
        )
    return logging


def _item_logging(reader: LogReader, table: pa.Table) -> np.ndarray:
    """Return the probabilities of the logged item and of any other one, (P, 2) float64."""
    probability = table["propensity"].fill_null(np.nan).to_numpy()
    wrong = np.flatnonzero(~((probability > 0) & (probability <= 1)))
    if len(wrong):
        session, slot = (table[name][int(wrong[0])].as_py() for name in ("session", "slot"))
        raise InputError(
            f"{reader.folder}: session {session}, slot {slot}: propensity is {probability[wrong[0]]}; "
            "allowed: above 0, up to 1"
        )
    return np.column_stack([probability, 1 - probability])


def _ask_slot_by_slot(
    starts: np.ndarray,
    policy: Policy,
    probabilities: Callable[[np.ndarray, np.ndarray], np.ndarray],
    target: np.ndarray,
) -> None:
    """Fill in the probabilities (P, 2) of a stateful policy; ended sessions repeat their last slot."""
    length = np.diff(starts)
    for first in range(0, len(length), ROWS):
        row = np.arange(first, first + ROWS)
        session = np.minimum(row, len(length) - 1)  # surplus rows repeat the last session
        policy.reset(np.ones(ROWS, np.bool_))
        for slot in range(length[session].max()):
            at = np.minimum(slot, length[session] - 1)
            found = probabilities(starts[session] + at, at)
            live = (row < len(length)) & (length[session] > slot)
            target[starts[session[live]] + slot] = found[live]
