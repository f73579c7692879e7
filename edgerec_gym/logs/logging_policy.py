"""The default logging policy: draws all three decisions at random, with known propensities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgerec_gym.compiled import random_stream as draws
from edgerec_gym.compiled.jit import cached
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch

DECISIONS = ("order", "insert", "request", "session")
REQUEST_PROBABILITY = 0.03  # per slot where a request is legal
INSERT_PROBABILITY = 0.15  # per slot where a card is legal
ORDER_PROBABILITY = 0.5  # of a uniformly drawn pool row instead of the cloud's next
# Habits that sessions draw. Focus: how strongly the order follows recent behaviour, in logits per unit of
# match. Without it, logs show neither how soon users tire of a category nor what many requests are worth.
FOCUS_STRENGTHS = (0.0, 0.0, 3.0, 12.0)
FOCUS_SHARPNESS = 4.0  # of the softmax: most draws are among the few best rows, as with greedy policies
FOCUSED_ORDER_PROBABILITY = 0.97
INSERT_PROBABILITIES = (0.0, 0.15)  # instead of INSERT_PROBABILITY
REQUEST_PROBABILITIES = (0.0, 0.03, 0.1)  # instead of REQUEST_PROBABILITY
MOMENT_PROBABILITY = 0.5  # of a request at a moment, with `moments` set


@cached()
def _uniforms(keys, slot, out):
    for row in range(keys.shape[0]):
        for j in range(out.shape[1]):
            out[row, j] = draws.uniform(keys[row], slot, draws.POLICY_DRAW, j)


class Habits(NamedTuple):
    """Habits of n sessions, each kept for the whole session; (n,) float64 each.

    Attributes:
        focus: logits per unit of match with recent behaviour; 0 = uniform rows.
        insert: probability of a card where one is legal.
        request: probability of a request where it is legal.
    """

    focus: np.ndarray
    insert: np.ndarray
    request: np.ndarray


def moment_age(config: FeedConfig) -> int:
    """Return the page age, in slots, at which a session has a moment: half the page was shown."""
    return (config.page_size + 1) // 2


def session_habits(session: np.ndarray) -> Habits:
    """Return the habits of sessions by id (n,); drawn from the id, so that readers of a log know them."""

    def draw(options: tuple[float, ...], k: int) -> np.ndarray:
        pick = [draws.below(len(options), np.uint64(i), 0, draws.POLICY_SESSION, k) for i in session]
        return np.array(options)[np.array(pick, np.int64)]

    return Habits(draw(FOCUS_STRENGTHS, 0), draw(INSERT_PROBABILITIES, 1), draw(REQUEST_PROBABILITIES, 2))


class RandomisedPolicy:
    """Cloud order with random re-rankings, insertions and requests, all with known propensities.

    At each slot: request with probability 0.03 if legal; else, with probability 0.15, a uniformly drawn
    legal card if there is one; else, with probability 0.5, a uniformly drawn pool row; else keep.
    With "session", each session has habits of its own: probabilities of cards and requests, and in half of
    the sessions a focus. Such sessions re-rank nearly always and draw the row from a sharp softmax over
    base ctr logit + focus x match with recent behaviour, much like a device that re-ranks greedily (the
    interest is that of :class:`~edgerec_gym.config.CloudConfig`, but never stale).

    Args:
        decisions: which of "order", "insert", "request" are randomised; the others keep their default.
            "session" needs all three.
        moments: maximum number of random decisions per session; only with "request" as the single decision.
            A request is then drawn, with probability 0.5, when half a page was shown (:func:`moment_age`) and
            it is legal; everything else is deterministic. Few moments keep the importance weights of whole
            sessions small, so that policies can be evaluated from the log
            (:mod:`edgerec_gym.evaluation.off_policy`). None = at every slot.

    Raises:
        InputError: unknown decision, "session" without the other three, or moments that do not fit.
    """

    name = "randomised"

    def __init__(self, decisions: Sequence[str] = DECISIONS, moments: int | None = None) -> None:
        for name in decisions:
            if name not in DECISIONS:
                raise InputError(f"cannot randomise {name!r}; allowed: {', '.join(DECISIONS)}")
        if "session" in decisions and not set(DECISIONS) <= set(decisions):
            raise InputError("cannot randomise 'session' without order, insert and request")
        self.request = REQUEST_PROBABILITY if "request" in decisions else 0.0
        self.insert = INSERT_PROBABILITY if "insert" in decisions else 0.0
        self.order = ORDER_PROBABILITY if "order" in decisions else 0.0
        self.by_session = "session" in decisions
        if moments is not None and (moments < 1 or tuple(decisions) != ("request",)):
            raise InputError(
                f"moments = {moments} must be at least 1, with only request randomised, "
                f"not {', '.join(decisions) or 'nothing'}"
            )
        self.moments = moments
        self._used = np.zeros(0, np.int64)  # moments of each session so far

    def habits(self, session: np.ndarray) -> Habits:
        """Return the habits of the sessions with these ids (n,)."""
        if self.by_session:
            return session_habits(session)
        return Habits(*(np.full(len(session), value) for value in (0.0, self.insert, self.request)))

    def draw(
        self, batch: FeedBatch, slot: int, habits: Habits
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw actions of the joint track.

        Args:
            batch: batch of the joint track.
            slot: the slot to fill.
            habits: habits of the B sessions, see :meth:`habits`.

        Returns:
            action (B,) int64; its propensity (B,) float64; the probability of a request (B,) float64;
            whether there was more than one possible action (B,) bool.
        """
        a, n_pool = batch.arrays, batch.config.pool_size
        mask = a.observation_bytes[:, a.mask_at : a.mask_at + batch.n_actions] != 0
        pool, cards = mask[:, :n_pool], mask[:, n_pool:-1]
        u = np.empty((batch.num_envs, 3))
        _uniforms(a.key, slot, u)
        focus = habits.focus
        p_request = np.where(mask[:, -1], habits.request, 0.0)
        if self.moments is not None:
            p_request = self._at_moments(batch, slot, mask[:, -1], self.moments)
        p_insert = (1 - p_request) * np.where(cards.any(axis=1), habits.insert, 0.0)
        p_order = (1 - p_request - p_insert) * np.where(focus > 0, FOCUSED_ORDER_PROBABILITY, self.order)
        p_keep = 1 - p_request - p_insert - p_order
        p_row = _row_probability(batch, pool, focus)
        row = _draw_row(p_row, u[:, 1])
        keep = pool.argmax(axis=1)
        card = n_pool + _draw_row(_uniform_over(cards), u[:, 2])
        branch = u[:, 0]
        request, insert = branch < p_request, branch < p_request + p_insert
        order = branch < p_request + p_insert + p_order
        action = np.where(request, batch.n_actions - 1, np.where(insert, card, np.where(order, row, keep)))
        placed = np.minimum(action, n_pool - 1)
        p_placed = p_order * np.take_along_axis(p_row, placed[:, None], axis=1)[:, 0]
        propensity = np.where(
            request,
            p_request,
            np.where(
                insert,
                p_insert / np.maximum(cards.sum(axis=1), 1),
                p_placed + np.where(action == keep, p_keep, 0),
            ),
        )
        return action, propensity, p_request, propensity < 1.0

    def _at_moments(self, batch: FeedBatch, slot: int, legal: np.ndarray, most: int) -> np.ndarray:
        """Return the probability of a request with limited moments, (B,) float64."""
        if slot == 0:
            self._used = np.zeros(batch.num_envs, np.int64)
        at = legal & (batch.arrays.page_age == moment_age(batch.config)) & (self._used < most)
        self._used += at
        return np.where(at, MOMENT_PROBABILITY, 0.0)


