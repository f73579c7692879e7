"""Search over partial plans, slot by slot: dynamic programming with bounds and dominance.

A label is a partial plan. Its state is what the future depends on: from which slot on each type may be
placed, and which cards are left. A label is dropped if another of the same state is worth more, or if its
value plus the bound on the rest does not exceed the best known plan. If more labels are left than a given
width, the worst are dropped; with a small width this is a beam search. If none are dropped for that reason,
the result is exact.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.planner.arrays import UNREACHABLE
from edgerec_gym.agents.planner.bounds import count_at, keep_best, level_of, priced, state_with, table_at
from edgerec_gym.agents.planner.problem import LEFT_OUT
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.random_stream import fold

MOST_COMPARED = 32  # labels of one state that a new label is compared with; more comparisons rarely drop one
_ONE = np.uint64(1)


@kernel
def root(a, row, worker, label):
    """Write the empty plan; returns the number of labels."""
    bound = priced(a, row, worker)
    for c in range(a.n_types):
        bound += a.table[worker, table_at(a, worker, c, 0, 0) + a.levels[worker, c] - 1]
        a.label_weight[label, c] = 0.0
        a.label_free[label, c] = a.first_slots[row, c] if a.limit[worker, c] > 0 else a.n_slots
        a.label_count[label, c] = 0
        a.label_state[label, c] = 0
    for word in range(a.n_words):
        a.label_cards[label, word] = np.uint64(0)
    for m in range(a.n_cards):
        a.label_slots[label, m] = LEFT_OUT
    a.label_value[label] = 0.0
    a.label_bound[label] = bound
    return 1


@kernel
def place(a, row, worker, label, m, t):
    """Add a card to a partial plan, leaving its bound as it is.

    Once a type has as many cards as it may have, its state is the same whichever cards they are.
    """
    c = a.types[row, m]
    a.label_value[label] += a.values[row, m, t]
    a.label_slots[label, m] = t
    a.label_count[label, c] += 1
    _strike(a, label, m)
    if a.label_count[label, c] == a.limit[worker, c]:
        a.label_weight[label, c] = 0.0
        a.label_free[label, c] = a.n_slots
        for k in range(a.queue_start[worker, c], a.queue_start[worker, c + 1]):
            _strike(a, label, a.queue[worker, k])
        return
    a.label_free[label, c] = min(t + a.gaps[row, c], a.n_slots)
    if a.bounded[worker, c] == 1:
        a.label_weight[label, c] += a.weights[row, t]


@kernel
def copy(a, source, target):
    """Copy a label."""
    a.label_value[target] = a.label_value[source]
    a.label_bound[target] = a.label_bound[source]
    for c in range(a.n_types):
        a.label_weight[target, c] = a.label_weight[source, c]
        a.label_free[target, c] = a.label_free[source, c]
        a.label_count[target, c] = a.label_count[source, c]
        a.label_state[target, c] = a.label_state[source, c]
    for word in range(a.n_words):
        a.label_cards[target, word] = a.label_cards[source, word]
    for m in range(a.n_cards):
        a.label_slots[target, m] = a.label_slots[source, m]


@kernel
def is_left(a, label, m):
    """Whether a card may still be placed."""
    return (a.label_cards[label, m >> 6] >> np.uint64(m & 63)) & _ONE == 0


@kernel
def _strike(a, label, m):
    """Mark a card as no longer available."""
    a.label_cards[label, m >> 6] |= _ONE << np.uint64(m & 63)


@kernel
def insert(a, worker, there, child, t):
    """Enter a label after slot t unless another of its state beats it; returns 1 if it needs a new place.

    The label is at `child`; if it beats one of the others, it takes that one's place.
    """
    key = np.uint64(0)
    for c in range(a.n_types):
        a.label_free[child, c] = max(a.label_free[child, c], t + 1)
        key = fold(key, a.label_free[child, c])
    for word in range(a.n_words):
        key = fold(key, a.label_cards[child, word])
    a.label_hash[child] = key
    head = np.int64(key & np.uint64(a.heads.shape[1] - 1))
    other, compared = np.int64(a.heads[worker, head]), 0
    while other >= 0 and compared < MOST_COMPARED:
        compared += 1
        if a.label_hash[other] == key and _same_state(a, other, child):
            if _beats(a, other, child):
                return 0
            if _beats(a, child, other):
                following = a.label_next[other]
                copy(a, child, other)
                a.label_next[other] = following
                return 0
        other = np.int64(a.label_next[other])
    a.label_next[child] = a.heads[worker, head]
    a.heads[worker, head] = child
    return 1


@kernel
def _same_state(a, one, other):
    """Whether the futures of two labels are the same except for the weight that is left."""
    for c in range(a.n_types):
        if a.label_free[one, c] != a.label_free[other, c] or a.label_count[one, c] != a.label_count[other, c]:
            return False
    for word in range(a.n_words):
        if a.label_cards[one, word] != a.label_cards[other, word]:
            return False
    return True


@kernel
def _beats(a, one, other):
    """Whether a label of the same state is worth at least as much and no heavier."""
    if a.label_value[one] < a.label_value[other]:
        return False
    for c in range(a.n_types):
        if a.label_weight[one, c] > a.label_weight[other, c]:
            return False
    return True


@kernel
def forget(a, worker, there, n_there):
    """Clear the hash table."""
    mask = np.uint64(a.heads.shape[1] - 1)
    for label in range(there, there + n_there):
        a.heads[worker, np.int64(a.label_hash[label] & mask)] = -1


@kernel
def remember(a, worker, there, n_there):
    """Enter all labels into an empty hash table."""
    mask = np.uint64(a.heads.shape[1] - 1)
    for label in range(there, there + n_there):
        head = np.int64(a.label_hash[label] & mask)
        a.label_next[label] = a.heads[worker, head]
        a.heads[worker, head] = label


@kernel
def _rank(a, label, trust):
    """Key that labels are ordered by: value plus `trust` times the bound on the rest."""
    return a.label_value[label] + trust * (a.label_bound[label] - a.label_value[label])


@kernel
def select(a, worker, there, n_there, width, trust):
    """Keep the `width` labels of the highest bounds; returns how many are left and the best bound dropped."""
    if n_there <= width:
        return n_there, UNREACHABLE
    bounds = a.order[worker]
    for k in range(n_there):
        bounds[k] = _rank(a, there + k, trust)
    least = _nth_largest(bounds, n_there, width)
    above = 0
    for k in range(n_there):
        if _rank(a, there + k, trust) > least:
            above += 1
    equal, kept, dropped = width - above, 0, UNREACHABLE
    for k in range(n_there):
        rank = _rank(a, there + k, trust)
        if rank > least or (rank == least and equal > 0):
            if rank == least:
                equal -= 1
            if kept < k:
                copy(a, there + k, there + kept)
                a.label_hash[there + kept] = a.label_hash[there + k]
            kept += 1
        else:
            dropped = max(dropped, a.label_bound[there + k])
    return kept, dropped


@kernel
def _nth_largest(x, n, rank):
    """Value of the rank-th largest of n numbers, rank = 1..n; reorders them (Hoare's selection)."""
    low, high, at = 0, n - 1, rank - 1
    while low < high:
        pivot = x[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while x[i] > pivot:
                i += 1
            while x[j] < pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return x[at]


@kernel
def search(a, row, worker, width, trust):
    """Search with at most `width` labels at a slot; returns the highest bound of what was dropped.

    The table must hold the rests at current prices. A plan better than the row's current one is kept. Labels
    are selected by their value plus `trust` times the bound on the rest.
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
    """Whether a bound leaves room for a better plan than the row's current one."""
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
        # The type's remaining weight and cards are worth nothing from here on.
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
