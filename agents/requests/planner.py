"""When to request a page: where the score of a request exceeds its price (the budget's shadow price).

To spend B requests on N moments with effects tau, max sum z_i tau_i subject to sum z_i <= B is solved by
z_i = 1 where tau_i exceeds the (1 - B / N) quantile of tau. So every rule is a score and a price. Scores are
uplift (AdaRequest, KDD'22), outcome, change of intent, chance and the true effect. A price is fixed, or set
by a :class:`PriceController`, which spends one budget across all concurrent sessions of a service.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from edgerec_gym.agents.requests.effects import Futures
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.vector_env import EdgeFeedVectorEnv

SLOT, PAGE_AGE, PAGE_REQUESTED = (CONTEXT.index(name) for name in ("slot", "page_age", "page_requested"))
NEVER = np.inf
Score = Callable[[Observation], np.ndarray]  # observation (R, ...) -> (R,); larger favours a request


def price_of(quantiles: np.ndarray, rate: float) -> float:
    """Price at which a share `rate` of the moments is chosen.

    Args:
        quantiles: quantiles of replayed scores, evenly spaced from the smallest to the largest.
        rate: 0 = never, 1 = always.

    Raises:
        InputError: rate out of range, or quantiles that are not finite or not ascending.
    """
    quantiles = np.asarray(quantiles, np.float64)
    if len(quantiles) < 2 or not np.isfinite(quantiles).all() or (np.diff(quantiles) < 0).any():
        raise InputError("quantiles of replayed scores must be two or more finite numbers that do not fall")
    if not 0 <= rate <= 1:
        raise InputError(f"rate = {rate} must be a share of the moments, 0 to 1")
    if rate == 0:
        return NEVER
    if rate == 1:
        return -NEVER
    return float(np.interp(1 - rate, np.linspace(0, 1, len(quantiles)), quantiles))


class PriceController:
    """Moves the price so that a service spends a budget of requests per tick, whatever the traffic.

    The price is set before the scores of a tick are known: it is the quantile of earlier ticks' scores that
    would spend the budget on as many moments as the last tick had. A surplus or deficit is paid back over the
    next `recover` ticks, so total spending follows the budget even when traffic jumps.

    Args:
        budget: requests per tick for all sessions together, at least 0; 0 = never.
        quantiles: quantiles of replayed scores, for the first tick.
        recover: ticks over which a difference is paid back.
        window: ticks whose scores are remembered.
        most: maximum requests in one tick, as a multiple of the budget; the best ones are granted.

    Attributes:
        spent: requests so far.
        allowed: budget so far.
        price: price of the last tick.
    """

    def __init__(
        self,
        budget: float,
        quantiles: np.ndarray,
        *,
        recover: int = 4,
        window: int = 2,
        most: float = 1.5,
    ) -> None:
        if not np.isfinite(budget) or budget < 0:
            raise InputError(f"budget = {budget} requests a tick must be a number of at least 0")
        if recover < 1 or window < 1 or not most >= 1:
            raise InputError(f"recover = {recover}, window = {window} and most = {most} must be at least 1")
        price_of(quantiles, 0.5)
        self.budget, self.recover, self.most = budget, recover, most
        self.spent, self.allowed = 0, 0.0
        self._recent: deque[np.ndarray] = deque([np.asarray(quantiles, np.float64)], maxlen=window)
        self.price = NEVER
        self._moments = 0

    def grant(self, scores: np.ndarray) -> np.ndarray:
        """Choose among the moments of one tick: scores (n,) -> (n,) bool."""
        moments = self._moments or len(scores)
        owed = self.allowed - self.spent
        target = max(0.0, self.budget + owed / self.recover) if self.budget else 0.0
        rate = min(1.0, target / max(moments, 1))
        if rate in (0, 1):
            price = NEVER if rate == 0 else -NEVER
        else:
            price = float(np.quantile(np.concatenate(self._recent), 1 - rate))
        self.price = price
        chosen = scores >= price
        cap = int(np.ceil(self.most * self.budget))
        if chosen.sum() > cap:
            best = np.argsort(-scores, kind="stable")[:cap]
            chosen = np.zeros(len(scores), np.bool_)
            chosen[best] = True
        self.spent += int(chosen.sum())
        self.allowed += self.budget
        if len(scores):
            self._recent.append(np.asarray(scores, np.float64))
            self._moments = len(scores)
        return chosen


class RequestPlanner:
    """Request where the score exceeds the price, else keep; plays EdgeFeedRequest-v0 and EdgeFeed-v0.

    Args:
        name: the policy's name.
        score: score of a request now.
        price: in units of the score, or a controller.
        cool_down: minimum number of slots from one request to the next.
        per_session: maximum number of requests in one session; None = no limit.

    Raises:
        InputError: numbers out of range, or a score that is not a number.
    """

    def __init__(
        self,
        name: str,
        score: Score,
        price: float | PriceController,
        *,
        cool_down: int = 0,
        per_session: int | None = None,
    ) -> None:
        if isinstance(price, float) and np.isnan(price):
            raise InputError("price must be a number")
        if cool_down < 0 or (per_session is not None and per_session < 0):
            raise InputError(f"cool_down = {cool_down} and per_session = {per_session} must not be negative")
        self.name, self.score, self.price = name, score, price
        self.cool_down, self.per_session = cool_down, per_session
        self._slot = np.zeros(0)
        self._asked = np.zeros(0, np.int64)
        self._since = np.zeros(0, np.int64)
        self._weighed = np.zeros(0)  # (B,) last scores, NaN where none was needed

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        if len(self._slot) != len(mask):  # another batch
            self._slot, self._asked = np.zeros(len(mask)), np.zeros(len(mask), np.int64)
            self._since = np.zeros(len(mask), np.int64)
        self._slot[mask] = -1
        self._asked[mask] = 0
        self._since[mask] = self.cool_down

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64; the request is the last action of both tracks."""
        mask, slot = observation["action_mask"], observation["context"][:, SLOT]
        moves = slot != self._slot  # rows of finished sessions do not move, and cost nothing
        self._slot = slot.copy()
        able = moves & (mask[:, -1] > 0) & (self._since >= self.cool_down)
        if self.per_session is not None:
            able &= self._asked < self.per_session
        chosen = np.zeros(len(slot), np.bool_)
        rows = np.flatnonzero(able)
        self._weighed = np.full(len(slot), np.nan)
        chosen[rows] = self._choose(observation, rows)
        self._since = np.where(chosen, 0, self._since + 1)
        self._asked += chosen
        return np.where(chosen, mask.shape[1] - 1, mask.argmax(axis=1))

    def explain(self, row: int) -> Explanation:
        """Report score and price of the last call in one row; no score where no request was possible."""
        score = float(self._weighed[row])
        price = self.price.price if isinstance(self.price, PriceController) else float(self.price)
        return Explanation(uplift=None if np.isnan(score) else score, price=price)

    def _choose(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        if isinstance(self.price, float) and self.price == NEVER:
            return np.zeros(len(rows), np.bool_)
        scores = self._scores(observation, rows) if len(rows) else np.zeros(0)
        self._weighed[rows] = scores
        if np.isnan(scores).any():
            row = rows[np.isnan(scores)][0]
            raise InputError(f"policy {self.name!r}: the score of row {row} is not a number")
        if isinstance(self.price, PriceController):
            return self.price.grant(scores)
        return scores > self.price

    def _scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.score({key: values[rows] for key, values in observation.items()}))


