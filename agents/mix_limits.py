"""What the rules alone say of a problem: how many cards of a type fit by each slot, which floors are met."""

from __future__ import annotations

from edgerec_gym.agents.mix_arrays import UNREACHABLE
from edgerec_gym.jit import kernel

NOTHING_FITS = -1  # `blocked` of a problem whose only plan is the empty one


@kernel
def count_at(a, c, t, j):
    """Place in least_weight of the rest of type c from slot t on, with j cards placed."""
    return (c * (a.n_slots + 1) + t) * a.n_counts + j


@kernel
def prepare(a, row, worker):
    """Sort the cards by type, find how many of each fit, and whether each floor can be met.

    Writes queue, queue_start, limit, most, bounded, least_weight and tolerance; and `blocked` of the row: 0,
    or 1 + c if the floor of type c cannot be met, or 1 + C + c if it cannot under its cap, or NOTHING_FITS.
    """
    a.blocked[row] = 0
    a.found[row] = 0
    a.labels[row] = 0
    largest = 0.0
    at = 0
    for c in range(a.n_types):
        a.queue_start[worker, c] = at
        for m in range(a.n_cards):
            if a.types[row, m] == c:
                a.queue[worker, at] = m
                at += 1
        a.queue_start[worker, c + 1] = at
        placeable = 0
        for k in range(a.queue_start[worker, c], at):
            usable = False
            for t in range(a.first_slots[row, c], a.n_slots):
                value = a.values[row, a.queue[worker, k], t]
                if value > UNREACHABLE:
                    usable = True
                    largest = max(largest, abs(value))
            if usable:
                placeable += 1
            elif a.ordered == 1:
                break  # nor can those behind it in the queue
        _limit_type(a, row, worker, c, placeable)
    a.tolerance[worker] = 1e-11 * largest
    fits = 0
    for c in range(a.n_types):
        fits += a.limit[worker, c]
    if fits == 0 and a.blocked[row] == 0:
        a.blocked[row] = NOTHING_FITS
        a.found[row] = 1
        a.value[row] = 0.0
        a.bound[row] = 0.0


@kernel
def _limit_type(a, row, worker, c, placeable):
    """Find how many cards of a type fit in each prefix, given gap, caps and how many may be placed at all."""
    n_slots, least = a.n_slots, a.least_weight[worker]
    gap, first, cap = a.gaps[row, c], a.first_slots[row, c], a.caps[row, c]
    fits = placeable
    for t in range(n_slots - 1, -1, -1):
        fits = min(fits, a.prefix_caps[row, c, t])
        a.most[worker, c * n_slots + t] = fits
    # least[t, n]: weight of the lightest n cards before slot t; what exceeds the cap is no prefix of a plan.
    heaviest = 0.0
    for n in range(a.n_counts):
        least[count_at(a, c, 0, n)] = 0.0 if n == 0 else -UNREACHABLE
    for t in range(n_slots):
        fits = 0
        for n in range(a.n_counts):
            weight = least[count_at(a, c, t, n)]
            if 0 < n <= a.most[worker, c * n_slots + t] and t >= first:
                before = least[count_at(a, c, max(t - gap + 1, 0), n - 1)]
                weight = min(weight, before + a.weights[row, t])
            least[count_at(a, c, t + 1, n)] = weight
            if weight <= cap:
                fits = n
        a.most[worker, c * n_slots + t] = min(a.most[worker, c * n_slots + t], fits)
        if t >= first:
            heaviest = max(heaviest, a.weights[row, t])
    limit = a.most[worker, c * n_slots + n_slots - 1]
    a.limit[worker, c] = limit
    a.bounded[worker, c] = 1 if heaviest * limit > cap else 0
    floor = a.floors[row, c]
    if limit < floor and a.blocked[row] == 0:
        heavy = floor < a.n_counts and least[count_at(a, c, n_slots, floor)] < -UNREACHABLE
        a.blocked[row] = 1 + c + (a.n_types if heavy else 0)
    _least_rest(a, row, worker, c)


@kernel
def _least_rest(a, row, worker, c):
    """Fill least_weight: the lightest rest of a type's plan that meets its floor."""
    n_slots, least, gap = a.n_slots, a.least_weight[worker], a.gaps[row, c]
    for j in range(a.n_counts):
        least[count_at(a, c, n_slots, j)] = 0.0 if j >= a.floors[row, c] else -UNREACHABLE
    for t in range(n_slots - 1, -1, -1):
        for j in range(a.n_counts):
            weight = least[count_at(a, c, t + 1, j)]
            if j < a.most[worker, c * n_slots + t] and t >= a.first_slots[row, c]:
                rest = least[count_at(a, c, min(t + gap, n_slots), j + 1)]
                weight = min(weight, rest + a.weights[row, t])
            least[count_at(a, c, t, j)] = weight


@kernel
def keep_best(a, row, value, slots):
    """Keep a plan if it is the best of the row so far."""
    if a.found[row] == 1 and value <= a.value[row]:
        return
    a.found[row] = 1
    a.value[row] = value
    for m in range(a.n_cards):
        a.slots[row, m] = slots[m]
