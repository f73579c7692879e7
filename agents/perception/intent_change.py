"""How far live behaviour has moved from what the current page was ranked for: signals of a changed intent.

The cloud ranked the page for the behaviour that it knew when the page was requested. The device knows what
came after. Both are the same decayed evidence (:class:`~edgerec_gym.config.CloudConfig`), at two times; their
difference is the change that AdaRequest (KDD'22) has attention look for. All of it comes from the
observation alone. Rows that have left the history count for nothing: on long pages the evidence of long ago
is then too small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgerec_gym.agents.perception.perception import LOGIT_SCALE, base_logit
from edgerec_gym.config import FeedConfig
from edgerec_gym.feed.kernels import DWELL_CENTRE
from edgerec_gym.spaces import CONTEXT, N_EXPOSURE_COLUMNS, N_PAGE_VIEW_COLUMNS

SLOT, PAGE_AGE = CONTEXT.index("slot"), CONTEXT.index("page_age")
NEXT = 5  # cards that keep would place next
SIGNALS = (
    "evidence",  # length of the interest now, squashed to 0..1
    "page_evidence",  # the same when the page was requested
    "change",  # length of the difference of both interests, each squashed, in 0..2
    "agreement",  # their inner product, in -1..1
    "next_match",  # of the next cards in the cloud's order with the interest now, mean
    "next_page_match",  # with the interest that the page was ranked for
    "best_match",  # of any card of the pool with the interest now
    "next_base_ctr",  # logit of order 1, mean of the next cards
    "screen_match",  # of the cards on screen with the interest now
    "taste_match",  # of the long-term estimate with the interest now
    "taste_page_match",
    "dwell",  # looks of late against the usual ones
    "dwell_lately",  # the same, forgetting faster
    "loyal_dwell",  # looks of late at cards that match the interest that the page was ranked for
    "lately_match",  # of what was looked at of late, forgetting faster, with that interest
    "since_page_view",  # squashed to 0..1; 1 = none yet
)
FAST_DECAY = 0.6  # a slot


def intent_signals(observation: dict[str, Tensor], config: FeedConfig) -> Tensor:
    """Compute :data:`SIGNALS`, (B, 16) float32, from an observation (keys as in the environment)."""
    d = config.embedding_size
    slot = torch.round(observation["context"][:, SLOT] * config.max_slots)
    age = torch.round(observation["context"][:, PAGE_AGE] * config.page_size)
    known = slot - config.lookahead  # answers so far
    known_then = slot - age - config.request_latency - config.lookahead
    now, then = (squash(interest(observation, config, count)) for count in (known, known_then))
    pool = observation["pool"]
    present = (pool != 0).any(-1)
    upcoming = (present & (present.cumsum(1) <= NEXT)).float()
    weight = upcoming / upcoming.sum(1, keepdim=True).clamp(min=1)
    match, match_then = ((pool[..., :d] @ v.unsqueeze(-1)).squeeze(-1) for v in (now, then))
    taste = observation["user"][:, :d]
    screen = observation.get("screen")
    on_screen = (
        now.new_zeros(len(now)) if screen is None else (screen[..., :d] @ now.unsqueeze(-1)).mean((1, 2))
    )
    signals = (
        now.norm(dim=1),
        then.norm(dim=1),
        (now - then).norm(dim=1),
        (now * then).sum(1),
        (match * weight).sum(1),
        (match_then * weight).sum(1),
        match.masked_fill(~present, -1.0).amax(1),
        (base_logit(pool, d) / LOGIT_SCALE * weight).sum(1),
        on_screen,
        (taste * now).sum(1),
        (taste * then).sum(1),
        *(
            _dwell(observation["exposures"], config, known, decay)
            for decay in (config.cloud.interest_decay, FAST_DECAY)
        ),
        *_loyalty(observation["exposures"], config, known, then),
        _since_page_view(observation["page_views"], config, known),
    )
    return torch.stack(signals, 1)


def interest(observation: dict[str, Tensor], config: FeedConfig, known: Tensor) -> Tensor:
    """Decayed evidence (B, d) of the first `known` (B,) answers, as the cloud sums it."""
    cloud, d = config.cloud, config.embedding_size
    exposures, page_views = observation["exposures"], observation["page_views"]
    dwell = cloud.dwell_weight * (exposures[..., -N_EXPOSURE_COLUMNS] - DWELL_CENTRE)
    view = cloud.click_weight + cloud.page_view_weight * (
        page_views[..., -N_PAGE_VIEW_COLUMNS] - DWELL_CENTRE
    )
    total = exposures.new_zeros(len(exposures), d)
    for rows, evidence in ((exposures, dwell), (page_views, view)):
        weight = evidence * _memory(rows, config, known, cloud.interest_decay)
        total = total + (weight.unsqueeze(1) @ rows[..., :d]).squeeze(1)
    return total


def squash(vector: Tensor) -> Tensor:
    """Vectors (B, d) with their length mapped to 0..1: little evidence counts little, much as a direction."""
    return vector / (1 + vector.norm(dim=1, keepdim=True))


def _memory(rows: Tensor, config: FeedConfig, known: Tensor, decay: float) -> Tensor:
    """Decay (B, L) of history rows since the last of `known` answers; 0 for padding and what came later."""
    slot = torch.round(rows[..., -1] * config.max_slots)
    since = known.unsqueeze(1) - 1 - slot
    there = (rows != 0).any(-1) & (since >= 0)
    return torch.where(there, decay ** since.clamp(min=0), torch.zeros_like(since))


def _dwell(exposures: Tensor, config: FeedConfig, known: Tensor, decay: float) -> Tensor:
    """Decayed mean of the dwell (0..1) on exposed cards, against the middle; shrunk where cards are few."""
    weight = _memory(exposures, config, known, decay)
    dwell = exposures[..., -N_EXPOSURE_COLUMNS] - DWELL_CENTRE
    return (weight * dwell).sum(1) / (1 + weight.sum(1))


def _loyalty(exposures: Tensor, config: FeedConfig, known: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
    """Looks of late weighted by the match with what the page was ranked for, and that match by the looks."""
    dwell = exposures[..., -N_EXPOSURE_COLUMNS] - DWELL_CENTRE
    match = (exposures[..., : config.embedding_size] @ then.unsqueeze(-1)).squeeze(-1)
    weight = _memory(exposures, config, known, FAST_DECAY)
    loyal = weight * match.clamp(min=0)
    return (loyal * dwell).sum(1) / (0.3 + loyal.sum(1)), (weight * dwell * match).sum(1)


def _since_page_view(page_views: Tensor, config: FeedConfig, known: Tensor) -> Tensor:
    newest = _memory(page_views, config, known, 0.9).amax(1)
    return 1 - newest
