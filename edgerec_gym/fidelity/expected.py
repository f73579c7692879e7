"""Predictions of learned users for logged sessions: the run-time graph, fed with the logged behaviour."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym.answers import (
    BUY,
    CLICK,
    DWELL_BUCKETS,
    FOCUSED,
    LEAVE,
    PAGE_SUMMARY,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    RESPONSE_SIZE,
    WINDOW,
    Focus,
)
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.evaluation.ranking import auc
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.dataset import padded
from edgerec_gym.simulator.losses import FLOOR_LEVEL, calibration_error, reliability
from edgerec_gym.users.learned import BLOCK, LearnedUsers
from edgerec_gym.users.learned_layout import (
    BUY_BY_AT,
    DWELL_AT,
    LEAVE_AT,
    N_ACTIONS,
    N_ANSWER,
    N_LOGITS,
    VIEW_AT,
)

# Event -> what a log must record for it; None if any log does.
EVENTS = {
    "click": None,
    "purchase": "page_view_actions",
    "leave": "leave",
    "long_look": "exposure_actions",
    "long_page_view": "page_view_duration",
}
LONG_LOOK, LONG_PAGE_VIEW = 4, 4  # least dwell bucket: 4 s on an exposed card, 20 s on an opened one
FLOOR_DRAWS = 200


class _Followers(LearnedUsers):
    """Learned users whose members all follow a logged session."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario, uncertainty=True)
        self.logits = np.zeros((self.simulator.members, BLOCK, N_LOGITS), np.float32)

    def begin(self, user: np.ndarray) -> None:
        """Start sessions of users with features (B, U)."""
        rows = np.arange(len(user))
        self.reset(rows, rows.astype(np.uint64), 0)
        self._memory.user[:] = user

    def answer_with(self, active: np.ndarray, actions: np.ndarray) -> None:
        """Replace the drawn answers in the memory of the `active` (B,) rows by `actions` (B, 19)."""
        answer = np.zeros((len(actions), N_ANSWER), np.float32)
        answer[:, :DWELL_BUCKETS] = _one_hot(actions[:, 0], DWELL_BUCKETS)
        answer[:, DWELL_BUCKETS : DWELL_BUCKETS + N_ACTIONS] = actions[:, :N_ACTIONS]
        opened = _one_hot(actions[:, PAGE_VIEW], PAGE_VIEW_BUCKETS) * actions[:, CLICK, None]
        answer[:, DWELL_BUCKETS + N_ACTIONS :] = opened
        self._memory.last[active, -N_ANSWER:] = answer[active]

    def ordered(self, n: int) -> np.ndarray:
        """Return the rows of the block that was answered last, (n,)."""
        return self._memory.order[:n].copy()

    def click_probability(self) -> np.ndarray:
        """Return the click probability of every member, (M, B)."""
        return self._memory.click_probability.reshape(-1, self._memory.n_sessions)

    def leave_by_answer(self, rows: np.ndarray) -> np.ndarray:
        """Return what the answers in the memory of `rows` (n,) add to the logits of leaving, (M, n)."""
        return self.simulator.networks.leave_by_answer @ self._memory.last[rows, -N_ANSWER:].T

    def _run(self, member: int, worker: int, n: int) -> None:
        super()._run(member, worker, n)
        self.logits[member, :n] = self._blocks[worker].logits[:n]


def replay(scenario: Scenario, sessions: LoggedSessions) -> dict[str, np.ndarray]:
    """Let the learned users follow logged sessions and predict each slot from the behaviour before it.

    Returns:
        By event of :data:`EVENTS`, the probability (N,) float64 at the answered slots of all sessions in
        turn, averaged over the members. Clicks, purchases (click and buy) and long looks are predicted before
        anything of the slot is known, leaving given the slot's answer, a long page view given a click.
    """
    parts = []
    for first in range(0, len(sessions), BLOCK):
        index = np.arange(first, min(first + BLOCK, len(sessions)))
        # Users serve one block each: they are allocated once.
        parts.append(_replay_block(_Followers(scenario), scenario, sessions, index))
    return {event: np.concatenate([part[event] for part in parts]) for event in EVENTS}


