"""Mixed insertion problems, their rules written down a second time, and all their plans counted out."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from edgerec_gym.agents.planner.problem import MixProblem


def random_problem(
    rng: np.random.Generator, n_cards: int, n_slots: int, n_types: int, **fixed: Any
) -> MixProblem:
    """A problem with every kind of rule, each of them switched on or off by chance."""
    given: dict[str, Any] = {
        "values": rng.normal(0.3, 1, (n_cards, n_slots)),
        "weights": np.sort(rng.uniform(0.2, 1, n_slots))[::-1],
        "types": rng.integers(0, n_types, n_cards),
        "caps": rng.uniform(0, 4, n_types),
        "gaps": rng.integers(0, 9, n_types),
        "first_slots": rng.integers(0, 4, n_types),
        "ordered": bool(rng.random() < 0.3),
    }
    if rng.random() < 0.3:
        given["values"][rng.random((n_cards, n_slots)) < 0.2] = -np.inf
    if rng.random() < 0.3:
        given["caps"] = np.full(n_types, np.inf)
    if rng.random() < 0.5:
        given["prefix_caps"] = rng.integers(0, 4, (n_types, n_slots))
    if rng.random() < 0.5:
        given["floors"] = rng.integers(0, 3, n_types)
    return MixProblem(**{**given, **fixed})


def broken_rules(problem: MixProblem, slots: np.ndarray) -> list[str]:
    """Names of the rules that a plan breaks."""
    broken = []
    placed = np.flatnonzero(slots >= 0)
    if len(set(slots[placed])) < len(placed) or (slots >= problem.size[1]).any():
        broken.append("slots")
    if not np.isfinite(problem.values[placed, slots[placed]]).all():
        broken.append("forbidden")
    for c in range(problem.size[2]):
        cards = np.flatnonzero(problem.types == c)
        mine = np.sort(slots[cards][slots[cards] >= 0])
        if problem.weights[mine].sum() > problem.caps[c] + 1e-8:
            broken.append("caps")
        if (np.diff(mine) < problem.gaps[c]).any():
            broken.append("gaps")
        if (mine < problem.first_slots[c]).any():
            broken.append("first_slots")
        if problem.prefix_caps is not None:
            shown = np.cumsum(np.bincount(mine, minlength=problem.size[1]))
            if (shown > problem.prefix_caps[c]).any():
                broken.append("prefix_caps")
        if problem.floors is not None and len(mine) < problem.floors[c]:
            broken.append("floors")
        if problem.ordered and slots[cards][: len(mine)].tolist() != mine.tolist():
            broken.append("ordered")
    return broken


def value_of(problem: MixProblem, slots: np.ndarray) -> float:
    """Sum of the values of the placed cards."""
    placed = np.flatnonzero(slots >= 0)
    return float(problem.values[placed, slots[placed]].sum())


def best_by_counting(problem: MixProblem) -> float | None:
    """Value of the best of all plans; None if every plan breaks a rule."""
    n_cards, n_slots, _ = problem.size
    best = None
    for plan in product(range(-1, n_slots), repeat=n_cards):
        slots = np.array(plan)
        if not broken_rules(problem, slots):
            value = value_of(problem, slots)
            best = value if best is None else max(best, value)
    return best
