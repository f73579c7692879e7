"""MixArrays: the struct of arrays that the planner's kernels read and write.

It holds B problems of M cards, T slots and C types, and one workspace row for each of W workers. A *label* is
a partial plan up to some slot. A worker holds two sides of L labels each: before and after the current slot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgerec_gym.agents.planner.problem import LEFT_OUT, MixBatch
from edgerec_gym.compiled.arrays import (
    Float64Cube,
    Float64Matrix,
    Float64Vector,
    Int32Cube,
    Int32Matrix,
    Int32Vector,
    Int64Vector,
    UInt64Matrix,
    UInt64Vector,
)

MOST_IN_SET = 6  # types with at most this many cards get states that are sets of cards
LEVELS = 65  # levels of free weight, from none to the whole cap
UNREACHABLE = -1e300  # a finite stand-in for -inf: the difference of two is not NaN


class MixArrays(NamedTuple):
    """The arrays of B problems and W workers, and the sizes that the kernels need."""

    # --- sizes ----------------------------------------------------------------------------------
    n_cards: int
    n_slots: int
    n_types: int
    n_counts: int  # maximum number of cards of one type, + 1
    n_states: int  # maximum number of states of a type
    n_words: int  # 64-bit words in a set of cards
    capacity: int  # L
    ordered: int
    # --- the problems ---------------------------------------------------------------------------
    values: Float64Cube  # (B, M, T)
    weights: Float64Matrix  # (B, T)
    types: Int32Matrix  # (B, M)
    caps: Float64Matrix  # (B, C), with some slack for rounding
    gaps: Int32Matrix  # (B, C), 1..T
    first_slots: Int32Matrix  # (B, C), 0..T
    prefix_caps: Int32Cube  # (B, C, T), 0..M
    floors: Int32Matrix  # (B, C), 0..M + 1
    # --- the plans ------------------------------------------------------------------------------
    slots: Int32Matrix  # (B, M), the best plan so far
    found: Int32Vector  # (B,), 1 if there is one
    value: Float64Vector  # (B,), its value
    bound: Float64Vector  # (B,)
    blocked: Int32Vector  # (B,), why there is no plan: see bounds.prepare
    dropped: Float64Vector  # (B,), highest bound of what the search dropped; UNREACHABLE = nothing
    labels: Int64Vector  # (B,), number of labels that the search has made
    # --- the relaxation, one row per worker ---------------------------------------------------------
    queue: Int32Matrix  # (W, M), cards by type, then by index
    queue_start: Int32Matrix  # (W, C + 1)
    limit: Int32Matrix  # (W, C), maximum number of cards of a type in any plan
    most: Int32Matrix  # (W, C * T), maximum number of cards of a type in slots 0..t, non-decreasing in t
    bounded: Int32Matrix  # (W, C), 1 if the cap of the type may bind
    sets: Int32Matrix  # (W, C), 1 if the states of the type are sets of cards, 0 if they are counts
    states: Int32Matrix  # (W, C), number of states of the type
    levels: Int32Matrix  # (W, C), levels of free weight of the type
    units: Int32Matrix  # (W, C * T), weight of a slot in levels, rounded down
    level_size: Float64Matrix  # (W, C), weight of one level
    tolerance: Float64Vector  # (W,), values closer than this count as equal
    table: Float64Matrix  # (W, C * (T + 1) * n_states * LEVELS), best rest of a type's plan
    least_weight: Float64Matrix  # (W, C * (T + 1) * n_counts), lightest rest that meets the floor
    gain: Float64Matrix  # (W, T), gain of the best card of a type at each slot, at current prices
    prices: Float64Matrix  # (W, T + M + C), of slots, cards, weight
    best_prices: Float64Matrix  # (W, T + M + C), the prices that gave the lowest bound
    slack: Float64Matrix  # (W, T + M + C), what the relaxed plan leaves of each
    choice: Int32Matrix  # (W, T * C), card that the relaxed plan of a type puts at a slot; -1 = none
    draft: Int32Matrix  # (W, M), a plan under construction
    counts: Int32Matrix  # (W, C), its number of cards of each type
    used: Float64Matrix  # (W, C), its weight
    # --- the search, 2 L rows per worker ------------------------------------------------------------
    label_value: Float64Vector
    label_bound: Float64Vector
    label_weight: Float64Matrix  # (2 W L, C), weight used; 0 where the cap cannot bind
    label_free: Int32Matrix  # (2 W L, C), first slot the type may take
    label_count: Int32Matrix  # (2 W L, C), cards placed
    label_state: Int32Matrix  # (2 W L, C), as in the table
    label_cards: UInt64Matrix  # (2 W L, words), set of the cards that may no longer be placed
    label_slots: Int32Matrix  # (2 W L, M), the plan
    label_hash: UInt64Vector  # (2 W L,)
    label_next: Int32Vector  # (2 W L,), next label with the same state but another trade-off; -1 = none
    heads: Int32Matrix  # (W, H), first label of a hash; -1 = none
    order: Float64Matrix  # (W, L), scratch of the selection
    rest: Float64Matrix  # (W, 2 C), best rests of the types of a label


def allocate(batch: MixBatch, workers: int, capacity: int) -> MixArrays:
    """Copy the problems and allocate the workspace of `workers` threads with `capacity` labels each."""
    n_cards, n_slots, n_types = batch.size
    most_of_a_type = (batch.types[:, :, None] == np.arange(n_types)).sum(axis=1).max()
    counts, words, rows = int(most_of_a_type) + 1, (n_cards + 63) // 64, 2 * workers * capacity
    states = max(counts, 1 << MOST_IN_SET)
    hash_size = 1 << int(np.ceil(np.log2(4 * capacity)))

    def ints(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int32)

    def clipped(values: np.ndarray, low: int, high: int) -> np.ndarray:
        return np.ascontiguousarray(np.clip(values, low, high), np.int32)

    n_prices, n_table = n_slots + n_cards + n_types, n_types * (n_slots + 1) * counts
    return MixArrays(
        n_cards=n_cards,
        n_slots=n_slots,
        n_types=n_types,
        n_counts=counts,
        n_states=states,
        n_words=words,
        capacity=capacity,
        ordered=int(batch.ordered),
        values=batch.values,
        weights=batch.weights,
        types=clipped(batch.types, 0, n_types),
        caps=batch.caps + 1e-9 * np.maximum(1, np.where(np.isfinite(batch.caps), batch.caps, 0)),
        gaps=clipped(batch.gaps, 1, n_slots),
        first_slots=clipped(batch.first_slots, 0, n_slots),
        prefix_caps=clipped(batch.most_by_slot(), 0, n_cards),
        floors=clipped(batch.fewest(), 0, n_cards + 1),
        slots=np.full((len(batch), n_cards), LEFT_OUT, np.int32),
        found=ints(len(batch)),
        value=np.zeros(len(batch)),
        bound=np.zeros(len(batch)),
        blocked=ints(len(batch)),
        dropped=np.full(len(batch), UNREACHABLE),
        labels=np.zeros(len(batch), np.int64),
        queue=ints(workers, n_cards),
        queue_start=ints(workers, n_types + 1),
        limit=ints(workers, n_types),
        most=ints(workers, n_types * n_slots),
        bounded=ints(workers, n_types),
        tolerance=np.zeros(workers),
        sets=ints(workers, n_types),
        states=np.ones((workers, n_types), np.int32),
        levels=np.ones((workers, n_types), np.int32),
        units=ints(workers, n_types * n_slots),
        level_size=np.ones((workers, n_types)),
        table=np.zeros((workers, n_types * (n_slots + 1) * states * LEVELS)),
        least_weight=np.zeros((workers, n_table)),
        gain=np.zeros((workers, n_slots)),
        prices=np.zeros((workers, n_prices)),
        best_prices=np.zeros((workers, n_prices)),
        slack=np.zeros((workers, n_prices)),
        choice=ints(workers, n_slots * n_types),
        draft=ints(workers, n_cards),
        counts=ints(workers, n_types),
        used=np.zeros((workers, n_types)),
        label_value=np.zeros(rows),
        label_bound=np.zeros(rows),
        label_weight=np.zeros((rows, n_types)),
        label_free=ints(rows, n_types),
        label_count=ints(rows, n_types),
        label_state=ints(rows, n_types),
        label_cards=np.zeros((rows, words), np.uint64),
        label_slots=ints(rows, n_cards),
        label_hash=np.zeros(rows, np.uint64),
        label_next=ints(rows),
        heads=np.full((workers, hash_size), -1, np.int32),
        order=np.zeros((workers, capacity)),
        rest=np.zeros((workers, 2 * n_types)),
    )
