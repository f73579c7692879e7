"""Entry points of the planner's kernels: each plans rows start..stop-1 with the workspace of one worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.planner.arrays import UNREACHABLE, MixArrays
from edgerec_gym.agents.planner.bounds import FINE, NOTHING_FITS, begin, mean_prices, relax, set_detail
from edgerec_gym.agents.planner.heuristics import fixed, greedy, thresholds
from edgerec_gym.agents.planner.search import search
from edgerec_gym.compiled.arrays import reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, kernel, source_digest

__all__ = ["NOTHING_FITS", "price", "solve", "solve_by_thresholds", "solve_fixed", "solve_greedily"]

_KERNELS = ("arrays.py", "bounds.py", "heuristics.py", "kernels.py", "problem.py", "search.py")
# How far the beam trusts the bound on the rest, tried in turn: the bound is optimistic for late cards.
TRUST = (1.0, 0.9, 0.7, 0.5)

read_arrays = reader(MixArrays)


@kernel
def is_open(a, row, worker):
    """Whether the search has dropped something that may be better than the plan of the row."""
    if a.found[row] == 0:
        return a.dropped[row] > UNREACHABLE
    return min(a.dropped[row], a.bound[row]) > a.value[row] + a.tolerance[worker]


@kernel
def _conclude(a, row, worker):
    """Set the final bound of a row that has been searched, or record that it has no plan."""
    if a.found[row] == 1:
        bound = min(a.bound[row], max(a.value[row], a.dropped[row]))
        a.bound[row] = bound if is_open(a, row, worker) else a.value[row]
    elif not is_open(a, row, worker):
        a.blocked[row] = 1 + 2 * a.n_types


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest is part of numba's cache key: see jit.
    @entry_point
    def solve(address, steps, fine_steps, beam, width, start, stop, worker):
        _ = digest
        a = read_arrays(address)
        for row in range(start, stop):
            if not begin(a, row, worker):
                continue
            relax(a, row, worker, steps)
            a.dropped[row] = search(a, row, worker, beam, 1.0)
            if is_open(a, row, worker):
                greedy(a, row, worker, False)
                greedy(a, row, worker, True)
                set_detail(a, row, worker, FINE)
                relax(a, row, worker, fine_steps)
                for k in range(len(TRUST)):
                    if is_open(a, row, worker):
                        a.dropped[row] = min(a.dropped[row], search(a, row, worker, beam, TRUST[k]))
                if is_open(a, row, worker) and width > beam:
                    a.dropped[row] = search(a, row, worker, width, 1.0)
            _conclude(a, row, worker)

    @entry_point
    def solve_greedily(address, by_density, start, stop, worker):
        _ = digest
        a = read_arrays(address)
        for row in range(start, stop):
            if begin(a, row, worker):
                greedy(a, row, worker, by_density)

    @entry_point
    def solve_by_thresholds(address, card_prices, weight_prices, start, stop, worker):
        _ = digest
        a = read_arrays(address)
        for row in range(start, stop):
            if begin(a, row, worker):
                thresholds(a, row, worker, card_prices, weight_prices)

    @entry_point
    def solve_fixed(address, slots, start, stop, worker):
        _ = digest
        a = read_arrays(address)
        for row in range(start, stop):
            if begin(a, row, worker):
                fixed(a, row, worker, slots)

    @entry_point
    def price(address, steps, card, weight, start, stop, worker):
        _ = digest
        a = read_arrays(address)
        for row in range(start, stop):
            if begin(a, row, worker):
                relax(a, row, worker, steps)
                mean_prices(a, row, worker, card, weight)

    return solve, solve_greedily, solve_by_thresholds, solve_fixed, price


solve, solve_greedily, solve_by_thresholds, solve_fixed, price = _entry_points(
    SOURCE_DIGEST + source_digest(Path(__file__).parent, _KERNELS)
)
