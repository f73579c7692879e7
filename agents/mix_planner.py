"""Plans of inserted cards under share and spacing rules (:mod:`~edgerec_gym.agents.mix_problem`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerec_gym.agents.mix_ilp import solve_ilp
from edgerec_gym.agents.mix_problem import MixBatch, MixProblem, Plan, PlanBatch
from edgerec_gym.errors import InputError

SOLVERS = ("exact",)


def plan(problem: MixProblem, solver: str = "exact", **options: Any) -> Plan:
    """Plan one problem; see :func:`plan_batch`."""
    return plan_batch([problem], solver, **options)[0]


def plan_batch(problems: MixBatch | Sequence[MixProblem], solver: str = "exact", **options: Any) -> PlanBatch:
    """Plan many problems of one size."""
    batch = problems if isinstance(problems, MixBatch) else MixBatch.stack(problems)
    if solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}; solvers: {', '.join(SOLVERS)}")
    plans = [solve_ilp(batch[row]) for row in range(len(batch))]
    return PlanBatch(
        np.stack([p.slots for p in plans]),
        np.array([p.value for p in plans]),
        np.array([p.bound for p in plans]),
        np.array([p.optimal for p in plans]),
        tuple(p.reason for p in plans),
    )
