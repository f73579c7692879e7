"""Exposed lists with what users did, and the expected purchases of the cards that were opened.

A log has ten times as many long looks, carts and favourites as purchases. The regression of purchases on
these actions is a surrogate index (Athey et al., NBER 26463, 2019). If a card leads to purchases only through
these actions, a network that learns the index learns the same expectation from far fewer sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edgerec_gym.agents.data.moments import RerankMoments, RerankStream
from edgerec_gym.answers import BUY, CLICK, LEAVE, N_PAGE_VIEW_ACTIONS, PAGE_VIEW, PAGE_VIEW_BUCKETS
from edgerec_gym.policy import Observation

LONG_PAGE_VIEW = 0.5  # least duration, in 0..1, of a click that is not a pseudo-click: about 20 s
OUTCOMES = ("click", "purchase", "long_page_view", "leave")


@dataclass(frozen=True)
class ListBatch:
    """B exposed lists of up to K cards, goods and mix-in cards alike, in display order.

    Attributes:
        observation: what the device saw at the start of the list, as in
            :class:`~edgerec_gym.agents.data.moments.RerankBatch`.
        cards: (B, K, F + T) float32, zero where no card was placed.
        outcomes: (B, K, 4) float32 in 0..1, columns :data:`OUTCOMES`; zero where unanswered.
        placed: (B, K) bool; the placed cards come first. A list ends with its page or with the session.
        answered: (B, K) bool; the last cards of a session are placed but never answered.
    """

    observation: Observation
    cards: np.ndarray
    outcomes: np.ndarray
    placed: np.ndarray
    answered: np.ndarray


def exposed_lists(
    requests: RerankMoments,
    index: np.ndarray,
    horizon: int,
    purchase: Callable[[np.ndarray], np.ndarray] | None = None,
) -> ListBatch:
    """Read the lists of K = `horizon` slots that follow the re-ranking moments `index` (B,) int64.

    Args:
        requests: the re-ranking moments of a log.
        index: which of them to read.
        horizon: K.
        purchase: maps response rows to expected purchases; None uses the logged purchases.
    """
    log, session, slot = requests.log, requests.session[index], requests.slot[index]
    sessions, page = log.sessions, log.pages.of_slot
    begin = sessions.starts[session]
    now = begin + slot
    rows = now[:, None] + np.arange(horizon)
    placed = rows < sessions.starts[session + 1][:, None]
    rows = np.minimum(rows, len(sessions.item) - 1)
    placed &= page[rows] == page[now][:, None]
    answered = placed & (rows < (begin + sessions.answered[session])[:, None])
    actions = sessions.actions[rows]
    clicked = actions[..., CLICK] > 0
    bought = actions[..., BUY] > 0 if purchase is None else purchase(actions)
    outcomes = np.stack(
        [
            clicked,
            clicked * bought,
            clicked & (actions[..., PAGE_VIEW] >= LONG_PAGE_VIEW),
            actions[..., LEAVE] > 0,
        ],
        -1,
    )
    return ListBatch(
        log.observations(session, slot),
        sessions.cards(rows) * placed[..., None],
        (outcomes * answered[..., None]).astype(np.float32),
        placed,
        answered,
    )


LEAST_PURCHASES = 20  # logs with fewer keep the purchases themselves as labels
L2 = 1.0  # penalty of the regression, about the weight of one observation
FLAGS = [column for column in range(PAGE_VIEW + 1, PAGE_VIEW + N_PAGE_VIEW_ACTIONS) if column != BUY]


class PurchaseSurrogate:
    """Logistic regression of a purchase on the other page-view actions.

    Args:
        weight: (F,) float64 coefficients of :func:`features`.
        bias: intercept, a logit.
    """

    def __init__(self, weight: np.ndarray, bias: float) -> None:
        self.weight, self.bias = weight, bias

    @classmethod
    def fit(cls, parts: Iterable[np.ndarray]) -> PurchaseSurrogate | None:
        """Fit to the clicked response rows of arrays (P, 19); return None if there are too few purchases."""
        clicked = [part[part[:, CLICK] > 0] for part in parts]
        if sum(int((part[:, BUY] > 0).sum()) for part in clicked) < LEAST_PURCHASES:
            return None
        actions = np.concatenate(clicked)
        bought = actions[:, BUY] > 0
        x = torch.from_numpy(features(actions).astype(np.float64))
        y = torch.from_numpy(bought.astype(np.float64))
        parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            logit = x @ parameters[:-1] + parameters[-1]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, y, reduction="sum")
            loss = (loss + 0.5 * L2 * parameters[:-1].square().sum()) / len(y)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        *weight, bias = parameters.detach().tolist()
        return cls(np.array(weight), bias)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Return purchase probabilities (...,) float32 of response rows (..., 18 or more) with a click."""
        logit = features(actions) @ self.weight + self.bias
        return (1 / (1 + np.exp(-logit))).astype(np.float32)


def logged_actions(stream: RerankStream) -> Iterator[np.ndarray]:
    """Yield the response rows of all slots of a stream's sessions, arrays (P, 19)."""
    for chunk in stream.chunks():
        yield chunk.log.sessions.actions


def features(actions: np.ndarray) -> np.ndarray:
    """Return the one-hot page-view duration and the other actions except the purchase, (..., F)."""
    bucket = np.rint(actions[..., PAGE_VIEW] * (PAGE_VIEW_BUCKETS - 1)).astype(np.int64)
    return np.concatenate([np.eye(PAGE_VIEW_BUCKETS)[bucket], actions[..., FLAGS]], -1)
