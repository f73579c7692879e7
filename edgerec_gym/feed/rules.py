"""Share caps, spacing and budgets as kernels over one row: what is allowed at the next slot."""

from __future__ import annotations

from edgerec_gym.compiled.jit import kernel


@kernel
def insertion_allowed(feed, row, card_type):
    """Whether card type k = 1..T-1 may land at the next slot (first slot, gap, prefix cap)."""
    slot = feed.slot[row]
    k = card_type - 1
    if slot < feed.first_slots[k]:
        return False
    last = feed.type_last[row, card_type]
    if last >= 0 and slot - last < feed.gaps[k]:
        return False
    prefix = max(slot + 1, feed.page_size)
    # The slack guards against 0.1 * 50 rounding to 4.999...
    return feed.type_count[row, card_type] + 1 <= feed.share_caps[k] * prefix + 1e-9


@kernel
def request_allowed(feed, row):
    """Whether the policy may request a page: none in flight, and budget left."""
    return feed.wire[row] == 0 and (feed.budget < 0 or feed.requests[row] < feed.budget)