def _replay_block(
    users: _Followers, scenario: Scenario, sessions: LoggedSessions, index: np.ndarray
) -> dict[str, np.ndarray]:
    size, length = len(index), sessions.answered[index]
    users.allocate(size, scenario.config, Workers(size, 1))
    users.begin(sessions.user[index])
    expected = {event: np.zeros((size, length.max(initial=0))) for event in EVENTS}
    if length.max(initial=0) == 0:
        return {event: np.zeros(0) for event in EVENTS}
    batch = padded(sessions, index, np.ones(size))
    cards, context, actions = batch.cards.numpy(), batch.context.numpy(), batch.actions.numpy()
    response, items = np.zeros((size, RESPONSE_SIZE), np.float32), np.zeros((size, WINDOW), np.int32)
    keys = np.arange(size, dtype=np.uint64)
    seen, pages = np.zeros_like(cards[:, :WINDOW]), np.zeros((size, WINDOW, len(PAGE_SUMMARY)), np.float32)
    focus = Focus(np.zeros(size, np.bool_), seen, items, context[:, 0].copy(), keys, pages)
    for t in range(length.max()):
        focus.active[:] = t < length
        focus.cards[:], focus.context[:] = cards[:, t : t + WINDOW], context[:, t]
        focus.pages[:, FOCUSED] = batch.page[:, t].numpy()
        users.respond(focus, response)
        users.answer_with(focus.active, actions[:, t])
        rows = users.ordered(int(focus.active.sum()))
        logits = users.logits[:, : len(rows)].astype(np.float64)
        click = users.click_probability()[:, rows]
        view = _softmax(logits[:, :, VIEW_AT : VIEW_AT + PAGE_VIEW_BUCKETS])
        buy = _sigmoid(logits[:, :, BUY_BY_AT : BUY_BY_AT + PAGE_VIEW_BUCKETS])
        dwell = _softmax(logits[:, :, DWELL_AT : DWELL_AT + DWELL_BUCKETS])
        by_member = {
            "click": click,
            "purchase": click * (view * buy).sum(2),
            "leave": _sigmoid(logits[:, :, LEAVE_AT] + users.leave_by_answer(rows)),
            "long_look": dwell[:, :, LONG_LOOK:].sum(2),
            "long_page_view": view[:, :, LONG_PAGE_VIEW:].sum(2),
        }
        for event, probability in by_member.items():
            expected[event][rows, t] = probability.mean(0)
    answered = np.arange(length.max()) < length[:, None]
    return {event: values[answered] for event, values in expected.items()}


def event_figures(
    scenario: Scenario, sessions: LoggedSessions, unidentified: frozenset[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score the predictions of learned users on logged sessions.

    Args:
        scenario: a scenario with learned users.
        sessions: sessions held out of their fit.
        unidentified: what the log does not record; events that need it are left out.
        seed: seed of the floors.

    Returns:
        By event: `auc` (null without both outcomes); `log_loss`, and `log_loss_constant`, that of always
        predicting the average; `ece` (expected calibration error), and `ece_floor`, its 95th percentile for
        perfectly calibrated users; `weak`, whether `ece` exceeds twice the floor; `rate`, `rate_predicted`,
        `slots`, and the curve `reliability`.
    """
    expected = replay(scenario, sessions)
    actions = sessions.actions[sessions.answered_rows(np.arange(len(sessions)))]
    bucket = np.rint(actions * (DWELL_BUCKETS - 1))
    click = actions[:, CLICK] > 0
    happened = {
        "click": click,
        "purchase": click & (actions[:, BUY] > 0),
        "leave": actions[:, LEAVE] > 0,
        "long_look": bucket[:, 0] >= LONG_LOOK,
        "long_page_view": bucket[:, PAGE_VIEW] >= LONG_PAGE_VIEW,
    }
    rng = np.random.default_rng(seed)
    figures = {}
    for event, needs in EVENTS.items():
        where = click if event == "long_page_view" else np.ones(len(click), np.bool_)
        if needs not in unidentified and where.any():
            figures[event] = _figures(expected[event][where], happened[event][where], rng)
    return figures


def _figures(probability: np.ndarray, happened: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    curve = reliability(probability, happened)
    error = calibration_error(curve)
    floor = np.quantile(
        [
            calibration_error(reliability(probability, rng.random(len(probability)) < probability))
            for _ in range(FLOOR_DRAWS)
        ],
        FLOOR_LEVEL,
    )
    both = bool(happened.any() and not happened.all())
    return {
        "auc": auc(probability, happened) if both else None,
        "log_loss": _log_loss(probability, happened),
        "log_loss_constant": _log_loss(np.full(len(happened), happened.mean()), happened),
        "ece": error,
        "ece_floor": float(floor),
        "weak": bool(error > 2 * floor),
        "rate": float(happened.mean()),
        "rate_predicted": float(probability.mean()),
        "slots": len(happened),
        "reliability": curve,
    }


def _log_loss(probability: np.ndarray, happened: np.ndarray) -> float:
    p = np.clip(probability, 1e-9, 1 - 1e-9)
    return float(-np.log(np.where(happened, p, 1 - p)).mean())


def _one_hot(value: np.ndarray, levels: int) -> np.ndarray:
    """Return levels (n,), stored as level / (levels - 1), one-hot as (n, levels)."""
    return np.eye(levels, dtype=np.float32)[np.rint(value * (levels - 1)).astype(np.int64)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
