"""Signals of a changed intent: how far live behaviour has moved from what the current page was ranked for.

The cloud ranked the page by the behaviour that it knew when the page was requested. The device also knows
what came after. Both interests are the same decayed evidence (:class:`~edgerec_gym.config.CloudConfig`) at
two times; their difference is the change that AdaRequest (KDD'22) detects with attention. The signals use
only the observation. Rows that have left the history do not count, so on long pages old evidence is
underestimated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgerec_gym.agents.perception.perception import LOGIT_SCALE, base_logit
from edgerec_gym.config import FeedConfig
from edgerec_gym.feed.kernels import DWELL_CENTRE
from edgerec_gym.spaces import CONTEXT

SLOT, PAGE_AGE = CONTEXT.index("slot"), CONTEXT.index("page_age")
NEXT = 5  # number of next cards in cloud order
SIGNALS = (
    "evidence",  # norm of the current interest, squashed to 0..1
    "page_evidence",  # the same at the time of the page's request
    "change",  # norm of the difference of both squashed interests, in 0..2
    "agreement",  # their inner product, in -1..1
    "next_match",  # mean match of the next cards in cloud order with the current interest
    "next_page_match",  # the same with the interest that the page was ranked for
    "best_match",  # best match of a pool card with the current interest
    "next_base_ctr",  # mean logit of the next cards, scaled to order 1
    "screen_match",  # mean match of the cards on screen with the current interest
    "taste_match",  # match of the long-term taste with the current interest
    "taste_page_match",  # the same with the interest that the page was ranked for
    "dwell",  # recent dwell relative to the neutral dwell
    "dwell_lately",  # the same with faster decay
    "loyal_dwell",  # recent dwell on cards that match the interest that the page was ranked for
    "lately_match",  # dwell-weighted match of recent cards with that interest, faster decay
    "since_page_view",  # in 0..1; 1 if there is none yet
)
FAST_DECAY = 0.6  # per slot


def intent_signals(observation: dict[str, Tensor], config: FeedConfig) -> Tensor:
    """Compute :data:`SIGNALS`, (B, 16) float32, from an observation (keys as in the environment)."""
    d = config.embedding_size
    slot = torch.round(observation["context"][:, SLOT] * config.max_slots)
    age = torch.round(observation["context"][:, PAGE_AGE] * config.page_size)
    known = slot - config.lookahead  # number of answers so far
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
    """Return the decayed evidence (B, d) of the first `known` (B,) answers, summed as in the cloud."""
    cloud, d = config.cloud, config.embedding_size
    exposures, page_views = observation["exposures"], observation["page_views"]
    duration = config.n_item_features + config.n_types  # the first action of both
    dwell = cloud.dwell_weight * (exposures[..., duration] - DWELL_CENTRE)
    view = cloud.click_weight + cloud.page_view_weight * (page_views[..., duration] - DWELL_CENTRE)
    total = exposures.new_zeros(len(exposures), d)
    for rows, evidence in ((exposures, dwell), (page_views, view)):
        weight = evidence * _memory(rows, config, known, cloud.interest_decay)
        total = total + (weight.unsqueeze(1) @ rows[..., :d]).squeeze(1)
    return total


def squash(vector: Tensor) -> Tensor:
    """Map the norm of vectors (B, d) to 0..1: small for little evidence, close to 1 for much."""
    return vector / (1 + vector.norm(dim=1, keepdim=True))


def _memory(rows: Tensor, config: FeedConfig, known: Tensor, decay: float) -> Tensor:
    """Return the decay (B, L) of history rows at the last `known` answer; 0 for padding and later rows."""
    slot = torch.round(rows[..., -1] * config.max_slots)
    since = known.unsqueeze(1) - 1 - slot
    there = (rows != 0).any(-1) & (since >= 0)
    return torch.where(there, decay ** since.clamp(min=0), torch.zeros_like(since))


def _dwell(exposures: Tensor, config: FeedConfig, known: Tensor, decay: float) -> Tensor:
    """Return the decayed mean of dwell minus DWELL_CENTRE on exposed cards, shrunk if cards are few."""
    weight = _memory(exposures, config, known, decay)
    dwell = exposures[..., config.n_item_features + config.n_types] - DWELL_CENTRE
    return (weight * dwell).sum(1) / (1 + weight.sum(1))


def _loyalty(exposures: Tensor, config: FeedConfig, known: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
    """Return recent dwell weighted by match with the page's interest, and that match weighted by dwell."""
    dwell = exposures[..., config.n_item_features + config.n_types] - DWELL_CENTRE
    match = (exposures[..., : config.embedding_size] @ then.unsqueeze(-1)).squeeze(-1)
    weight = _memory(exposures, config, known, FAST_DECAY)
    loyal = weight * match.clamp(min=0)
    return (loyal * dwell).sum(1) / (0.3 + loyal.sum(1)), (weight * dwell * match).sum(1)


def _since_page_view(page_views: Tensor, config: FeedConfig, known: Tensor) -> Tensor:
    newest = _memory(page_views, config, known, 0.9).amax(1)
    return 1 - newest
