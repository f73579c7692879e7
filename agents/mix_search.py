"""Search over partial plans, slot by slot: dynamic programming that drops what a bound or another plan beats.

A label is a partial plan. Its state is what the future depends on: from which slot on each type may land, and
which cards are left. Of labels with one state only those survive that no other beats in value and in weight
(memo and dominance); a label ends whose value plus the Lagrangian bound on the rest does not pass the best
plan known. If more labels are left than a width allows, those with the lowest bounds are dropped: with a
small width that is a beam search, and with nothing dropped the result is exact.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.mix_arrays import UNREACHABLE
from edgerec_gym.agents.mix_limits import count_at, keep_best
from edgerec_gym.agents.mix_problem import LEFT_OUT
from edgerec_gym.agents.mix_relaxation import level_of, priced, table_at
from edgerec_gym.jit import kernel
from edgerec_gym.random_stream import fold

_ONE = np.uint64(1)


@kernel
def search(a, row, worker, width):
    """Search with at most `width` labels a slot; returns the highest bound of what was dropped.

    The table holds the prices' rests. A better plan than the row's present one is kept as its plan.
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
                _forget(a, worker, there, n_there)
                n_there, bound = _select(a, worker, there, n_there, width)
                _remember(a, worker, there, n_there)
                dropped = max(dropped, bound)
            n_there = _expand(a, row, worker, label, t, there, n_there)
        _forget(a, worker, there, n_there)
        n_there, bound = _select(a, worker, there, n_there, width)
        dropped = max(dropped, bound)
        a.labels[row] += n_there
        here, there, n_here = there, here, n_there
        if n_here == 0:
            break
    for label in range(here, here + n_here):
        keep_best(a, row, a.label_value[label], a.label_slots[label])
    return dropped


@kernel
def root(a, row, worker, label):
    """Write the empty plan; returns the number of labels."""
    bound = priced(a, row, worker)
    for c in range(a.n_types):
        bound += a.table[worker, table_at(a, worker, c, 0, 0) + a.levels[worker, c] - 1]
        a.label_weight[label, c] = 0.0
        a.label_free[label, c] = a.first_slots[row, c] if a.limit[worker, c] > 0 else a.n_slots
        a.label_count[label, c] = 0
    for word in range(a.n_words):
        a.label_cards[label, word] = np.uint64(0)
    for m in range(a.n_cards):
        a.label_slots[label, m] = LEFT_OUT
    a.label_value[label] = 0.0
    a.label_bound[label] = bound
    return 1


@kernel
def _is_left(a, label, m):
    """Whether a card may still be placed."""
    return (a.label_cards[label, m >> 6] >> np.uint64(m & 63)) & _ONE == 0


@kernel
def _strike(a, label, m):
    """A card may not be placed any more."""
    a.label_cards[label, m >> 6] |= _ONE << np.uint64(m & 63)


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
        free, j = a.label_free[label, c], a.label_count[label, c]
        level = level_of(a, row, worker, c, a.label_weight[label, c])
        before += table[table_at(a, worker, c, max(free, t), j) + level]
        rest[c] = table[table_at(a, worker, c, max(free, t + 1), j) + level]
        after += rest[c]
    bound = a.label_bound[label] - before - a.prices[worker, t]
    if _passes(a, row, worker, bound + after):
        child = there + n_there
        _copy(a, label, child)
        a.label_bound[child] = bound + after
        n_there += _insert(a, worker, there, child, t)
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
        level = level_of(a, row, worker, c, weight)
        ahead_bound = bound + others + table[table_at(a, worker, c, ahead, j + 1) + level]
        n_there = _place_each(a, row, worker, label, t, there, n_there, c, weight, ahead_bound)
    return n_there


