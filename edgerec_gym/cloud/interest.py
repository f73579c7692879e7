"""The estimate of a user's interest from behaviour: the same on the phone, in the cloud and in the feed.

It is a decaying sum of the embeddings of the cards that were answered, each with the evidence of its answer.
"""

from __future__ import annotations

from edgerec_gym.answers import CLICK, PAGE_VIEW
from edgerec_gym.compiled.jit import kernel

DWELL_CENTRE = 0.4  # e1 or d1 in 0..1 below which a look is evidence against the item


@kernel
def evidence_of(cloud, response, row):
    """Return the evidence of an answer (answers.py) for interest in its card."""
    click = response[row, CLICK]
    evidence = cloud.dwell_weight * (response[row, 0] - DWELL_CENTRE) + cloud.click_weight * click
    if click > 0:
        evidence += cloud.page_view_weight * (response[row, PAGE_VIEW] - DWELL_CENTRE)
    return evidence


@kernel
def moved_interest(cloud, interest, evidence, seen):
    """Return one number of the interest after an answer; `seen` is that of the card's embedding."""
    return cloud.interest_decay * interest + evidence * seen
