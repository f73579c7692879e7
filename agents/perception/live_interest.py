"""What the device itself can tell of the user's interest: decayed evidence of recent behaviour.

The interest is the decayed sum of embeddings, weighted by dwell on exposed cards, clicks and dwell on opened
pages, as the cloud does it (:class:`~edgerec_gym.config.CloudConfig`), but never stale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT, N_EXPOSURE_COLUMNS, N_PAGE_VIEW_COLUMNS, N_SCALARS

SLOT, EXPOSURES = CONTEXT.index("slot"), CONTEXT.index("exposures")
DWELL_CENTRE = 0.4  # looks shorter than this (of 0..1) speak against the item


@dataclass
class LiveInterest:
    """Interest in the embedding space, and how well candidates match it.

    Attributes:
        strength: logits per unit of match.
        decay: of the evidence, per slot.
        dwell_weight: evidence of a long look at an exposed card.
        click_weight: evidence of a click.
        page_view_weight: evidence of a long page view.
    """

    strength: float = 4.0
    decay: float = 0.92
    dwell_weight: float = 1.0
    click_weight: float = 1.0
    page_view_weight: float = 2.0

    def scores(self, observation: Observation) -> np.ndarray:
        """Logit of the base ctr plus `strength` x the match of each candidate, (B, N)."""
        interest = self.interest(observation)
        pool, d = observation["pool"], interest.shape[1]
        match = (pool[:, :, :d] @ interest[:, :, None])[:, :, 0] / (
            1 + np.linalg.norm(interest, axis=1, keepdims=True)
        )
        ctr = np.clip(pool[:, :, d + 1], 1e-6, 1 - 1e-6)
        return np.log(ctr / (1 - ctr)) + self.strength * match

    def interest(self, observation: Observation) -> np.ndarray:
        """Decayed evidence in the embedding space, (B, d) float64."""
        d = observation["pool"].shape[2] - N_SCALARS
        exposures, page_views = observation["exposures"], observation["page_views"]
        dwell = exposures[:, :, -N_EXPOSURE_COLUMNS] - DWELL_CENTRE
        view = page_views[:, :, -N_PAGE_VIEW_COLUMNS] - DWELL_CENTRE
        context = observation["context"]
        now = context[:, SLOT]  # slot / max_slots, the unit of the rows' last column
        # Cards are answered slot by slot: one slot is what the count is ahead of the newest row.
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
