"""Policy, observation and explanation: the interface of every agent, baseline and oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgerec_gym.errors import InputError

Observation = dict[str, np.ndarray]
NOT_SHOWN = -1  # pool row beyond the end of a list


@runtime_checkable
class Policy(Protocol):
    """Decides for a batch of sessions at once.

    A policy may keep state per row; `reset` clears the rows whose session starts. Policies see
    observations only. A policy that needs more (an oracle) has a method `bind(env)`, which the
    evaluator calls with the vector environment before the first reset. A policy that decides each row from
    its observation alone may set an attribute `stateless = True`; it is then only asked about rows whose
    sessions go on. A policy that can explain its decisions has a method `explain(row) -> Explanation` about
    its last action in that row of the batch, which session replays show.
    """

    name: str

    def reset(self, mask: np.ndarray) -> None:
        """Forget the rows where `mask` (B,) bool is True; the first call fixes the batch size."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 actions, legal under `observation["action_mask"]` (B, A) int8."""


@dataclass(frozen=True)
class Explanation:
    """Why a policy decided as it did at one slot of one session; None where it does not say.

    Attributes:
        scores: (N,) scores of the pool rows, higher is better.
        matrix: (M, T) values of the cards at this slot and the next T - 1.
        plan: (M,) int64, slots from now until each card's planned place, -1 if it has none.
        uplift: expected additional reward of a request now.
        price: threshold that the uplift must exceed.
        trigger: what made the policy replan at this slot ("click", "deletion", ...).
    """

    scores: np.ndarray | None = None
    matrix: np.ndarray | None = None
    plan: np.ndarray | None = None
    uplift: float | None = None
    price: float | None = None
    trigger: str | None = None


def draw_legal(generator: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Draw one nonzero column of each row of `mask` (B, A), uniformly; returns (B,) int64."""
    count = (mask != 0).cumsum(axis=1, dtype=np.int64)  # (B, A)
    pick = (generator.random(len(count)) * count[:, -1]).astype(np.int64)  # rank among the legal ones
    return (count > pick[:, None]).argmax(axis=1)


def best_legal(score: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the legal pool row with the highest score, (B,) int64.

    Args:
        score: (B, N) scores of the pool rows.
        mask: (B, A) action mask, pool rows first.

    Raises:
        InputError: a session has no legal pool row.
    """
    legal = mask[:, : score.shape[1]] != 0
    if not legal.any(axis=1).all():
        raise InputError(f"action_mask of session {int(legal.any(axis=1).argmin())} allows no pool row")
    return np.where(legal, score, -np.inf).argmax(axis=1)


def check_finite(name: str, values: np.ndarray) -> None:
    """Raise InputError naming the first value that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):  # a sum is cheap and nearly always sufficient
            return
    finite = np.isfinite(values)
    if not finite.all():
        at = np.unravel_index(int(np.argmin(finite)), values.shape)
        raise InputError(f"{name} is {values[at]} at {[int(k) for k in at]}; it must be finite")


def check_observation(observation: Observation) -> None:
    """Raise InputError naming the first key of an observation with a value that is not finite."""
    for key, values in observation.items():
        if values.dtype.kind == "f":
            check_finite(f"observation {key!r}", values)


def bind(policy: Policy, env: Any) -> None:
    """Pass the environment to policies that ask for it (oracles); others never see it."""
    if hasattr(policy, "bind"):
        policy.bind(env)
