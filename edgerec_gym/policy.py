"""Policy, observation and explanation: what every agent, baseline and oracle looks like to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgerec_gym.errors import InputError

Observation = dict[str, np.ndarray]
NOT_SHOWN = -1  # pool row behind the end of a list


@runtime_checkable
class Policy(Protocol):
    """Decides for a batch of sessions at once.

    A policy may keep state per row; `reset` clears the rows whose session starts. Policies see
    observations only. A policy that needs more (an oracle) has a method `bind(env)`, which the
    evaluator calls with the vector environment before the first reset. A policy that decides each row from
    its observation alone may say so with an attribute `stateless = True`: then it is asked for the rows
    only whose sessions go on. One that can tell why it decided as it did has a method
    `explain(row) -> Explanation` about its last action in that row of the batch; session replays show it.
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
        scores: (N,) of the pool rows, more is better.
        matrix: (M, T) values of the cards at this slot and the T - 1 that follow.
        plan: (M,) int64, slots from now to where each card is planned, -1 where it is not.
        uplift: reward that a request now is expected to add.
        price: that the uplift must exceed.
        trigger: what made the policy plan anew at this slot ("click", "deletion", ...).
    """

    scores: np.ndarray | None = None
    matrix: np.ndarray | None = None
    plan: np.ndarray | None = None
    uplift: float | None = None
    price: float | None = None
    trigger: str | None = None


def draw_legal(generator: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Draw one of the places where `mask` (B, A) is not zero, each equally likely; (B,) int64."""
    count = (mask != 0).cumsum(axis=1, dtype=np.int64)  # (B, A)
    pick = (generator.random(len(count)) * count[:, -1]).astype(np.int64)  # the pick-th legal one
    return (count > pick[:, None]).argmax(axis=1)


def best_legal(score: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the legal pool row with the highest score, (B,) int64.

    Args:
        score: (B, N).
        mask: (B, A) of the actions, pool rows first.

    Raises:
        InputError: a session in which no pool row is legal.
    """
    legal = mask[:, : score.shape[1]] != 0
    if not legal.any(axis=1).all():
        raise InputError(f"action_mask of session {int(legal.any(axis=1).argmin())} allows no pool row")
    return np.where(legal, score, -np.inf).argmax(axis=1)


def check_finite(name: str, values: np.ndarray) -> None:
    """Raise InputError that names the first value which is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):  # a sum is cheap, and nearly always settles it
            return
    finite = np.isfinite(values)
    if not finite.all():
        at = np.unravel_index(int(np.argmin(finite)), values.shape)
        raise InputError(f"{name} is {values[at]} at {[int(k) for k in at]}; it must be finite")


def check_observation(observation: Observation) -> None:
    """Raise InputError that names the key of an observation which is not finite."""
    for key, values in observation.items():
        if values.dtype.kind == "f":
            check_finite(f"observation {key!r}", values)


def bind(policy: Policy, env: Any) -> None:
    """Give the environment to policies that ask for it (oracles); others never see it."""
    if hasattr(policy, "bind"):
        policy.bind(env)
