"""Arrays of the attainable policy: what it knows, what it sees, and its belief about every session.

B sessions, P particles, H user hypotheses, K categories, d embedding size, N pool rows, M cards, F item
features, T card types (goods included), X item columns of the regression, G points of a table over interest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgerec_gym.answers import WINDOW
from edgerec_gym.compiled.arrays import (
    Float32Cube,
    Float32Matrix,
    Float32Vector,
    Float64Vector,
    Int32Matrix,
    Int32Vector,
    Int64Vector,
    UInt64Vector,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.spaces import N_PAGE_VIEW_COLUMNS, context_size, exposure_columns

LOWEST, STEP, N_POINTS = -10.0, 0.125, 177  # tables over interest (logits above the click bias): -10 to 12
N_RATES = 9  # points of an item's table of purchase and satisfaction rates over its match
LOWEST_MATCH, MATCH_STEP = -4.0, 1.25
REACH = 40  # half width of a smoothing kernel, in steps
ATTRACTIVENESS, QUALITY = range(2)  # the traits that are estimated


class Knowledge(NamedTuple):
    """What the policy knows before a session: constants of the ground truth and distributions over it."""

    # --- weights of the users (SyntheticUserConfig) -----------------------------------------------
    click_bias: float
    taste: float
    intent: float
    intent_switch: float
    intent_drift: float
    satiation: float
    weariness: float
    pseudo_click: float
    surroundings: float
    type_taste: float
    fatigue: float
    patience: float
    purchase: float
    refresh: float
    day_drift: float
    long_term_noise: float
    # --- the cloud --------------------------------------------------------------------------------
    long_term_weight: float
    recent_weight: float
    score_offset: float
    interest_decay: float
    dwell_weight: float
    click_weight: float
    page_view_weight: float
    # --- the feed ---------------------------------------------------------------------------------
    max_slots: int
    page_size: int
    lookahead: int
    latency: int
    upload_period: int  # slots between uploads with sync="periodic"; 0 = uploads are always up to date
    n_features: int
    n_types: int
    click_value: float
    purchase_value: float
    insert_value: float
    # --- items ------------------------------------------------------------------------------------
    centres: Float32Matrix  # (K, d)
    type_effect: Float32Matrix  # (T, T)
    sharpness: float  # log odds of a category per unit of (shipped embedding x centre)
    of_centre: float  # factor = of_centre x expected centre + of_shipped x shipped embedding
    of_shipped: float
    regression: Float32Matrix  # (2, 1 + X), attractiveness and quality given the shipped columns
    trait_variance: Float64Vector  # (3,), residual variances of both and their covariance
    factor_variance: float  # per dimension
    offset_variance: float  # per dimension, of an intent around its category's centre
    centre_share: float  # expected length of an intent along its category's centre
    exact: int  # 1 if items are known; the next two tables are empty otherwise
    factors: Float32Matrix  # (n, d), true factors of the catalogue rows
    traits: Float32Matrix  # (n, 3), attractiveness, quality, category of the catalogue rows
    # --- the catalogue as shipped -------------------------------------------------------------------
    shipped: Float32Matrix  # (n, d), shipped embeddings in order of their first column
    row_of: Int64Vector  # (n,), catalogue rows in that order
    catalogue: Float32Matrix  # (G, F), goods as the cloud holds them
    expected: Float32Matrix  # (G, d + 3), what is expected of them: factor, attractiveness, quality, category
    expected_rate: Float32Matrix  # (G, 2 N_RATES)
    centroids: Float32Matrix  # (C, d), centroids of the categories of goods
    group_bounds: Int64Vector  # (C + 1,), their catalogue rows
    noise: float
    probed_categories: int
    scan_limit: int
    # --- users ------------------------------------------------------------------------------------
    hints: Float32Matrix  # (T + 1, 1 + profile size): mean of type tastes, refresh, patience given a profile
    hint_root: Float32Matrix  # (T + 1, T + 1), Cholesky factor of their residual covariance
    active: float  # probability that a user is active
    leave_active: float  # leave logit of a user of average patience who is not bored
    leave_other: float
    # --- tables over interest ---------------------------------------------------------------------
    smooth_answer: Float32Vector  # (2 REACH + 1,), uncertainty about an answered card's interest
    smooth_next: Float32Vector  # (2 REACH + 1,), about the interest in a candidate
    click: Float32Vector  # (G,), click probability of a candidate


class Seen(NamedTuple):
    """The observation of the current step, contiguous."""

    user: Float32Matrix
    pool: Float32Cube
    cards: Float32Cube
    exposures: Float32Cube
    page_views: Float32Cube
    screen: Float32Cube
    context: Float32Matrix


class Belief(NamedTuple):
    """Knowledge, the observation, and the belief about B sessions."""

    know: Knowledge
    seen: Seen
    seed: int
    n_particles: int  # P; particles P..P+K-1 are intents that have just switched, one per category
    # --- progress ---------------------------------------------------------------------------------
    slot: Int32Vector  # (B,), slots placed when the row was last looked at; -1 = not begun
    answered: Int32Vector  # (B,), answers absorbed
    arrival: Int32Vector  # (B,), slot at which the current page arrived
    key: UInt64Vector  # (B,), of the random stream
    page_of: Int32Matrix  # (B, S), arrival of the page that the card of a slot comes from
    asked_for: Int32Matrix  # (B, S), 1 if the policy requested that page
    shown: Int32Matrix  # (B, S), catalogue row of the card of a slot; -1 if unknown
    evidence: Float32Cube  # (B, S + 1, d), the device's interest after n answers
    # --- the user ---------------------------------------------------------------------------------
    taste: Float32Cube  # (B, H, d), hypotheses about the user: taste on that day
    odds: Float32Cube  # (B, H, K), probability of each category at a switch
    type_taste: Float32Cube  # (B, H, T)
    sensitivity: Float32Matrix  # (B, H), response to a requested page
    leave: Float32Matrix  # (B, H), leave logit when not bored
    # --- particles --------------------------------------------------------------------------------
    intent: Float32Cube  # (B, d, P + K), mean of the intent
    page_intent: Float32Cube  # (B, d, P + K), intent at the current page's first card
    user: Int32Matrix  # (B, P + K), hypothesis about the user
    category: Int32Matrix  # (B, P + K), category of the intent when it switched
    weight: Float32Matrix  # (B, P + K), sums to 1
    boredom: Float32Matrix  # (B, P + K)
    response: Float32Matrix  # (B, P + K), decaying response to a requested page
    satiation: Float32Matrix  # (B, K)
    weariness: Float32Matrix  # (B, K)
    # --- candidates -------------------------------------------------------------------------------
    candidate: Float32Cube  # (B, N + M, d + 3), factor, attractiveness, quality, category
    rate: Float32Cube  # (B, N + M, 2 N_RATES), purchases, then satisfied views, per click at each match
    value: Float32Matrix  # (B, N + M), value at the next slot; -1 if the row is empty
    spread: Float32Matrix  # (B, N + M), its standard deviation over the particles
    clicks: Float32Matrix  # (B, N + M), click probability at the next slot
    # --- workspace --------------------------------------------------------------------------------
    item: Float32Matrix  # (WINDOW, d + 3), factor and traits of the cards around the answered one
    query: Float32Vector  # (d,)
    point: Float32Matrix  # (4, G)
    interest: Float32Matrix  # (3, P + K): interest, log weight, weight at the next slot
    switch: Float32Vector  # (K,)
    of_user: Float32Vector  # (H,), a hypothesis' part of the interest
    shift: Float32Vector  # (P + K,), response to a page requested now
    list_value: Float32Matrix  # (3, N)
    listed: Int64Vector  # (N,), goods of a page built now
    group_rank: Float32Vector  # (C,)
    group_taken: Int64Vector  # (C,)
    scanned_rank: Float32Vector  # (scanned,)
    scanned_item: Int64Vector  # (scanned,)
    scanned_group: Int64Vector  # (scanned,)


def allocate(
    know: Knowledge, config: FeedConfig, num_envs: int, particles: int, hypotheses: int, seed: int
) -> Belief:
    """Allocate the belief about `num_envs` sessions that have not begun."""
    n_categories, d = know.centres.shape
    types, features = config.n_types, config.n_item_features
    both, candidates, slots = particles + n_categories, config.pool_size + config.n_cards, config.max_slots
    card = features + types
    most = np.diff(know.group_bounds).clip(max=know.scan_limit).max()
    scanned = int(most) * max(know.probed_categories, 1) + candidates + slots

    def floats(*shape: int) -> np.ndarray:
        return np.zeros((num_envs, *shape), np.float32)

    def ints(*shape: int) -> np.ndarray:
        return np.zeros((num_envs, *shape), np.int32)

    seen = Seen(
        user=floats(config.n_user_features),
        pool=floats(config.pool_size, features),
        cards=floats(config.n_cards, card),
        exposures=floats(config.exposure_history, card + exposure_columns(config)),
        page_views=floats(config.page_view_history, card + N_PAGE_VIEW_COLUMNS),
        screen=floats(config.lookahead, card),
        context=floats(context_size(config)),
    )
    return Belief(
        know=know,
        seen=seen,
        seed=seed,
        n_particles=particles,
        slot=ints() - 1,
        answered=ints(),
        arrival=ints(),
        key=np.zeros(num_envs, np.uint64),
        page_of=ints(slots),
        asked_for=ints(slots),
        shown=ints(slots) - 1,
        evidence=floats(slots + 1, d),
        taste=floats(hypotheses, d),
        odds=floats(hypotheses, n_categories),
        type_taste=floats(hypotheses, types),
        sensitivity=floats(hypotheses),
        leave=floats(hypotheses),
        intent=floats(d, both),
        page_intent=floats(d, both),
        user=ints(both),
        category=ints(both),
        weight=floats(both),
        boredom=floats(both),
        response=floats(both),
        satiation=floats(n_categories),
        weariness=floats(n_categories),
        candidate=floats(candidates, d + 3),
        rate=floats(candidates, 2 * N_RATES),
        value=floats(candidates),
        spread=floats(candidates),
        clicks=floats(candidates),
        item=np.zeros((WINDOW, d + 3), np.float32),
        query=np.zeros(d, np.float32),
        point=np.zeros((4, N_POINTS), np.float32),
        interest=np.zeros((3, both), np.float32),
        switch=np.zeros(n_categories, np.float32),
        of_user=np.zeros(hypotheses, np.float32),
        shift=np.zeros(both, np.float32),
        list_value=np.zeros((3, config.pool_size), np.float32),
        listed=np.zeros(config.pool_size, np.int64),
        group_rank=np.zeros(len(know.centroids), np.float32),
        group_taken=np.zeros(len(know.centroids), np.int64),
        scanned_rank=np.zeros(scanned, np.float32),
        scanned_item=np.zeros(scanned, np.int64),
        scanned_group=np.zeros(scanned, np.int64),
    )
