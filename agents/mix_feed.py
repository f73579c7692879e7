"""The rules of a running feed as a mixed insertion problem, so that plans are legal when played."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.mix_problem import MixBatch
from edgerec_gym.config import FeedConfig
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT

SLOT_COLUMN = CONTEXT.index("slot")
NEVER = -1  # last slot of a type that has not been shown


@dataclass(frozen=True)
class InsertionState:
    """What B feeds carry from one plan to the next (C card types)."""

    slot: np.ndarray  # (B,) int64, the next slot of the session
    counts: np.ndarray  # (B, C) int64, cards of each type so far
    last_slots: np.ndarray  # (B, C) int64, slot of the session of the last one; -1 = none

    @classmethod
    def from_observation(cls, observation: Observation, config: FeedConfig) -> InsertionState:
        """Read the state off the context of an observation.

        Slots since the last card are observed up to page_size; beyond it the last card counts as page_size
        slots ago, which matters only to gaps longer than a page.
        """
        context = np.asarray(observation["context"], np.float64)
        n_types = len(config.card_types)
        used, since = np.split(context[:, len(CONTEXT) :], [n_types], axis=1)
        slot = np.rint(context[:, SLOT_COLUMN] * config.max_slots).astype(np.int64)
        counts = np.rint(used * np.maximum(slot, config.page_size)[:, None]).astype(np.int64)
        last = slot[:, None] - np.rint(since * config.page_size).astype(np.int64)
        return cls(slot, counts, np.where(counts > 0, last, NEVER))


def feed_problems(
    config: FeedConfig,
    state: InsertionState,
    values: np.ndarray,
    types: np.ndarray,
    weights: np.ndarray | None = None,
    caps: np.ndarray | None = None,
    ordered: bool = False,
) -> MixBatch:
    """Make the problems of the next T slots of B feeds; their plans are legal in the environment.

    Args:
        config: the feed.
        state: of the feeds.
        values: (B, M, T), -inf for cards that are gone.
        types: (B, M) or (M,), 0 = the first of config.card_types.
        weights: (B, T), exposure probabilities; None = 1.
        caps: (B, C), weight a type may still take; None = no cap beside the environment's own.
        ordered: the cards of a type are a queue.

    Raises:
        InputError: as :class:`~edgerec_gym.agents.mix_problem.MixProblem` does.
    """
    values = np.asarray(values, np.float64)
    rows, n_cards, horizon = values.shape
    shape = (rows, len(config.card_types))
    gaps = np.broadcast_to(config.gaps, shape)
    free_from = np.where(state.last_slots >= 0, state.last_slots + gaps, 0)
    first = np.maximum(np.array(config.first_slots), free_from) - state.slot[:, None]
    prefix = np.maximum(state.slot[:, None] + np.arange(1, horizon + 1), config.page_size)  # (B, T)
    # The environment's own cap with its slack (rules.py), less the cards shown before the plan.
    most = np.floor(np.array(config.share_caps)[:, None] * prefix[:, None, :] + 1e-9).astype(np.int64)
    return MixBatch(
        values=values,
        weights=np.ones((rows, horizon)) if weights is None else weights,
        types=np.broadcast_to(types, (rows, n_cards)),
        caps=np.full(shape, np.inf) if caps is None else caps,
        gaps=gaps,
        first_slots=np.maximum(first, 0),
        prefix_caps=np.maximum(most - state.counts[:, :, None], 0),
        ordered=ordered,
    )
