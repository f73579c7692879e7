"""The best rest of one type's plan, by dynamic programming: what bounds in the search are made of.

With prices on slots and cards each type is planned alone. The rest from slot t on depends on a *state*, the
cards of the type placed so far. A coarse state is how many: that a card is placed once is left to the
prices, and so is the cap on weight. A fine one is which, and how much weight is free, in levels; weights
are rounded down to levels, so that the rest stays an upper bound. A type of many cards keeps its coarse
state, and one whose cap cannot bind its one level.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.mix_arrays import LEVELS, MOST_IN_SET, UNREACHABLE
from edgerec_gym.jit import kernel

COARSE, FINE = 0, 1


@kernel
def set_detail(a, row, worker, detail):
    """Choose the states of all types, and drop the prices that fine ones do without."""
    card_prices, weight_prices = a.n_slots, a.n_slots + a.n_cards
    for c in range(a.n_types):
        start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
        fine = detail == FINE and a.ordered == 0 and stop - start <= MOST_IN_SET
        a.sets[worker, c] = 1 if fine else 0
        a.states[worker, c] = 1 << (stop - start) if fine else a.limit[worker, c] + 1
        if fine:
            for k in range(start, stop):
                a.prices[worker, card_prices + a.queue[worker, k]] = 0.0
        a.levels[worker, c] = LEVELS if detail == FINE and a.bounded[worker, c] == 1 else 1
        if a.levels[worker, c] > 1:
            a.prices[worker, weight_prices + c] = 0.0
            a.level_size[worker, c] = max(a.caps[row, c] / (LEVELS - 1), 1e-300)
            for t in range(a.n_slots):
                units = min(a.weights[row, t] / a.level_size[worker, c], 2.0 * LEVELS)
                a.units[worker, c * a.n_slots + t] = np.int32(units)


@kernel
def table_at(a, worker, c, t, state):
    """Place in the table of the rest of type c from slot t on, with no weight free."""
    first = c * (a.n_slots + 1) * a.n_states * LEVELS
    return first + (t * a.states[worker, c] + state) * a.levels[worker, c]


@kernel
def level_of(a, row, worker, c, weight):
    """Level of the weight that type c has left when it has used some."""
    if a.levels[worker, c] == 1:
        return 0
    # The slack keeps the bound one in spite of rounding.
    return np.int64((a.caps[row, c] - weight) / a.level_size[worker, c] + 1e-9)


@kernel
def count_of(a, worker, c, state):
    """Cards placed in a state."""
    if a.sets[worker, c] == 0:
        return state
    count = 0
    while state > 0:
        count += state & 1
        state >>= 1
    return count


@kernel
def state_with(a, worker, c, state, k):
    """State behind one more card, the k-th of the type."""
    return state | (1 << k) if a.sets[worker, c] == 1 else state + 1


@kernel
def slot_price(a, row, worker, c, t):
    """Price of slot t to a card of type c."""
    return a.prices[worker, t] + a.prices[worker, a.n_slots + a.n_cards + c] * a.weights[row, t]


@kernel
def _best_card(a, row, worker, c, t, count):
    """Card of type c that gains most at slot t, by number of the queue, and its gain less its price."""
    start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
    if a.ordered == 1:
        start = start + count
        stop = start + 1
    best, card = UNREACHABLE, -1
    for k in range(start, stop):
        m = a.queue[worker, k]
        gain = a.values[row, m, t] - a.prices[worker, a.n_slots + m]
        if gain > best:
            best, card = gain, k - a.queue_start[worker, c]
    return card, best


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
    n_slots, table, levels, states = a.n_slots, a.table[worker], a.levels[worker, c], a.states[worker, c]
    start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
    for state in range(states):
        at = table_at(a, worker, c, n_slots, state)
        met = count_of(a, worker, c, state) >= a.floors[row, c]
        for level in range(levels):
            table[at + level] = 0.0 if met else UNREACHABLE
    for t in range(n_slots - 1, -1, -1):
        most = a.most[worker, c * n_slots + t] if t >= a.first_slots[row, c] else 0
        units = np.int64(a.units[worker, c * n_slots + t]) if levels > 1 else 0
        ahead, price, gain = min(t + a.gaps[row, c], n_slots), slot_price(a, row, worker, c, t), UNREACHABLE
        if most > 0 and a.sets[worker, c] == 0 and a.ordered == 0:
            _, gain = _best_card(a, row, worker, c, t, 0)
        for state in range(states):
            here, below = table_at(a, worker, c, t, state), table_at(a, worker, c, t + 1, state)
            for level in range(levels):
                table[here + level] = table[below + level]
            if count_of(a, worker, c, state) >= most:
                continue
            if a.sets[worker, c] == 1:
                for k in range(stop - start):
                    gain = a.values[row, a.queue[worker, start + k], t]
                    if (state >> k) & 1 == 0 and gain > UNREACHABLE:
                        behind = table_at(a, worker, c, ahead, state | (1 << k))
                        _offer(table, here, behind, gain - price, units, levels)
                continue
            if a.ordered == 1:
                _, gain = _best_card(a, row, worker, c, t, state)
            if gain > UNREACHABLE:
                _offer(table, here, table_at(a, worker, c, ahead, state + 1), gain - price, units, levels)


@kernel
def _offer(table, here, behind, gain, units, levels):
    """Raise the rests at `here`, level by level, to those of placing a card and going on from `behind`."""
    for level in range(units, levels):
        table[here + level] = max(table[here + level], gain + table[behind + level - units])


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
def first_card(a, row, worker, c, t, state, level):
    """Card that the best rest places at slot t, as its number k in the queue of the type; -1 = none."""
    here, below = table_at(a, worker, c, t, state), table_at(a, worker, c, t + 1, state)
    if a.table[worker, here + level] == a.table[worker, below + level]:
        return -1
    if a.sets[worker, c] == 0:
        card, _ = _best_card(a, row, worker, c, t, state)
        return card
    ahead, start, best, card = min(t + a.gaps[row, c], a.n_slots), a.queue_start[worker, c], UNREACHABLE, -1
    left = level - np.int64(a.units[worker, c * a.n_slots + t]) if a.levels[worker, c] > 1 else 0
    for k in range(a.queue_start[worker, c + 1] - start):
        value = a.values[row, a.queue[worker, start + k], t]
        if (state >> k) & 1 == 0 and value > UNREACHABLE:
            rest = value + a.table[worker, table_at(a, worker, c, ahead, state | (1 << k)) + left]
            if rest > best:
                best, card = rest, k
    return card
