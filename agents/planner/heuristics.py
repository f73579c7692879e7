"""Plans without search, as kernels over one row: greedy, LinkedIn's dual thresholds, fixed slots."""

from __future__ import annotations

from edgerec_gym.agents.planner.arrays import UNREACHABLE
from edgerec_gym.agents.planner.bounds import keep_best
from edgerec_gym.agents.planner.problem import LEFT_OUT
from edgerec_gym.agents.planner.search import place, root
from edgerec_gym.compiled.jit import kernel

LIGHTEST = 1e-9  # greedy by density treats lighter slots as this heavy


@kernel
def greedy(a, row, worker, by_density):
    """Repeatedly place the card and slot of the highest value (or value per weight) that the rules allow.

    Cards of negative value are placed only where a floor requires them.
    """
    draft, counts, used, total = a.draft[worker], a.counts[worker], a.used[worker], 0.0
    for m in range(a.n_cards):
        draft[m] = LEFT_OUT
    for c in range(a.n_types):
        counts[c] = 0
        used[c] = 0.0
    while True:
        best, card, slot = UNREACHABLE, -1, -1
        for m in range(a.n_cards):
            c = a.types[row, m]
            if draft[m] != LEFT_OUT or counts[c] >= a.limit[worker, c]:
                continue
            if a.ordered == 1 and a.queue[worker, a.queue_start[worker, c] + counts[c]] != m:
                continue
            for t in range(a.first_slots[row, c], a.n_slots):
                score = a.values[row, m, t]
                if score <= 0.0 and counts[c] >= a.floors[row, c]:
                    continue
                if by_density and score > 0.0:
                    score /= max(a.weights[row, t], LIGHTEST)
                if score > best and _fits(a, row, worker, c, t):
                    best, card, slot = score, m, t
        if card < 0:
            break
        draft[card] = slot
        counts[a.types[row, card]] += 1
        used[a.types[row, card]] += a.weights[row, slot]
        total += a.values[row, card, slot]
    _finish(a, row, total, draft, counts)


@kernel
def _fits(a, row, worker, c, t):
    """Whether the rules let a card of type c join the draft at slot t, given the cards already placed."""
    if a.used[worker, c] + a.weights[row, t] > a.caps[row, c]:
        return False
    for m in range(a.n_cards):
        slot = a.draft[worker, m]
        if slot == LEFT_OUT:
            continue
        if slot == t:
            return False
        if a.types[row, m] == c and (abs(slot - t) < a.gaps[row, c] or (a.ordered == 1 and slot > t)):
            return False
    earlier = 0
    for s in range(a.n_slots):
        for m in range(a.n_cards):
            if a.draft[worker, m] == s and a.types[row, m] == c:
                earlier += 1
        if s >= t and earlier + 1 > a.most[worker, c * a.n_slots + s]:
            return False
    return True


@kernel
def _finish(a, row, total, slots, counts):
    """Keep a plan if it meets the floors."""
    for c in range(a.n_types):
        if counts[c] < a.floors[row, c]:
            return
    keep_best(a, row, total, slots)


@kernel
def may_land(a, row, worker, label, c, t):
    """Whether a card of type c may be placed at slot t after a partial plan."""
    j = a.label_count[label, c]
    if a.label_free[label, c] > t or j >= a.most[worker, c * a.n_slots + t]:
        return False
    return a.bounded[worker, c] == 0 or a.label_weight[label, c] + a.weights[row, t] <= a.caps[row, c]


@kernel
def _next_card(a, row, worker, label, c, t, by_value):
    """Card of type c for slot t, the best one or the first one left; -1 if none may be placed there."""
    start, stop = a.queue_start[worker, c], a.queue_start[worker, c + 1]
    if a.ordered == 1:
        start = start + a.label_count[label, c]
        stop = min(start + 1, stop)
    card = -1
    for k in range(start, stop):
        m = a.queue[worker, k]
        if a.label_slots[label, m] != LEFT_OUT or a.values[row, m, t] <= UNREACHABLE:
            continue
        if card < 0 or (by_value and a.values[row, m, t] > a.values[row, card, t]):
            card = m
    return card


@kernel
def thresholds(a, row, worker, card_prices, weight_prices):
    """At each slot, place the card whose value exceeds the prices of its type by most, if there is one.

    This is ad allocation by dual thresholds, with guards for the rules (Yan et al., KDD 2020).

    Args:
        a: the arrays.
        row: row of the problem.
        worker: row of the workspace.
        card_prices: (C,), price of one card of a type.
        weight_prices: (C,), price of a unit of weight.
    """
    label = 2 * worker * a.capacity
    root(a, row, worker, label)
    for t in range(a.n_slots):
        best, card = 0.0, -1
        for c in range(a.n_types):
            if may_land(a, row, worker, label, c, t):
                m = _next_card(a, row, worker, label, c, t, True)
                if m >= 0:
                    passes = a.values[row, m, t] - card_prices[c] - weight_prices[c] * a.weights[row, t]
                    if passes > best:
                        best, card = passes, m
        if card >= 0:
            place(a, row, worker, label, card, t)
    _finish(a, row, a.label_value[label], a.label_slots[label], a.label_count[label])


@kernel
def fixed(a, row, worker, slots):
    """Place cards at fixed slots, types in turn, each type's cards by index; illegal placements are skipped.

    Args:
        a: the arrays.
        row: row of the problem.
        worker: row of the workspace.
        slots: (S,), ascending.
    """
    label, turn = 2 * worker * a.capacity, 0
    root(a, row, worker, label)
    for k in range(len(slots)):
        t = slots[k]
        for step in range(a.n_types):
            c = (turn + step) % a.n_types
            if may_land(a, row, worker, label, c, t):
                m = _next_card(a, row, worker, label, c, t, False)
                if m >= 0:
                    place(a, row, worker, label, m, t)
                    turn = c + 1
                    break
    _finish(a, row, a.label_value[label], a.label_slots[label], a.label_count[label])
