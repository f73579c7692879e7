"""Upper bounds on plans: limits of each problem, the best rest of one type's plan, Lagrangian relaxation.

With prices on slots (one card each), cards (placed once) and weight (the caps), each type can be planned on
its own. The prices come from subgradient steps (Held, Wolfe & Crowder 1974; Fisher 1981) of Polyak's length.

The rest of a type's plan from slot t on depends on a *state*, the cards of the type placed so far. A coarse
state is their number; the prices then enforce that a card is placed only once, and the cap on weight. A fine
state is which cards were placed, and how much weight is free, in levels. Weights are rounded down to levels,
so the rest stays an upper bound. A type with many cards keeps its coarse state, and a type whose cap cannot
bind has a single level.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.planner.arrays import LEVELS, MOST_IN_SET, UNREACHABLE
from edgerec_gym.agents.planner.problem import LEFT_OUT
from edgerec_gym.compiled.jit import kernel

NOTHING_FITS = -1  # `blocked` of a problem whose only plan is the empty one


@kernel
def count_at(a, c, t, j):
    """Index in least_weight of the rest of type c from slot t on, with j cards placed."""
    return (c * (a.n_slots + 1) + t) * a.n_counts + j


@kernel
def prepare(a, row, worker):
    """Sort the cards by type, find how many of each fit, and whether each floor can be met.

    Writes queue, queue_start, limit, most, bounded, least_weight, tolerance, and `blocked` of the row: 0; or
    1 + c if the floor of type c cannot be met; or 1 + C + c if its cap rules it out; or NOTHING_FITS.
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
                break  # the cards behind it in the queue are not usable either
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
    """Find how many cards of a type fit in each prefix, given gap, caps and the number that may be placed."""
    n_slots, least = a.n_slots, a.least_weight[worker]
    gap, first, cap = a.gaps[row, c], a.first_slots[row, c], a.caps[row, c]
    fits = placeable
    for t in range(n_slots - 1, -1, -1):
        fits = min(fits, a.prefix_caps[row, c, t])
        a.most[worker, c * n_slots + t] = fits
    # least[t, n]: weight of the lightest n cards before slot t; no prefix of a plan exceeds the cap.
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
    """Keep a plan if it is the best one of the row so far."""
    if a.found[row] == 1 and value <= a.value[row]:
        return
    a.found[row] = 1
    a.value[row] = value
    for m in range(a.n_cards):
        a.slots[row, m] = slots[m]


COARSE, FINE = 0, 1


@kernel
def set_detail(a, row, worker, detail):
    """Choose the states of all types, and reset the prices that fine states do not need."""
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
    """Index in the table of the rest of type c from slot t on, with no weight free."""
    first = c * (a.n_slots + 1) * a.n_states * LEVELS
    return first + (t * a.states[worker, c] + state) * a.levels[worker, c]


@kernel
def level_of(a, row, worker, c, weight):
    """Level of the weight that type c has left once it has used `weight`."""
    if a.levels[worker, c] == 1:
        return 0
    # The slack keeps it an upper bound in spite of rounding.
    return np.int64((a.caps[row, c] - weight) / a.level_size[worker, c] + 1e-9)


@kernel
def count_of(a, worker, c, state):
    """Number of cards placed in a state."""
    if a.sets[worker, c] == 0:
        return state
    count = 0
    while state > 0:
        count += state & 1
        state >>= 1
    return count


@kernel
def state_with(a, worker, c, state, k):
    """State after one more card, the k-th of the type."""
    return state | (1 << k) if a.sets[worker, c] == 1 else state + 1


@kernel
def slot_price(a, row, worker, c, t):
    """Price of slot t for a card of type c."""
    return a.prices[worker, t] + a.prices[worker, a.n_slots + a.n_cards + c] * a.weights[row, t]


@kernel
def _best_card(a, row, worker, c, t, count):
    """Card of type c that gains most at slot t, by its number in the queue, and its gain less its price."""
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
    """Fill the table at current prices; returns the upper bound, UNREACHABLE if a floor cannot be met."""
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
    """Raise the rests at `here`, level by level, to those of placing a card and continuing from `behind`."""
    for level in range(units, levels):
        table[here + level] = max(table[here + level], gain + table[behind + level - units])


@kernel
def priced(a, row, worker):
    """Total price of everything that has one: all slots, cards and capped weight."""
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


PATIENCE = 5  # steps without a better bound after which the step length is halved
SHORTEST = 1e-3  # fraction of the first step length at which the steps end


@kernel
def _trace(a, row, worker):
    """Read the relaxed plans off the table: `choice`, and what they leave of slots, cards and weight."""
    n_slots, n_cards = a.n_slots, a.n_cards
    slack, choice = a.slack[worker], a.choice[worker]
    for k in range(n_slots + n_cards):
        slack[k] = 1.0
    for c in range(a.n_types):
        has_price = a.bounded[worker, c] == 1 and a.levels[worker, c] == 1
        slack[n_slots + n_cards + c] = a.caps[row, c] if has_price else 0.0
        for t in range(n_slots):
            choice[t * a.n_types + c] = -1
        t, state, level = 0, 0, a.levels[worker, c] - 1
        while t < n_slots:
            k = first_card(a, row, worker, c, t, state, level)
            if k < 0:
                t += 1
                continue
            card = a.queue[worker, a.queue_start[worker, c] + k]
            choice[t * a.n_types + c] = card
            slack[t] -= 1.0
            slack[n_slots + card] -= 1.0
            if a.levels[worker, c] > 1:
                level -= a.units[worker, c * n_slots + t]
            if has_price:
                slack[n_slots + n_cards + c] -= a.weights[row, t]
            t, state = t + a.gaps[row, c], state_with(a, worker, c, state, k)
        if a.sets[worker, c] == 1:
            for k in range(a.queue_start[worker, c], a.queue_start[worker, c + 1]):
                slack[n_slots + a.queue[worker, k]] = 0.0


@kernel
def _repair(a, row, worker):
    """Build a plan from the relaxed ones: at each slot the best legal card of the types that want it."""
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
    set_detail(a, row, worker, COARSE)
    a.bound[row] = tabulate(a, row, worker)
    if a.bound[row] == UNREACHABLE:
        for c in range(a.n_types):
            if a.table[worker, table_at(a, worker, c, 0, 0)] < 0.5 * UNREACHABLE:
                a.blocked[row] = 1 + c
                break
    return a.blocked[row] == 0


@kernel
def relax(a, row, worker, steps):
    """Lower the bound by subgradient steps from the current prices; leaves the table at the best prices."""
    prices, best_prices, slack = a.prices[worker], a.best_prices[worker], a.slack[worker]
    n_prices = a.n_slots + a.n_cards + a.n_types
    best, length, stalled = -UNREACHABLE, 1.0, 0
    for _ in range(steps):
        bound = tabulate(a, row, worker)
        if bound < best:
            stalled = 0 if bound < best - 1e-4 * abs(best) else stalled + 1
            best = bound
            a.bound[row] = min(a.bound[row], bound)
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
        if best - target <= a.tolerance[worker] or length < SHORTEST or norm == 0.0:
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
    """Write the best prices by type: the mean over its cards, and the price of weight."""
    prices = a.best_prices[worker]
    for c in range(a.n_types):
        start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
        card[row, c] = 0.0
        for k in range(start, stop):
            card[row, c] += prices[a.n_slots + a.queue[worker, k]] / (stop - start)
        weight[row, c] = prices[a.n_slots + a.n_cards + c]
