"""Signals of a changed intent: how far live behaviour has moved from what the current page was ranked for.

The cloud ranked the page by the behaviour that it knew when the page was requested. The device also knows
what came after. Both interests are the same decayed evidence (:class:`~edgerec_gym.config.CloudConfig`) at
two times; their difference is the change that AdaRequest (KDD'22) detects with attention. The signals use
only the observation. Rows that have left the history do not count, so on long pages old evidence is
underestimated. NumPy alone, since a phone computes them without torch.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.perception.cards import BASE_CTR, LOGIT_SCALE
from edgerec_gym.cloud.interest import DWELL_CENTRE
from edgerec_gym.config import FeedConfig
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT, LEAST_CTR

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


def intent_signals(observation: Observation, config: FeedConfig) -> np.ndarray:
    """Compute :data:`SIGNALS`, (B, 16) float32, from an observation (keys as in the environment)."""
    d = config.embedding_size
    slot = np.rint(observation["context"][:, SLOT] * config.max_slots)
    age = np.rint(observation["context"][:, PAGE_AGE] * config.page_size)
    known = slot - config.lookahead  # number of answers so far
    known_then = slot - age - config.request_latency - config.lookahead
    now, then = (squash(interest(observation, config, count)) for count in (known, known_then))
    pool = observation["pool"]
    present = (pool != 0).any(-1)
    upcoming = (present & (present.cumsum(1) <= NEXT)).astype(np.float32)
    weight = upcoming / np.maximum(upcoming.sum(1, keepdims=True), 1)
    match, match_then = (np.einsum("bnd,bd->bn", pool[..., :d], v) for v in (now, then))
    taste = observation["user"][:, :d]
    screen = observation.get("screen")
    on_screen = np.zeros(len(now), np.float32)
    if screen is not None and screen.shape[1]:
        on_screen = np.einsum("bnd,bd->bn", screen[..., :d], now).mean(1)
    ctr = np.clip(pool[..., d + BASE_CTR], LEAST_CTR, 1 - LEAST_CTR)
    signals = (
        _norm(now),
        _norm(then),
        _norm(now - then),
        (now * then).sum(1),
        (match * weight).sum(1),
        (match_then * weight).sum(1),
        np.where(present, match, -1.0).max(1),
        (np.log(ctr / (1 - ctr)) / LOGIT_SCALE * weight).sum(1),
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
    return np.stack(signals, 1).astype(np.float32)


def state_vector(observation: Observation, config: FeedConfig) -> np.ndarray:
    """Signals, profile of the user and context, (B, n) float32."""
    profile = observation["user"][:, config.embedding_size :]
    parts = [intent_signals(observation, config), profile, observation["context"]]
    return np.concatenate(parts, axis=1).astype(np.float32)


def current_interest(observation: Observation, config: FeedConfig) -> np.ndarray:
    """Return the interest that all answers so far show, squashed to a norm below 1, (B, d) float32."""
    slot = np.rint(observation["context"][:, SLOT] * config.max_slots)
    return squash(interest(observation, config, slot - config.lookahead))


def interest(observation: Observation, config: FeedConfig, known: np.ndarray) -> np.ndarray:
    """Return the decayed evidence (B, d) of the first `known` (B,) answers, summed as in the cloud."""
    cloud, d = config.cloud, config.embedding_size
    exposures, page_views = observation["exposures"], observation["page_views"]
    duration = config.n_item_features + config.n_types  # the first action of both
    dwell = cloud.dwell_weight * (exposures[..., duration] - DWELL_CENTRE)
    view = cloud.click_weight + cloud.page_view_weight * (page_views[..., duration] - DWELL_CENTRE)
    total = np.zeros((len(exposures), d), np.float32)
    for rows, evidence in ((exposures, dwell), (page_views, view)):
        weight = evidence * _memory(rows, config, known, cloud.interest_decay)
        total += np.einsum("bl,bld->bd", weight, rows[..., :d])
    return total


def squash(vector: np.ndarray) -> np.ndarray:
    """Map the norm of vectors (B, d) to 0..1: small for little evidence, close to 1 for much."""
    squashed: np.ndarray = vector / (1 + _norm(vector)[:, None])
    return squashed


def _norm(vector: np.ndarray) -> np.ndarray:
    length: np.ndarray = np.sqrt(np.square(vector).sum(1))
    return length


def _memory(rows: np.ndarray, config: FeedConfig, known: np.ndarray, decay: float) -> np.ndarray:
    """Return the decay (B, L) of history rows at the last `known` answer; 0 for padding and later rows."""
    slot = np.rint(rows[..., -1] * config.max_slots)
    since = known[:, None] - 1 - slot
    there = (rows != 0).any(-1) & (since >= 0)
    return np.where(there, decay ** np.maximum(since, 0), np.zeros_like(since))


def _dwell(exposures: np.ndarray, config: FeedConfig, known: np.ndarray, decay: float) -> np.ndarray:
    """Return the decayed mean of dwell minus DWELL_CENTRE on exposed cards, shrunk if cards are few."""
    weight = _memory(exposures, config, known, decay)
    dwell = exposures[..., config.n_item_features + config.n_types] - DWELL_CENTRE
    mean: np.ndarray = (weight * dwell).sum(1) / (1 + weight.sum(1))
    return mean


def _loyalty(
    exposures: np.ndarray, config: FeedConfig, known: np.ndarray, then: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return recent dwell weighted by match with the page's interest, and that match weighted by dwell."""
    dwell = exposures[..., config.n_item_features + config.n_types] - DWELL_CENTRE
    match = np.einsum("bld,bd->bl", exposures[..., : config.embedding_size], then)
    weight = _memory(exposures, config, known, FAST_DECAY)
    loyal = weight * np.maximum(match, 0)
    return (loyal * dwell).sum(1) / (0.3 + loyal.sum(1)), (weight * dwell * match).sum(1)


def _since_page_view(page_views: np.ndarray, config: FeedConfig, known: np.ndarray) -> np.ndarray:
    since: np.ndarray = 1 - _memory(page_views, config, known, 0.9).max(1, initial=0.0)
    return since
