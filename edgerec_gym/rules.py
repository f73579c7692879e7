"""Share caps, spacing and budgets as kernels over one row: what may land at the next slot."""

from __future__ import annotations

from numba import njit


@njit
def insertion_allowed(state, row, card_type):
    """Whether card type k = 1..T-1 may land at the next slot (first slot, gap, prefix cap)."""
    slot = state.slot[row]
    k = card_type - 1
    if slot < state.first_slots[k]:
        return False
    last = state.type_last[row, card_type]
    if last >= 0 and slot - last < state.gaps[k]:
        return False
    prefix = max(slot + 1, state.page_size)
    # The small slack keeps 0.1 * 50 from rounding to 4.999...
    return state.type_count[row, card_type] + 1 <= state.share_caps[k] * prefix + 1e-9


@njit
def request_allowed(state, row):
    """Whether the policy may request a page: none in flight, and budget left."""
    return state.wire[row] == 0 and (state.budget < 0 or state.requests[row] < state.budget)
