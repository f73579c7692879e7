"""Search over partial plans, slot by slot: dynamic programming that drops what a bound or another plan beats.

A label is a partial plan. Its state is what the future depends on: from which slot on each type may land,
and which cards are left. Labels of one state compete (mix_labels.py); a label ends whose value plus the
bound on the rest does not pass the best plan known. If more labels are left than a width allows, the worst
are dropped: with a small width that is a beam search, and with nothing dropped the result is exact.
"""

from __future__ import annotations

from edgerec_gym.agents.mix_arrays import UNREACHABLE
from edgerec_gym.agents.mix_labels import copy, forget, insert, is_left, place, remember, root, select
from edgerec_gym.agents.mix_limits import count_at, keep_best
from edgerec_gym.agents.mix_rests import level_of, state_with, table_at
from edgerec_gym.jit import kernel


@kernel
def search(a, row, worker, width, trust):
    """Search with at most `width` labels a slot; returns the highest bound of what was dropped.

    The table must hold the rests at present prices. A plan better than the row's present one is kept. Labels
    are chosen by their value plus `trust` times the bound on the rest.
    """
    side = 2 * worker * a.capacity
    here, there = side, side + a.capacity
    n_here = root(a, row, worker, here)
    dropped = UNREACHABLE
    for t in range(a.n_slots):
        n_there = 0
        for label in range(here, here + n_here):
            # A label has at most M + 1 children.
            if n_there + a.n_cards + 1 > a.capacity:
                forget(a, worker, there, n_there)
                n_there, bound = select(a, worker, there, n_there, width, trust)
                remember(a, worker, there, n_there)
                dropped = max(dropped, bound)
            n_there = _expand(a, row, worker, label, t, there, n_there)
        forget(a, worker, there, n_there)
        n_there, bound = select(a, worker, there, n_there, width, trust)
        dropped = max(dropped, bound)
        a.labels[row] += n_there
        here, there, n_here = there, here, n_there
        if n_here == 0:
            break
    for label in range(here, here + n_here):
        keep_best(a, row, a.label_value[label], a.label_slots[label])
    return dropped


@kernel
def _passes(a, row, worker, bound):
    """Whether a bound leaves room for a better plan than the row's present one."""
    if a.found[row] == 0:
        return bound > 0.5 * UNREACHABLE
    return bound > a.value[row] + a.tolerance[worker]


@kernel
def _expand(a, row, worker, label, t, there, n_there):
    """Add the children of a label: nothing at slot t, or one of the cards. Returns the number of labels."""
    rest, n_types, n_slots, table = a.rest[worker], a.n_types, a.n_slots, a.table[worker]
    before, after = 0.0, 0.0
    for c in range(n_types):
        free, state = a.label_free[label, c], a.label_state[label, c]
        level = level_of(a, row, worker, c, a.label_weight[label, c])
        before += table[table_at(a, worker, c, max(free, t), state) + level]
        rest[c] = table[table_at(a, worker, c, max(free, t + 1), state) + level]
        after += rest[c]
    bound = a.label_bound[label] - before - a.prices[worker, t]
    if _passes(a, row, worker, bound + after):
        child = there + n_there
        copy(a, label, child)
        a.label_bound[child] = bound + after
        n_there += insert(a, worker, there, child, t)
    for c in range(n_types):
        j, weight = a.label_count[label, c], a.label_weight[label, c]
        if a.label_free[label, c] > t or j >= a.most[worker, c * n_slots + t]:
            continue
        ahead = min(t + a.gaps[row, c], n_slots)
        if a.bounded[worker, c] == 1:
            weight += a.weights[row, t]
            if weight + a.least_weight[worker, count_at(a, c, ahead, j + 1)] > a.caps[row, c]:
                continue
        others = 0.0
        for d in range(n_types):
            if d != c:
                others += rest[d]
        n_there = _place_each(a, row, worker, label, t, there, n_there, c, weight, bound + others)
    return n_there


@kernel
def _place_each(a, row, worker, label, t, there, n_there, c, weight, bound):
    """Add the children with a card of type c at slot t."""
    prices, n_slots, j = a.prices[worker], a.n_slots, a.label_count[label, c]
    start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
    price = prices[n_slots + a.n_cards + c]
    bound -= price * a.weights[row, t]
    ahead, level = min(t + a.gaps[row, c], n_slots), level_of(a, row, worker, c, weight)
    last = j + 1 == a.limit[worker, c]
    if last:
        # What is left of the type's weight and cards is worth nothing any more.
        if a.bounded[worker, c] == 1:
            bound -= price * (a.caps[row, c] - weight)
        for k in range(start, stop):
            if is_left(a, label, a.queue[worker, k]):
                bound -= prices[n_slots + a.queue[worker, k]]
    first = start
    if a.ordered == 1:
        start, stop = start + j, start + j + 1
    for k in range(start, stop):
        m = a.queue[worker, k]
        value = a.values[row, m, t]
        if value <= UNREACHABLE or not is_left(a, label, m):
            continue
        state = state_with(a, worker, c, a.label_state[label, c], k - first)
        rest = a.table[worker, table_at(a, worker, c, ahead, state) + level]
        child_bound = bound + value + rest - (0.0 if last else prices[n_slots + m])
        if not _passes(a, row, worker, child_bound):
            continue
        child = there + n_there
        copy(a, label, child)
        place(a, row, worker, child, m, t)
        a.label_state[child, c] = state
        a.label_bound[child] = child_bound
        n_there += insert(a, worker, there, child, t)
    return n_there
