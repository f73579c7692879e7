"""The value of waiting: a request now forgoes a better moment of the same page.

A price alone takes the first moment that is worth it. Estimated effects grow as a page is used up and the
user's intent becomes clear, so where requests are cheap it fires too early. Requesting is an optimal stopping
problem over the age of a page: wait while the expected gain of a later moment, net of the price, exceeds the
gain of a request now. As in Longstaff & Schwartz (2001), the value of waiting is regressed on the current
estimate, backwards from the page's end, over pages of a log that the estimator was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.data.decisions import DecisionStream
from edgerec_gym.agents.data.observed_log import ObservedLog
from edgerec_gym.agents.requests.planner import Score
from edgerec_gym.agents.requests.train import effects_alone
from edgerec_gym.agents.requests.uplift_models import UpliftModel
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT

PAGE_AGE, IN_FLIGHT = CONTEXT.index("page_age"), CONTEXT.index("in_flight")
REPLAYED = 2000  # number of sessions of the log that are replayed
HALVINGS = 40  # halvings of the interval that holds the price


@dataclass(frozen=True)
class Waiting:
    """When to request within a page, at a price.

    Attributes:
        price: in units of the estimates.
        later: (A, 2) float64, value of waiting at each age of a page, net of the price, as intercept and
            slope in the current estimate.
    """

    price: float
    later: np.ndarray

    def over_later(self, estimate: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Estimates (n,) at ages (n,) int64, minus the value of waiting; request above the price."""
        intercept, slope = self.later[np.minimum(age, len(self.later) - 1)].T
        return estimate - np.maximum(0.0, intercept + slope * estimate)


class WaitingScore:
    """An estimate of a request's gain now, minus the value of waiting for a later moment of the page.

    Args:
        score: the estimate.
        waiting: the value of waiting, planned for its price.
        page_size: page size of the feed.
    """

    def __init__(self, score: Score, waiting: Waiting, page_size: int) -> None:
        self.score, self.waiting, self.page_size = score, waiting, page_size

    def __call__(self, observation: Observation) -> np.ndarray:
        """Score (R,) float64."""
        age = np.rint(observation["context"][:, PAGE_AGE] * self.page_size).astype(np.int64)
        return self.waiting.over_later(np.asarray(self.score(observation), np.float64), age)


def plan_waiting(pages: np.ndarray, rate: float) -> Waiting:
    """Find the price at which a given share of the moments is requested, and the value of waiting at it.

    Args:
        pages: (P, A) estimates at each age of replayed pages, NaN where no request was possible; a page
            gets at most one request.
        rate: share of the moments; 0 = never. If there are too few pages for it, each gets a request.

    Raises:
        InputError: rate out of range, or no estimates.
    """
    if pages.ndim != 2 or not np.isfinite(pages).any():
        raise InputError("pages must hold rows of estimates, by age, at least one of them finite")
    if not 0 <= rate <= 1:
        raise InputError(f"rate = {rate} must be a share of the moments, 0 to 1")
    if rate == 0:
        return Waiting(np.inf, np.zeros((pages.shape[1], 2)))
    low, high = float(np.nanmin(pages)) - 1.0, float(np.nanmax(pages))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _share(pages, _waiting_at(pages, middle)) > rate:
            low = middle
        else:
            high = middle
    return _waiting_at(pages, high)


def _waiting_at(pages: np.ndarray, price: float) -> Waiting:
    later = np.zeros((pages.shape[1], 2))
    value = np.zeros(len(pages))  # value of what is left of each page
    for age in range(pages.shape[1] - 1, -1, -1):
        estimate = pages[:, age]
        seen = np.isfinite(estimate)
        if not seen.any():
            continue
        later[age] = _line(estimate[seen], value[seen])
        waits = np.maximum(0.0, later[age, 0] + later[age, 1] * estimate[seen])
        now = estimate[seen] - price
        value[seen] = np.where(now > waits, now, value[seen])
    return Waiting(price, later)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least-squares intercept and slope; the slope is kept in 0..1: a larger estimate favours a request."""
    spread = float(x.var())
    slope = np.mean((x - x.mean()) * (y - y.mean())) / spread if spread > 0 else 0.0
    slope = float(np.clip(slope, 0.0, 1.0))
    return float(y.mean() - slope * x.mean()), slope


def _share(pages: np.ndarray, waiting: Waiting) -> float:
    """Share of the moments that are requested, at most one per page."""
    seen = np.isfinite(pages)
    ages = np.broadcast_to(np.arange(pages.shape[1]), pages.shape)
    with np.errstate(invalid="ignore"):
        fires = seen & (waiting.over_later(pages.ravel(), ages.ravel()).reshape(pages.shape) > waiting.price)
    return float(fires.any(axis=1).sum() / seen.sum())


def replay_pages(network: UpliftModel, stream: DecisionStream, sessions: int = REPLAYED) -> np.ndarray:
    """Estimate the effect at every moment of logged pages without a request.

    Args:
        network: an estimator that was not trained on them.
        stream: gives the sessions.
        sessions: number of sessions, from the start of the stream.

    Returns:
        (P, A) float64 by the page's age, NaN where no request was possible.
    """
    parts, left = [], sessions
    for chunk in stream.chunks():
        count = min(left, len(chunk.log.sessions.starts) - 1)
        parts.append(_replayed(network, chunk.log, count))
        left -= count
        if not left:
            break
    return np.concatenate(parts)


def _replayed(network: UpliftModel, log: ObservedLog, sessions: int) -> np.ndarray:
    starts, size = log.sessions.starts[: sessions + 1], log.config.page_size
    rows = np.arange(starts[-1])
    session = np.searchsorted(starts, rows, side="right") - 1
    observation = log.observations(session, rows - starts[session])
    context, page = observation["context"], log.pages.of_slot[rows]
    requested = np.diff(log.requests_before)[rows] > 0
    quiet = np.bincount(page, requested, minlength=page.max() + 1)[page] == 0
    chosen = quiet & (context[:, IN_FLIGHT] == 0)
    tau = effects_alone(network, {key: values[chosen] for key, values in observation.items()})
    _, which = np.unique(page[chosen], return_inverse=True)
    age = np.minimum(np.rint(context[chosen, PAGE_AGE] * size).astype(np.int64), size - 1)
    pages = np.full((which.max() + 1, size), np.nan)
    pages[which, age] = tau
    return pages
