"""FeedState: everything the feed's dynamics read and write, a struct of arrays, batch first.

B environments, N pool rows, M cards, F item features, T card types with goods, L lookahead,
d embedding size. The kernels get the struct as one argument (a numba structref), Python reads the same
arrays as attributes of :class:`FeedArrays`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.experimental import structref

from edgerec_gym.config import FeedConfig
from edgerec_gym.spaces import TRACKS, observation_dtype
from edgerec_gym.users.base import CONTEXT_SIZE, RESPONSE_SIZE, WINDOW

REWARD_TERMS = ("click", "purchase", "request", "invalid", "insert_click", "leave")
NO_ITEM = -1
UNUSED = -1  # an empty place of the set of shown items


@dataclass
class FeedArrays:
    """The arrays of B environments, and the numbers of their config that the kernels need."""

    # --- config ---------------------------------------------------------------------------------
    track: int
    penalty: int  # 1 with rules="penalty"
    n_pool: int
    n_cards: int
    n_features: int
    n_types: int
    n_embedding: int
    n_user: int
    n_exposure_rows: int
    n_page_view_rows: int
    lookahead: int
    page_size: int
    latency: int
    budget: int  # -1 = unlimited
    max_slots: int
    user_at: int  # first float32 column of each observation key
    pool_at: int
    cards_at: int
    exposures_at: int
    page_views_at: int
    screen_at: int
    context_at: int
    mask_at: int  # first byte of the mask
    share_caps: np.ndarray  # (T - 1,) float64
    gaps: np.ndarray  # (T - 1,) int64
    first_slots: np.ndarray  # (T - 1,) int64
    reward_weights: np.ndarray  # (6,) float64
    # --- the observation ------------------------------------------------------------------------
    observation: np.ndarray  # (B, width) float32
    observation_bytes: np.ndarray  # (B, 4 * width) int8, the same memory
    # --- the session ----------------------------------------------------------------------------
    key: np.ndarray  # (B,) uint64, episode key
    slot: np.ndarray  # (B,) int32, cards placed so far
    exposures: np.ndarray  # (B,) int32, cards answered so far
    page_views: np.ndarray  # (B,) int32
    last_page_view: np.ndarray  # (B,) int32, slot; -1 if none
    last_clicked: np.ndarray  # (B,) int32, 1 if the card answered last was clicked
    hour: np.ndarray  # (B,) int32
    page: np.ndarray  # (B,) int32, pages arrived so far - 1
    page_age: np.ndarray  # (B,) int32, slots placed since the page arrived
    page_requested: np.ndarray  # (B,) int32, 1 if the policy asked for it
    wire: np.ndarray  # (B,) int32, slots until the page on the wire arrives; 0 = none
    wire_requested: np.ndarray  # (B,) int32
    requests: np.ndarray  # (B,) int32, asked for by the policy
    pool_items: np.ndarray  # (B, N) int32, -1 once used
    card_items: np.ndarray  # (B, M) int32
    type_count: np.ndarray  # (B, T) int32, cards placed per type
    type_last: np.ndarray  # (B, T) int32, slot of the last card of the type; -1 if none
    shown: np.ndarray  # (B, H) int32, hash set of the items placed this session
    window_cards: np.ndarray  # (B, L + 3, F + T) float32, last placed cards, newest last
    window_items: np.ndarray  # (B, L + 3) int32
    window_age: np.ndarray  # (B, L + 3) int32, page_age when placed
    window_requested: np.ndarray  # (B, L + 3) int32, page_requested when placed
    interest: np.ndarray  # (B, d) float64, decayed evidence of behaviour, on the device
    known_interest: np.ndarray  # (B, d) float64, what of it has reached the cloud
    wire_interest: np.ndarray  # (B, d) float64, what the page on the wire is built from
    # --- between the phases of a step -----------------------------------------------------------
    focus_active: np.ndarray  # (B,) bool
    focus_cards: np.ndarray  # (B, 5, F + T) float32
    focus_items: np.ndarray  # (B, 5) int32
    focus_context: np.ndarray  # (B, 8) float32
    response: np.ndarray  # (B, 21) float32
    # --- outcome of the last step ---------------------------------------------------------------
    reward: np.ndarray  # (B,) float64
    reward_terms: np.ndarray  # (B, 6) float64
    cost: np.ndarray  # (B,) int32, rule violations played under rules="penalty"
    invalid: np.ndarray  # (B,) bool
    terminated: np.ndarray  # (B,) bool
    truncated: np.ndarray  # (B,) bool
    placed_action: np.ndarray  # (B,) int32, index in the joint action space, request not counted
    placed_item: np.ndarray  # (B,) int32
    sent: np.ndarray  # (B,) int32, 0 nothing, 1 the policy's request, 2 an automatic one
    arrived: np.ndarray  # (B,) bool, a page arrived


FIELDS = [f.name for f in fields(FeedArrays)]


@structref.register
class FeedStateType(types.StructRef):
    """Numba type of the struct."""

    def preprocess_fields(self, fields: Any) -> Any:
        """Fields hold values, not literal types."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class FeedState(structref.StructRefProxy):
    """The struct as the kernels see it."""


