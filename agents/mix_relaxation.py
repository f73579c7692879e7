"""Lagrangian relaxation of mixed insertion: upper bounds, their prices, and plans repaired from them.

Prices on slots (one card each), cards (placed once) and weight (the caps) leave a plan for each type alone
(mix_rests.py). The prices come from subgradient steps (Held, Wolfe & Crowder 1974; Fisher 1981) of Polyak's
length.
"""

from __future__ import annotations

from edgerec_gym.agents.mix_arrays import UNREACHABLE
from edgerec_gym.agents.mix_limits import keep_best, prepare
from edgerec_gym.agents.mix_problem import LEFT_OUT
from edgerec_gym.agents.mix_rests import COARSE, first_card, set_detail, state_with, table_at, tabulate
from edgerec_gym.jit import kernel

PATIENCE = 5  # steps without a lower bound, after which they become half as long
SHORTEST = 1e-3  # of the first step length, at which they end


@kernel
def _trace(a, row, worker):
    """Read the relaxed plans off the table: choice, and what they leave of slots, cards and weight."""
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
    """Lower the bound by subgradient steps from the present prices; leaves the table at the best ones."""
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
    """Write the best prices by type: the mean over its cards, and that of weight."""
    prices = a.best_prices[worker]
    for c in range(a.n_types):
        start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
        card[row, c] = 0.0
        for k in range(start, stop):
            card[row, c] += prices[a.n_slots + a.queue[worker, k]] / (stop - start)
        weight[row, c] = prices[a.n_slots + a.n_cards + c]
