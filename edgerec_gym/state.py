"""FeedArrays: everything the feed's dynamics read and write, as a struct of arrays, batch first.

B environments, N pool rows, M cards, F item features, T card types (goods included), L lookahead, d embedding
size, R named responses, W = max(5, L + 3) cards in the window. Kernels and Python read the same arrays as
attributes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgerec_gym.answers import CONTEXT_SIZE, FOCUSED, PAGE_SUMMARY, WINDOW, negative_responses, response_size
from edgerec_gym.compiled.arrays import (
    BoolVector,
    Float32Cube,
    Float32Matrix,
    Float32Vector,
    Float64Matrix,
    Float64Vector,
    Int8Matrix,
    Int32Matrix,
    Int32Vector,
    Int64Vector,
    UInt64Vector,
)
from edgerec_gym.compiled.selection import Ranking
from edgerec_gym.config import FeedConfig
from edgerec_gym.spaces import TRACKS, observation_dtype

NO_ITEM = -1
UNUSED = -1  # an empty place in the set of shown items


class FeedArrays(NamedTuple):
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
    n_responses: int
    n_exposure_rows: int
    n_page_view_rows: int
    lookahead: int
    newest: int  # place of the newest card in the window; the focused card is at FOCUSED
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
    split: int
    share_caps: Float64Vector  # (T - 1,)
    gaps: Int64Vector  # (T - 1,)
    first_slots: Int64Vector  # (T - 1,)
    reward_weights: Float64Vector  # (7 + R,)
    negative: Int64Vector  # columns of `response` that hold negative feedback
    # --- the observation ------------------------------------------------------------------------
    observation: Float32Matrix  # (B, width)
    observation_bytes: Int8Matrix  # (B, 4 * width), the same memory
    # --- the session ----------------------------------------------------------------------------
    seed: Int64Vector  # (B,)
    episode: Int64Vector  # (B,), episodes since seeding
    key: UInt64Vector  # (B,), episode key
    slot: Int32Vector  # (B,), cards placed so far
    exposures: Int32Vector  # (B,), cards answered so far
    page_views: Int32Vector  # (B,)
    last_page_view: Int32Vector  # (B,), slot; -1 if none
    last_clicked: Int32Vector  # (B,), 1 if the last answered card was clicked
    hour: Int32Vector  # (B,)
    page: Int32Vector  # (B,), pages arrived so far - 1
    page_age: Int32Vector  # (B,), slots placed since the page arrived
    page_requested: Int32Vector  # (B,), 1 if the policy asked for it
    wire: Int32Vector  # (B,), slots until the page on the wire arrives; 0 = none
    wire_requested: Int32Vector  # (B,)
    requests: Int32Vector  # (B,), requests by the policy so far
    visit: Int32Vector  # (B,), the logged visit that the session plays (cloud/supply.py)
    pool_items: Int32Matrix  # (B, N), -1 once used
    pool_left: Int32Vector  # (B,), candidates of the pool not used
    card_items: Int32Matrix  # (B, M)
    type_count: Int32Matrix  # (B, T), cards placed per type
    type_last: Int32Matrix  # (B, T), slot of the last card of the type; -1 if none
    shown: Int32Matrix  # (B, H), hash set of the items placed this session
    window_cards: Float32Cube  # (B, W, F + T), the last placed cards, the newest at `newest`, then zeros
    window_items: Int32Matrix  # (B, W), -1 where absent
    window_age: Int32Matrix  # (B, W), page_age when placed
    window_requested: Int32Matrix  # (B, W), page_requested when placed
    window_page: Float32Cube  # (B, W, 5), page_summary when placed
    page_summary: Float32Matrix  # (B, 5), of the last page to arrive (answers.py)
    interest: Float64Matrix  # (B, d), decayed evidence from behaviour, on the device
    known_interest: Float64Matrix  # (B, d), interest as last uploaded to the cloud
    wire_interest: Float64Matrix  # (B, d), interest that the page on the wire is built from
    # --- between the phases of a step -----------------------------------------------------------
    focus_active: BoolVector  # (B,)
    focus_context: Float32Matrix  # (B, 8)
    response: Float32Matrix  # (B, 21 + R)
    uncertainty: Float32Vector  # (B,), of learned users about the click on the last answered card
    # --- outcome of the last step ---------------------------------------------------------------
    reward: Float64Vector  # (B,)
    reward_terms: Float64Matrix  # (B, 7 + R)
    cost: Int32Vector  # (B,), rule violations played under rules="penalty"
    invalid: BoolVector  # (B,)
    terminated: BoolVector  # (B,)
    truncated: BoolVector  # (B,)
    placed_action: Int32Vector  # (B,), index in the joint action space, request not counted
    placed_item: Int32Vector  # (B,)
    sent: Int32Vector  # (B,), 0 nothing, 1 the policy's request, 2 an automatic one
    arrived: BoolVector  # (B,), a page arrived
    # --- workspace ------------------------------------------------------------------------------
    ranking: Ranking  # one row per worker thread


def allocate(config: FeedConfig, track: str, num_envs: int, split: int, ranking: Ranking) -> FeedArrays:
    """Allocate zeroed arrays for `num_envs` environments."""
    batch, features, types_ = num_envs, config.n_item_features, config.n_types
    dtype = observation_dtype(config, track)
    offsets = {name: place[1] for name, place in (dtype.fields or {}).items()}
    observation = np.zeros((batch, dtype.itemsize // 4), np.float32)
    window = max(WINDOW, config.lookahead + 3)
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
        n_responses=config.n_responses,
        n_exposure_rows=config.exposure_history,
        n_page_view_rows=config.page_view_history,
        lookahead=config.lookahead,
        newest=config.lookahead + FOCUSED,
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
        split=split,
        share_caps=np.array(config.share_caps, np.float64),
        gaps=np.array(config.gaps, np.int64),
        first_slots=np.array(config.first_slots, np.int64),
        reward_weights=np.array(config.reward_weights, np.float64),
        negative=negative_responses(config),
        observation=observation,
        observation_bytes=observation.view(np.int8),
        seed=np.zeros(batch, np.int64),
        episode=np.zeros(batch, np.int64),
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
        visit=ints(),
        pool_items=ints(config.pool_size),
        pool_left=ints(),
        card_items=ints(config.n_cards),
        type_count=ints(types_),
        type_last=ints(types_),
        shown=ints(hash_size),
        window_cards=np.zeros((batch, window, features + types_), np.float32),
        window_items=ints(window),
        window_age=ints(window),
        window_requested=ints(window),
        window_page=np.zeros((batch, window, len(PAGE_SUMMARY)), np.float32),
        page_summary=np.zeros((batch, len(PAGE_SUMMARY)), np.float32),
        interest=interest(),
        known_interest=interest(),
        wire_interest=interest(),
        focus_active=np.zeros(batch, np.bool_),
        focus_context=np.zeros((batch, CONTEXT_SIZE), np.float32),
        response=np.zeros((batch, response_size(config)), np.float32),
        uncertainty=np.zeros(batch, np.float32),
        reward=np.zeros(batch),
        reward_terms=np.zeros((batch, len(config.reward_terms))),
        cost=ints(),
        invalid=np.zeros(batch, np.bool_),
        terminated=np.zeros(batch, np.bool_),
        truncated=np.zeros(batch, np.bool_),
        placed_action=ints(),
        placed_item=ints(),
        sent=ints(),
        arrived=np.zeros(batch, np.bool_),
        ranking=ranking,
    )