@kernel
def _place_each(a, row, worker, label, t, there, n_there, c, weight, bound):
    """Add the children with a card of type c at slot t."""
    prices, n_slots, j = a.prices[worker], a.n_slots, a.label_count[label, c]
    start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
    price = prices[n_slots + a.n_cards + c]
    bound -= price * a.weights[row, t]
    last = j + 1 == a.limit[worker, c]
    if last:
        # What is left of the type's weight and cards is worth nothing any more.
        if a.bounded[worker, c] == 1:
            bound -= price * (a.caps[row, c] - weight)
        for k in range(start, stop):
            if _is_left(a, label, a.queue[worker, k]):
                bound -= prices[n_slots + a.queue[worker, k]]
    if a.ordered == 1:
        start, stop = start + j, start + j + 1
    for k in range(start, stop):
        m = a.queue[worker, k]
        value = a.values[row, m, t]
        if value <= UNREACHABLE or not _is_left(a, label, m):
            continue
        child_bound = bound + value - (0.0 if last else prices[n_slots + m])
        if not _passes(a, row, worker, child_bound):
            continue
        child = there + n_there
        _copy(a, label, child)
        place(a, row, worker, child, m, t)
        a.label_bound[child] = child_bound
        n_there += _insert(a, worker, there, child, t)
    return n_there


@kernel
def place(a, row, worker, label, m, t):
    """Add a card to a partial plan, its bound left as it is.

    A type that has all the cards it may have gets the same state whichever they are.
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
def _copy(a, source, target):
    """Copy a label."""
    a.label_value[target] = a.label_value[source]
    a.label_bound[target] = a.label_bound[source]
    for c in range(a.n_types):
        a.label_weight[target, c] = a.label_weight[source, c]
        a.label_free[target, c] = a.label_free[source, c]
        a.label_count[target, c] = a.label_count[source, c]
    for word in range(a.n_words):
        a.label_cards[target, word] = a.label_cards[source, word]
    for m in range(a.n_cards):
        a.label_slots[target, m] = a.label_slots[source, m]


@kernel
def _insert(a, worker, there, child, t):
    """Enter a label behind slot t unless another of its state beats it; returns 1 if it needs a place.

    It stands at `child`; if it beats one of the others, it takes that one's place.
    """
    key = np.uint64(0)
    for c in range(a.n_types):
        a.label_free[child, c] = max(a.label_free[child, c], t + 1)
        key = fold(key, a.label_free[child, c])
    for word in range(a.n_words):
        key = fold(key, a.label_cards[child, word])
    a.label_hash[child] = key
    head = np.int64(key & np.uint64(a.heads.shape[1] - 1))
    other = np.int64(a.heads[worker, head])
    while other >= 0:
        if a.label_hash[other] == key and _same_state(a, other, child):
            if _beats(a, other, child):
                return 0
            if _beats(a, child, other):
                following = a.label_next[other]
                _copy(a, child, other)
                a.label_next[other] = following
                return 0
        other = np.int64(a.label_next[other])
    a.label_next[child] = a.heads[worker, head]
    a.heads[worker, head] = child
    return 1


@kernel
def _same_state(a, one, other):
    """Whether the futures of two labels are the same but for the weight that is left."""
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
def _forget(a, worker, there, n_there):
    """Clear the hash table."""
    mask = np.uint64(a.heads.shape[1] - 1)
    for label in range(there, there + n_there):
        a.heads[worker, np.int64(a.label_hash[label] & mask)] = -1


@kernel
def _remember(a, worker, there, n_there):
    """Enter all labels into an empty hash table."""
    mask = np.uint64(a.heads.shape[1] - 1)
    for label in range(there, there + n_there):
        head = np.int64(a.label_hash[label] & mask)
        a.label_next[label] = a.heads[worker, head]
        a.heads[worker, head] = label


@kernel
def _select(a, worker, there, n_there, width):
    """Keep the `width` labels of the highest bounds; returns how many are left and the best one dropped."""
    if n_there <= width:
        return n_there, UNREACHABLE
    bounds = a.order[worker]
    for k in range(n_there):
        bounds[k] = a.label_bound[there + k]
    least = _nth_largest(bounds, n_there, width)
    above = 0
    for k in range(n_there):
        if a.label_bound[there + k] > least:
            above += 1
    equal, kept, dropped = width - above, 0, UNREACHABLE
    for k in range(n_there):
        bound = a.label_bound[there + k]
        if bound > least or (bound == least and equal > 0):
            if bound == least:
                equal -= 1
            if kept < k:
                _copy(a, there + k, there + kept)
                a.label_hash[there + kept] = a.label_hash[there + k]
            kept += 1
        else:
            dropped = max(dropped, bound)
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
