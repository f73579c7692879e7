"""Mixed insertion as an integer linear programme, solved by HiGHS: the planner's reference.

Needs scipy (the extra `train`).
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.planner.problem import LEFT_OUT, MixProblem, Plan
from edgerec_gym.errors import MissingExtraError

INFEASIBLE = 2  # scipy's status code


class MixProgramme:
    """Maximise the sum of values x subject to A x in low..high, with one x per allowed pair of card and slot.

    Args:
        problem: the problem to plan.

    Attributes:
        cards: (n,) int64, card of each variable.
        slots: (n,) int64, its slot.
        matrix: (rows, n) scipy sparse array.
        low: (rows,) float64.
        high: (rows,) float64.
    """

    def __init__(self, problem: MixProblem) -> None:
        from scipy.sparse import csr_array

        allowed = np.isfinite(problem.values)
        allowed &= np.arange(problem.size[1]) >= problem.first_slots[problem.types][:, None]
        self.problem = problem
        self.cards, self.slots = np.nonzero(allowed)
        self._types = problem.types[self.cards]
        self._entries: list[tuple[np.ndarray, np.ndarray]] = []  # variables and coefficients of each row
        self._limits: list[tuple[float, float]] = []
        self._exclusive()
        for c in range(problem.size[2]):
            self._rules_of_type(c)
        if problem.ordered:
            self._queues()
        columns = np.concatenate([e[0] for e in self._entries])
        rows = np.repeat(np.arange(len(self._entries)), [len(e[0]) for e in self._entries])
        data = np.concatenate([e[1] for e in self._entries])
        self.matrix = csr_array((data, (rows, columns)), shape=(len(self._entries), len(self.cards)))
        self.low, self.high = np.array(self._limits).T

    def _add(self, variables: np.ndarray, coefficients: np.ndarray, low: float, high: float) -> None:
        if len(variables) or low > 0:
            self._entries.append((variables, coefficients))
            self._limits.append((low, high))

    def _at_most(self, chosen: np.ndarray, most: float, least: float = -np.inf) -> None:
        variables = np.flatnonzero(chosen)
        self._add(variables, np.ones(len(variables)), least, most)

    def _exclusive(self) -> None:
        n_cards, n_slots, _ = self.problem.size
        for t in range(n_slots):
            self._at_most(self.slots == t, 1)
        for m in range(n_cards):
            self._at_most(self.cards == m, 1)

    def _rules_of_type(self, c: int) -> None:
        problem, mine = self.problem, self._types == c
        variables = np.flatnonzero(mine)
        if np.isfinite(problem.caps[c]):
            self._add(variables, problem.weights[self.slots[variables]], -np.inf, problem.caps[c])
        self._at_most(mine, np.inf, problem.fewest()[c])
        most = problem.most_by_slot()[c]
        for t in range(problem.size[1]):
            if problem.gaps[c] > 1:
                self._at_most(mine & (self.slots >= t) & (self.slots < t + problem.gaps[c]), 1)
            if most[t] < problem.size[0]:
                self._at_most(mine & (self.slots <= t), most[t])

    def _queues(self) -> None:
        """A card may be placed by slot t only if its predecessor of the same type was placed before t."""
        problem = self.problem
        for c in range(problem.size[2]):
            queue = np.flatnonzero(problem.types == c)
            for before, after in zip(queue[:-1], queue[1:], strict=True):
                for t in range(problem.size[1]):
                    late = np.flatnonzero((self.cards == after) & (self.slots <= t))
                    early = np.flatnonzero((self.cards == before) & (self.slots < t))
                    signs = np.repeat([1.0, -1.0], [len(late), len(early)])
                    self._add(np.concatenate([late, early]), signs, -np.inf, 0)


def solve_ilp(problem: MixProblem, time_limit: float | None = None) -> Plan:
    """Plan with scipy's HiGHS, to a relative gap of 0.

    Args:
        problem: the problem to plan.
        time_limit: seconds, or None.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError:
        raise MissingExtraError("planning by HiGHS", "train") from None
    programme = MixProgramme(problem)
    slots = np.full(problem.size[0], LEFT_OUT, np.int64)
    if not len(programme.cards):
        short = bool(problem.fewest().any())
        return Plan(slots, 0.0, 0.0, not short, "no card may stand anywhere")
    values = problem.values[programme.cards, programme.slots]
    options = {"mip_rel_gap": 0.0} | ({} if time_limit is None else {"time_limit": time_limit})
    found = milp(
        -values,
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(programme.matrix, programme.low, programme.high),
        options=options,
    )
    if found.x is None:
        reason = "no plan meets the floors" if found.status == INFEASIBLE else str(found.message)
        return Plan(slots, 0.0, 0.0, False, reason)
    chosen = found.x > 0.5
    slots[programme.cards[chosen]] = programme.slots[chosen]
    value = float(values[chosen].sum())
    optimal = found.status == 0
    return Plan(slots, value, value if optimal else -float(found.mip_dual_bound), optimal)