class TrueEffectPlanner(RequestPlanner):
    """The oracle: its score is the true effect, in reward units; needs synthetic users.

    Args:
        price: in reward units.
        horizon: slots that the effect looks ahead.
        continuations: per moment, see :class:`~edgerec_gym.agents.requests.effects.Futures`.
        cool_down: as in :class:`RequestPlanner`.
    """

    def __init__(self, price: float, horizon: int = 15, continuations: int = 6, cool_down: int = 0) -> None:
        super().__init__("true-effect", _unbound, price, cool_down=cool_down)
        self.horizon, self.continuations = horizon, continuations
        self._futures: Futures | None = None

    def bind(self, env: EdgeFeedVectorEnv) -> None:
        """Bind to the environment whose latent state is read; InputError unless its users are synthetic."""
        feed = env.unwrapped
        # Keys of its own: the session's key would reveal the luck to come, which nobody can know.
        self._futures = Futures(feed.batch, (self.horizon,), self.continuations, own_key=False)
        self._weights = np.array(feed.config.reward.outcome_weights)

    def _scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        if self._futures is None:
            return _unbound(observation)
        return self._futures.effects(rows).tau[:, 0] @ self._weights


def _unbound(observation: Observation) -> np.ndarray:
    raise InputError("bind the oracle to an environment first: policy.bind(env)")


class OneExtra:
    """One extra request in the middle of each automatic page: the published 32 % refer to it."""

    name = "one-extra"
    stateless = True

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the observation holds the whole state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64; the request is the last action of both tracks."""
        mask, context = observation["action_mask"], observation["context"]
        due = (context[:, PAGE_AGE] >= 0.5) & (context[:, PAGE_REQUESTED] == 0)
        return np.where(due & (mask[:, -1] > 0), mask.shape[1] - 1, mask.argmax(axis=1))
