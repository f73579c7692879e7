"""The user's interest as estimated on the device: decayed evidence of recent behaviour.

The interest is a decayed sum of embeddings, weighted by dwell on exposed cards, clicks, and dwell on opened
pages. The cloud computes the same (:class:`~edgerec_gym.config.CloudConfig`), but from stale behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT, N_SCALARS, first_action

SLOT, EXPOSURES = CONTEXT.index("slot"), CONTEXT.index("exposures")
DWELL_CENTRE = 0.4  # dwell below this (of 0..1) is evidence against the item


def embedding_size(observation: Observation, item_columns: Sequence[str]) -> int:
    """Return d of an observation whose items have these columns of an item table; InputError if not."""
    pool = observation["pool"]
    d = pool.shape[2] - N_SCALARS - len(item_columns)
    # Embeddings have length 1 or 0; with a column too many, they seem longer.
    if d < 1 or np.square(pool[:1, 0, :d]).sum() > 1.01:
        raise InputError(
            f"the items have another number of item columns than {len(item_columns)}: make the policy with "
            "item_columns = config.item_columns"
        )
    return d


@dataclass
class LiveInterest:
    """Estimate the interest in the embedding space, and score how well candidates match it.

    Attributes:
        strength: logits per unit of match.
        decay: decay of the evidence per slot.
        dwell_weight: evidence of a long look at an exposed card.
        click_weight: evidence of a click.
        page_view_weight: evidence of a long page view.
        item_columns: names of the columns of the feed's item table (`config.item_columns`).
    """

    strength: float = 4.0
    decay: float = 0.92
    dwell_weight: float = 1.0
    click_weight: float = 1.0
    page_view_weight: float = 2.0
    item_columns: Sequence[str] = ()

    def scores(self, observation: Observation) -> np.ndarray:
        """Return the logit of the base ctr plus `strength` x match of each candidate, (B, N)."""
        interest = self.interest(observation)
        pool, d = observation["pool"], interest.shape[1]
        match = (pool[:, :, :d] @ interest[:, :, None])[:, :, 0] / (
            1 + np.linalg.norm(interest, axis=1, keepdims=True)
        )
        ctr = np.clip(pool[:, :, d + 1], 1e-6, 1 - 1e-6)
        return np.log(ctr / (1 - ctr)) + self.strength * match

    def interest(self, observation: Observation) -> np.ndarray:
        """Return the decayed evidence in the embedding space, (B, d) float64."""
        d = embedding_size(observation, self.item_columns)
        exposures, page_views = observation["exposures"], observation["page_views"]
        duration = first_action(observation)
        dwell, view = exposures[:, :, duration] - DWELL_CENTRE, page_views[:, :, duration] - DWELL_CENTRE
        context = observation["context"]
        now = context[:, SLOT]  # slot / max_slots, the unit of the rows' last column
        # Cards are answered slot by slot, so the count is one slot ahead of the newest row.
        one_slot = context[:, EXPOSURES] - exposures[:, :, -1].max(axis=1)
        max_slots = np.rint(1 / np.maximum(one_slot, 1e-9, dtype=np.float64))
        interest = np.zeros((len(now), d))
        for rows, evidence in (
            (exposures, self.dwell_weight * dwell),
            (page_views, self.click_weight + self.page_view_weight * view),
        ):
            age = (now[:, None] - rows[:, :, -1]) * max_slots[:, None]
            weight = evidence * self.decay**age  # padding has an embedding of zero
            interest += (weight[:, None, :] @ rows[:, :, :d])[:, 0]
        return interest
