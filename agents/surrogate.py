"""Expected purchases of opened cards by what users did there: labels with less noise than purchases.

A log has ten times as many long looks, carts and favourites as purchases. The regression of purchases on
these actions is a surrogate index (Athey et al., NBER 26463, 2019): as far as a card leads to purchases
through them, a network that learns the index learns the same expectation from far fewer sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from edgerec_gym.agents.rerank_data import RequestStream
from edgerec_gym.users.base import BUY, CLICK, N_PAGE_VIEW_ACTIONS, PAGE_VIEW, PAGE_VIEW_BUCKETS

LEAST_PURCHASES = 20  # in a log; with fewer, purchases stay as they are
L2 = 1.0  # penalty of the regression, as strong as one observation
FLAGS = [column for column in range(PAGE_VIEW + 1, PAGE_VIEW + N_PAGE_VIEW_ACTIONS) if column != BUY]


class PurchaseSurrogate:
    """Logistic regression of a purchase on the other page-view actions.

    Args:
        weight: (F,) float64 of :func:`features`.
        bias: logit.
    """

    def __init__(self, weight: np.ndarray, bias: float) -> None:
        self.weight, self.bias = weight, bias

    @classmethod
    def fit(cls, parts: Iterable[np.ndarray]) -> PurchaseSurrogate | None:
        """Fit to the clicks among response rows, arrays (P, 19); None where too few have bought."""
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
        """Probability of a purchase (...,) float32 behind response rows (..., 18 or more) with a click."""
        logit = features(actions) @ self.weight + self.bias
        return (1 / (1 + np.exp(-logit))).astype(np.float32)


def logged_actions(stream: RequestStream) -> Iterator[np.ndarray]:
    """Response rows of all slots of a stream's sessions, arrays (P, 19)."""
    for chunk in stream.chunks():
        yield chunk.log.sessions.actions


def features(actions: np.ndarray) -> np.ndarray:
    """The page view's duration by bucket, and its other actions but the purchase: (..., F)."""
    bucket = np.rint(actions[..., PAGE_VIEW] * (PAGE_VIEW_BUCKETS - 1)).astype(np.int64)
    return np.concatenate([np.eye(PAGE_VIEW_BUCKETS)[bucket], actions[..., FLAGS]], -1)
