"""Lagrangian relaxation of mixed insertion: upper bounds, their prices, and plans repaired from them.

Prices on slots (one card each), cards (placed once) and weight (the caps) leave a plan for each type alone,
which a dynamic programme over (slot, cards so far) solves under gap, first slot, prefix caps and floors. The
prices come from subgradient steps (Held, Wolfe & Crowder 1974; Fisher 1981) of Polyak's length. Where cards
are few, a price on weight bounds badly: the programme can follow weight itself instead, in levels.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.mix_arrays import LEVELS, UNREACHABLE
from edgerec_gym.agents.mix_limits import keep_best, prepare
from edgerec_gym.agents.mix_problem import LEFT_OUT
from edgerec_gym.jit import kernel

PATIENCE = 5  # steps without a lower bound, after which they become half as long
SHORTEST = 1e-3  # of the first step length, at which they end


@kernel
def table_at(a, worker, c, t, j):
    """Place in the table of the rest of type c from slot t on, with j cards placed and no weight free."""
    return c * (a.n_slots + 1) * a.n_counts * LEVELS + (t * a.n_counts + j) * a.levels[worker, c]


@kernel
def level_of(a, row, worker, c, weight):
    """Level of the weight that type c has left when it has used some."""
    if a.levels[worker, c] == 1:
        return 0
    # The slack keeps the bound one in spite of rounding.
    return np.int64((a.caps[row, c] - weight) / a.level_size[worker, c] + 1e-9)


@kernel
def price_gain(a, row, worker, c, t, j):
    """Best card of type c at slot t, less the prices, with j of the type placed; (card, gain)."""
    prices, n_slots = a.prices[worker], a.n_slots
    start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
    if a.ordered == 1:
        start, stop = start + j, start + j + 1
    best, card = UNREACHABLE, -1
    for k in range(start, stop):
        m = a.queue[worker, k]
        gain = a.values[row, m, t] - prices[n_slots + m]
        if gain > best:
            best, card = gain, m
    cost = prices[t] + prices[n_slots + a.n_cards + c] * a.weights[row, t]
    return card, (best - cost if card >= 0 else UNREACHABLE)


@kernel
def set_levels(a, row, worker, levels):
    """Track weight in `levels` levels where a cap may bind, instead of giving it a price; 1 = price it."""
    for c in range(a.n_types):
        if a.bounded[worker, c] == 0:
            a.levels[worker, c] = 1
            continue
        a.levels[worker, c] = levels
        a.level_size[worker, c] = max(a.caps[row, c] / (LEVELS - 1), 1e-300)
        for t in range(a.n_slots):
            units = min(a.weights[row, t] / a.level_size[worker, c], 2.0 * LEVELS)
            a.units[worker, c * a.n_slots + t] = np.int32(units) if levels > 1 else 0
        if levels > 1:
            a.prices[worker, a.n_slots + a.n_cards + c] = 0.0


@kernel
def tabulate(a, row, worker):
    """Fill the table at present prices; returns the upper bound, UNREACHABLE if a floor cannot be met."""
    total = 0.0
    for c in range(a.n_types):
        _tabulate_type(a, row, worker, c)
        best = a.table[worker, table_at(a, worker, c, 0, 0) + a.levels[worker, c] - 1]
        if best < 0.5 * UNREACHABLE:
            return UNREACHABLE
        total += best
    return total + priced(a, row, worker)


@kernel
def _tabulate_type(a, row, worker, c):
    n_slots, table, levels = a.n_slots, a.table[worker], a.levels[worker, c]
    limit, gap, gain = a.limit[worker, c], a.gaps[row, c], UNREACHABLE
    for j in range(limit + 1):
        at = table_at(a, worker, c, n_slots, j)
        for level in range(levels):
            table[at + level] = 0.0 if j >= a.floors[row, c] else UNREACHABLE
    for t in range(n_slots - 1, -1, -1):
        most = a.most[worker, c * n_slots + t] if t >= a.first_slots[row, c] else 0
        units = np.int64(a.units[worker, c * n_slots + t]) if levels > 1 else 0
        if most > 0 and a.ordered == 0:
            _, gain = price_gain(a, row, worker, c, t, 0)
        for j in range(limit + 1):
            here, below = table_at(a, worker, c, t, j), table_at(a, worker, c, t + 1, j)
            for level in range(levels):
                table[here + level] = table[below + level]
            if j >= most:
                continue
            if a.ordered == 1:
                _, gain = price_gain(a, row, worker, c, t, j)
            ahead = table_at(a, worker, c, min(t + gap, n_slots), j + 1) - units
            if gain > UNREACHABLE:
                for level in range(units, levels):
                    table[here + level] = max(table[here + level], gain + table[ahead + level])


@kernel
def priced(a, row, worker):
    """Worth of everything that has a price: all slots, cards and capped weight."""
    prices, total = a.prices[worker], 0.0
    for k in range(a.n_slots + a.n_cards):
        total += prices[k]
    for c in range(a.n_types):
        if a.bounded[worker, c] == 1:
            total += prices[a.n_slots + a.n_cards + c] * a.caps[row, c]
    return total


@kernel
def _trace(a, row, worker):
    """Read the relaxed plans off the table: choice, and what they leave of slots, cards and weight."""
    n_slots, n_cards, table = a.n_slots, a.n_cards, a.table[worker]
    slack, choice = a.slack[worker], a.choice[worker]
    for k in range(n_slots + n_cards):
        slack[k] = 1.0
    for c in range(a.n_types):
        slack[n_slots + n_cards + c] = 0.0
        if a.bounded[worker, c] == 1 and a.levels[worker, c] == 1:
            slack[n_slots + n_cards + c] = a.caps[row, c]
        for t in range(n_slots):
            choice[t * a.n_types + c] = -1
        t, j, level = 0, 0, a.levels[worker, c] - 1
        while t < n_slots and j < a.limit[worker, c]:
            at, below = table_at(a, worker, c, t, j), table_at(a, worker, c, t + 1, j)
            if table[at + level] == table[below + level]:
                t += 1
                continue
            card, _ = price_gain(a, row, worker, c, t, j)
            choice[t * a.n_types + c] = card
            slack[t] -= 1.0
            slack[n_slots + card] -= 1.0
            if a.levels[worker, c] > 1:
                level -= a.units[worker, c * n_slots + t]
            elif a.bounded[worker, c] == 1:
                slack[n_slots + n_cards + c] -= a.weights[row, t]
            t, j = t + a.gaps[row, c], j + 1


@kernel
def _repair(a, row, worker):
    """Make a plan of the relaxed ones: slot by slot the best of the types that want it, if it may stand."""
    draft, counts, used, total = a.draft[worker], a.counts[worker], a.used[worker], 0.0
    for m in range(a.n_cards):
        draft[m] = LEFT_OUT
    for c in range(a.n_types):
        counts[c] = 0
        used[c] = 0.0
    for t in range(a.n_slots):
        best, card = UNREACHABLE, -1
        for c in range(a.n_types):
            if a.choice[worker, t * a.n_types + c] < 0 or used[c] + a.weights[row, t] > a.caps[row, c]:
                continue
            start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
            if a.ordered == 1:
                start = start + counts[c]
                stop = min(start + 1, stop)
            for k in range(start, stop):
                m = a.queue[worker, k]
                if draft[m] == LEFT_OUT and a.values[row, m, t] > best:
                    best, card = a.values[row, m, t], m
        if card >= 0 and (best > 0.0 or counts[a.types[row, card]] < a.floors[row, a.types[row, card]]):
            draft[card] = t
            total += best
            counts[a.types[row, card]] += 1
            used[a.types[row, card]] += a.weights[row, t]
    for c in range(a.n_types):
        if counts[c] < a.floors[row, c]:
            return
    keep_best(a, row, total, draft)


@kernel
def begin(a, row, worker):
    """Prepare a row and bound it without prices; returns whether there is anything to plan."""
    prepare(a, row, worker)
    if a.blocked[row] != 0:
        return False
    for k in range(a.n_slots + a.n_cards + a.n_types):
        a.prices[worker, k] = 0.0
        a.best_prices[worker, k] = 0.0
    set_levels(a, row, worker, 1)
    a.bound[row] = tabulate(a, row, worker)
    if a.bound[row] == UNREACHABLE:
        for c in range(a.n_types):
            if a.table[worker, table_at(a, worker, c, 0, 0)] < 0.5 * UNREACHABLE:
                a.blocked[row] = 1 + c
                break
    return a.blocked[row] == 0


@kernel
def relax(a, row, worker, steps):
    """Lower the bound by subgradient steps from the best prices; leaves the table at the best ones."""
    prices, best_prices, slack = a.prices[worker], a.best_prices[worker], a.slack[worker]
    n_prices = a.n_slots + a.n_cards + a.n_types
    length, stalled = 1.0, 0
    for _ in range(steps):
        bound = tabulate(a, row, worker)
        if bound < a.bound[row]:
            stalled = 0 if bound < a.bound[row] - 1e-4 * abs(a.bound[row]) else stalled + 1
            a.bound[row] = bound
            move_prices(prices, best_prices, n_prices)
        else:
            stalled += 1
        if stalled >= PATIENCE:
            length, stalled = 0.5 * length, 0
            move_prices(best_prices, prices, n_prices)
            bound = tabulate(a, row, worker)
        _trace(a, row, worker)
        _repair(a, row, worker)
        target = a.value[row] if a.found[row] == 1 else 0.0
        ahead = bound - target
        norm = 0.0
        for k in range(n_prices):
            if prices[k] > 0.0 or slack[k] < 0.0:
                norm += slack[k] * slack[k]
        if a.bound[row] - target <= a.tolerance[worker] or length < SHORTEST or norm == 0.0:
            break
        step = length * max(ahead, a.tolerance[worker]) / norm
        for k in range(n_prices):
            prices[k] = max(0.0, prices[k] - step * slack[k])
    move_prices(best_prices, prices, n_prices)
    tabulate(a, row, worker)


@kernel
def move_prices(source, target, n):
    """Copy n prices."""
    for k in range(n):
        target[k] = source[k]


@kernel
def mean_prices(a, row, worker, card, weight):
    """Write the best prices by type: the mean over its cards, and that of weight."""
    prices = a.best_prices[worker]
    for c in range(a.n_types):
        start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
        card[row, c] = 0.0
        for k in range(start, stop):
            card[row, c] += prices[a.n_slots + a.queue[worker, k]] / (stop - start)
        weight[row, c] = prices[a.n_slots + a.n_cards + c]
