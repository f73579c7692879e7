"""Plans of inserted cards under share and spacing rules (:mod:`~edgerec_gym.agents.planner.problem`).

| solver | what it does |
| --- | --- |
| exact | dynamic programming over slots with Lagrangian bounds, memo and dominance (search.py) |
| beam | the same, with at most `width` partial plans at a slot |
| greedy | repeatedly the card and slot of the highest value that the rules allow |
| density | greedy by value per weight |
| dual | at each slot, a card whose value exceeds prices learned from past problems (LinkedIn) |
| fixed | cards at fixed slots, types in turn, whatever their value |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec_gym.agents.planner import kernels
from edgerec_gym.agents.planner.arrays import UNREACHABLE, MixArrays, allocate
from edgerec_gym.agents.planner.problem import LEFT_OUT, MixBatch, MixProblem, Plan, PlanBatch
from edgerec_gym.compiled.arrays import AddressTable
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.errors import InputError

SOLVERS = ("exact", "beam", "greedy", "density", "dual", "fixed")
BEAM_WIDTH = 8
MAX_LABELS = 1 << 13  # partial plans that the exact solver holds at a slot before it gives up the proof
FIRST_LABELS, GROWTH = 512, 16  # it starts with room for few labels and retries with more where needed
STEPS, FINE_STEPS = 60, 20  # subgradient steps with coarse and with fine states
EVERY = 5  # slots from one fixed slot to the next
SCALES = np.linspace(0.0, 2.0, 17)  # scales of the dual prices, tried by replay
CHUNK = 16  # problems that a thread takes at a time


@dataclass(frozen=True, eq=False)
class DualPrices:
    """What a card must be worth before it is placed, by type."""

    card: np.ndarray  # (C,), for any slot
    weight: np.ndarray  # (C,), per unit of the slot's weight


def plan(problem: MixProblem, solver: str = "exact", **options: Any) -> Plan:
    """Plan one problem; see :func:`plan_batch`."""
    return plan_batch([problem], solver, **options)[0]


def plan_batch(
    problems: MixBatch | Sequence[MixProblem],
    solver: str = "exact",
    *,
    width: int = BEAM_WIDTH,
    max_labels: int = MAX_LABELS,
    prices: DualPrices | None = None,
    fixed_slots: Sequence[int] | np.ndarray | None = None,
    threads: int = 1,
) -> PlanBatch:
    """Plan many problems of one size; the plans do not depend on the batch or the number of threads.

    Args:
        problems: the problems to plan.
        solver: one of :data:`SOLVERS`.
        width: maximum number of partial plans of "beam" at a slot.
        max_labels: partial plans that "exact" may hold at a slot; beyond it the plan is the best one found,
            with a valid bound.
        prices: prices of "dual", from :func:`fit_dual_prices`.
        fixed_slots: slots of "fixed"; None = every fifth.
        threads: number of threads that share the problems.

    Raises:
        InputError: an unknown solver, or options out of range.
    """
    batch = problems if isinstance(problems, MixBatch) else MixBatch.stack(problems)
    if solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}; allowed: {', '.join(SOLVERS)}")
    for name, value in (("width", width), ("max_labels", max_labels), ("threads", threads)):
        if int(value) != value or value < 1:
            raise InputError(f"{name} = {value!r} must be a whole number, at least 1")
    if solver == "exact":
        return _plan_exactly(batch, int(max_labels), threads)
    if solver == "beam":
        a = _allocate(batch, threads, int(width) * (batch.size[0] + 1))
        _run(a, threads, kernels.solve, STEPS, FINE_STEPS, int(width), int(width))
    elif solver in ("greedy", "density"):
        a = _allocate(batch, threads, 1)
        _run(a, threads, kernels.solve_greedily, solver == "density")
    elif solver == "dual":
        a = _allocate(batch, threads, 1)
        _run(a, threads, kernels.solve_by_thresholds, *_checked_prices(prices, batch.size[2]))
    else:
        a = _allocate(batch, threads, 1)
        _run(a, threads, kernels.solve_fixed, _checked_slots(fixed_slots, batch.size[1]))
    return _plans(a, solver)


def _plan_exactly(batch: MixBatch, max_labels: int, threads: int) -> PlanBatch:
    """Plan all problems with room for few labels, then those that need more with more."""
    labels = min(FIRST_LABELS, max_labels)
    a = _allocate(batch, threads, 2 * labels)
    _run(a, threads, kernels.solve, STEPS, FINE_STEPS, min(BEAM_WIDTH, labels), labels)
    open_rows = np.flatnonzero(_is_open(a))
    while len(open_rows) and labels < max_labels:
        labels = min(GROWTH * labels, max_labels)
        for rows in np.array_split(open_rows, -(-len(open_rows) // (CHUNK * threads))):
            more = _allocate(batch.rows(rows), threads, 2 * labels)
            _run(more, threads, kernels.solve, STEPS, FINE_STEPS, BEAM_WIDTH, labels)
            for name in ("slots", "found", "value", "bound", "blocked", "dropped", "labels"):
                getattr(a, name)[rows] = getattr(more, name)
        open_rows = np.flatnonzero(_is_open(a))
    return _plans(a, "exact")


def _is_open(a: MixArrays) -> np.ndarray:
    """Rows whose search dropped something that might have been better, (B,) bool."""
    return (a.blocked == 0) & np.where(a.found > 0, a.bound > a.value, a.dropped > UNREACHABLE)


def _allocate(batch: MixBatch, threads: int, labels: int) -> MixArrays:
    """Allocate the arrays, with room for `labels` and the children of one more."""
    return allocate(batch, threads, labels + batch.size[0] + 1)


def _run(a: MixArrays, threads: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """Run a kernel on all rows."""
    table, n_rows = AddressTable(a), len(a.value)
    if threads == 1 or n_rows <= CHUNK:
        kernel(table.address, *arguments, 0, n_rows, 0)
        return
    workers = Workers(n_rows, threads)
    try:
        workers.each(
            lambda start, worker: kernel(
                table.address, *arguments, start, min(start + CHUNK, n_rows), worker
            ),
            list(range(0, n_rows, CHUNK)),
        )
    finally:
        workers.close()


def _checked_prices(prices: DualPrices | None, n_types: int) -> tuple[np.ndarray, np.ndarray]:
    if prices is None:
        raise InputError(
            "solver 'dual' needs prices; fit_dual_prices(problems) learns them from past problems"
        )
    found = []
    for name, values in (("card", prices.card), ("weight", prices.weight)):
        array = np.ascontiguousarray(values, np.float64)
        if array.shape != (n_types,) or not np.isfinite(array).all():
            raise InputError(f"prices.{name} must be {n_types} finite numbers, one a type; got {values!r}")
        found.append(array)
    return found[0], found[1]


def _checked_slots(slots: Sequence[int] | np.ndarray | None, n_slots: int) -> np.ndarray:
    found = np.arange(EVERY - 1, n_slots, EVERY) if slots is None else np.asarray(slots)
    if found.ndim != 1 or found.dtype.kind not in "iu" and found.size:
        raise InputError(f"fixed_slots must be a list of whole numbers, got {slots!r}")
    if (found < 0).any() or (found >= n_slots).any():
        raise InputError(f"fixed_slots must lie in 0 to {n_slots - 1}, got {found.tolist()}")
    return np.unique(found).astype(np.int64)


def _plans(a: MixArrays, solver: str) -> PlanBatch:
    """Convert the arrays to plans, with the reason why a plan is empty."""
    found, n_types = a.found > 0, a.n_types
    reasons: list[str | None] = [None] * len(found)
    for row in np.flatnonzero(~found | (a.blocked != 0)):
        code = int(a.blocked[row])
        if code == kernels.NOTHING_FITS:
            reasons[row] = "no card fits: first slots, caps and forbidden values leave no legal slot"
        elif code == 0:
            reasons[row] = f"solver {solver!r} found no plan that meets the floors"
        elif code > 2 * n_types:
            reasons[row] = "no plan meets the floors of all types together"
        else:
            c, heavy = (code - 1) % n_types, code > n_types
            which = "cap" if heavy else "gap, first slot, prefix caps and forbidden values"
            reasons[row] = f"the floor of type {c}, {a.floors[row, c]} cards, cannot be met under its {which}"
    value = np.where(found, a.value, 0.0)
    blocked = a.blocked > 0
    optimal = found & (a.bound <= a.value)
    return PlanBatch(
        np.where(found[:, None], a.slots, LEFT_OUT).astype(np.int64),
        value,
        np.where(blocked, 0.0, np.maximum(a.bound, value)),
        optimal,
        tuple(reasons),
    )


def fit_dual_prices(problems: MixBatch | Sequence[MixProblem]) -> DualPrices:
    """Learn the thresholds of solver "dual" from past problems.

    The means of the Lagrange multipliers of cards and weight give their ratio; replaying the policy on the
    same problems gives their scale.

    Args:
        problems: past problems, of one size; types must mean the same in all.
    """
    batch = problems if isinstance(problems, MixBatch) else MixBatch.stack(problems)
    n_types = batch.size[2]
    card, weight = np.zeros((2, len(batch), n_types))
    _run(_allocate(batch, 1, 1), 1, kernels.price, STEPS, card, weight)
    mean = DualPrices(card.mean(axis=0), weight.mean(axis=0))
    tried = [DualPrices(scale * mean.card, scale * mean.weight) for scale in SCALES]
    return max(tried, key=lambda prices: plan_batch(batch, "dual", prices=prices).value.sum())
