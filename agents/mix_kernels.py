"""Entry points of the planner's kernels: each plans rows start..stop-1 with the workspace of one worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.mix_arrays import LEVELS, UNREACHABLE, MixArrays
from edgerec_gym.agents.mix_heuristics import fixed, greedy, thresholds
from edgerec_gym.agents.mix_limits import NOTHING_FITS
from edgerec_gym.agents.mix_relaxation import begin, mean_prices, relax, set_levels
from edgerec_gym.agents.mix_search import search
from edgerec_gym.arrays import reader
from edgerec_gym.jit import SOURCE_DIGEST, entry_point, source_digest

__all__ = ["NOTHING_FITS", "price", "solve", "solve_by_thresholds", "solve_fixed", "solve_greedily"]

_KERNELS = ("mix_arrays.py", "mix_heuristics.py", "mix_limits.py", "mix_relaxation.py", "mix_search.py")

read_arrays = reader(MixArrays)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest is part of numba's cache key: see jit.
    @entry_point
    def solve(address, steps, level_steps, beam, width, start, stop, worker):
        _ = digest
        a = read_arrays(address)
        for row in range(start, stop):
            if not begin(a, row, worker):
                continue
            relax(a, row, worker, steps)
            dropped = search(a, row, worker, beam)
            if width > beam and dropped > UNREACHABLE and dropped > a.value[row] + a.tolerance[worker]:
                set_levels(a, row, worker, LEVELS)
                relax(a, row, worker, level_steps)
                dropped = search(a, row, worker, width)
            a.dropped[row] = dropped
            if a.found[row] == 1:
                bound = min(a.bound[row], max(a.value[row], dropped))
                a.bound[row] = a.value[row] if bound <= a.value[row] + a.tolerance[worker] else bound
            elif dropped == UNREACHABLE:
                a.blocked[row] = 1 + 2 * a.n_types

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