def _row_probability(batch: FeedBatch, legal: np.ndarray, focus: np.ndarray) -> np.ndarray:
    """Return the probability of each pool row if the order is drawn, (B, N)."""
    probability = _uniform_over(legal)
    focused = np.flatnonzero(focus > 0)
    if len(focused):
        interest = batch.arrays.interest[focused].astype(np.float64)
        pool = batch.observation(copy=False)["pool"][focused]
        match = (pool[:, :, : interest.shape[1]] @ interest[:, :, None])[:, :, 0]
        match /= 1 + np.linalg.norm(interest, axis=1, keepdims=True)
        ctr = np.clip(pool[:, :, interest.shape[1] + 1], 1e-6, 1 - 1e-6).astype(np.float64)
        score = FOCUS_SHARPNESS * (np.log(ctr / (1 - ctr)) + focus[focused, None] * match)
        score = np.where(legal[focused], score, -np.inf)
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        probability[focused] = weight / weight.sum(axis=1, keepdims=True)
    return probability


def _uniform_over(legal: np.ndarray) -> np.ndarray:
    """Return equal probabilities for the legal entries of each row; zeros where none is legal."""
    return legal / np.maximum(legal.sum(axis=1, keepdims=True), 1)


def _draw_row(probability: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the entry of each row that u in [0, 1) selects; 0 where all probabilities are 0."""
    total = probability.cumsum(axis=1)
    return (total > (u * total[:, -1])[:, None]).argmax(axis=1)