structref.define_proxy(FeedState, FeedStateType, FIELDS)


@njit(cache=True)
def _pack(values):
    return FeedState(*values)


def pack(arrays: FeedArrays) -> FeedState:
    """Bundle the arrays into the struct; both share the same memory."""
    return _pack(tuple(getattr(arrays, name) for name in FIELDS))


def allocate(config: FeedConfig, track: str, num_envs: int) -> FeedArrays:
    """Make the zeroed arrays of `num_envs` environments."""
    batch, features, types_ = num_envs, config.n_item_features, config.n_types
    dtype = observation_dtype(config, track)
    offsets = {name: place[1] for name, place in (dtype.fields or {}).items()}
    observation = np.zeros((batch, dtype.itemsize // 4), np.float32)
    window = config.lookahead + 3
    hash_size = 1 << int(np.ceil(np.log2(2 * config.max_slots)))

    def ints(*shape: int) -> np.ndarray:
        return np.zeros((batch, *shape), np.int32)

    def interest() -> np.ndarray:
        return np.zeros((batch, config.embedding_size))

    return FeedArrays(
        track=TRACKS.index(track),
        penalty=int(config.rules == "penalty"),
        n_pool=config.pool_size,
        n_cards=config.n_cards,
        n_features=features,
        n_types=types_,
        n_embedding=config.embedding_size,
        n_user=config.n_user_features,
        n_exposure_rows=config.exposure_history,
        n_page_view_rows=config.page_view_history,
        lookahead=config.lookahead,
        page_size=config.page_size,
        latency=config.request_latency,
        budget=-1 if config.request_budget is None else config.request_budget,
        max_slots=config.max_slots,
        user_at=offsets["user"] // 4,
        pool_at=offsets["pool"] // 4,
        cards_at=offsets["cards"] // 4,
        exposures_at=offsets["exposures"] // 4,
        page_views_at=offsets["page_views"] // 4,
        screen_at=offsets["screen"] // 4,
        context_at=offsets["context"] // 4,
        mask_at=offsets["action_mask"],
        share_caps=np.array(config.share_caps, np.float64),
        gaps=np.array(config.gaps, np.int64),
        first_slots=np.array(config.first_slots, np.int64),
        reward_weights=np.array([getattr(config.reward, term) for term in REWARD_TERMS], np.float64),
        observation=observation,
        observation_bytes=observation.view(np.int8),
        key=np.zeros(batch, np.uint64),
        slot=ints(),
        exposures=ints(),
        page_views=ints(),
        last_page_view=ints(),
        last_clicked=ints(),
        hour=ints(),
        page=ints(),
        page_age=ints(),
        page_requested=ints(),
        wire=ints(),
        wire_requested=ints(),
        requests=ints(),
        pool_items=ints(config.pool_size),
        card_items=ints(config.n_cards),
        type_count=ints(types_),
        type_last=ints(types_),
        shown=ints(hash_size),
        window_cards=np.zeros((batch, window, features + types_), np.float32),
        window_items=ints(window),
        window_age=ints(window),
        window_requested=ints(window),
        interest=interest(),
        known_interest=interest(),
        wire_interest=interest(),
        focus_active=np.zeros(batch, np.bool_),
        focus_cards=np.zeros((batch, WINDOW, features + types_), np.float32),
        focus_items=np.full((batch, WINDOW), NO_ITEM, np.int32),
        focus_context=np.zeros((batch, CONTEXT_SIZE), np.float32),
        response=np.zeros((batch, RESPONSE_SIZE), np.float32),
        reward=np.zeros(batch),
        reward_terms=np.zeros((batch, len(REWARD_TERMS))),
        cost=ints(),
        invalid=np.zeros(batch, np.bool_),
        terminated=np.zeros(batch, np.bool_),
        truncated=np.zeros(batch, np.bool_),
        placed_action=ints(),
        placed_item=ints(),
        sent=ints(),
        arrived=np.zeros(batch, np.bool_),
    )
