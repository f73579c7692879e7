"""How long calls take: quantiles of wall time and of the thread's processor time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WARM_UP = 20  # number of calls that are not counted


def measure(calls: Sequence[Callable[[], Any]], count: int) -> dict[str, float]:
    """Milliseconds of `count` calls in turn: quantiles of wall time and of the thread's processor time.

    On a busy machine, wall time includes other processes.
    """
    wall, own = np.empty(count), np.empty(count)
    for k in range(-WARM_UP, count):
        call = calls[k % len(calls)]
        started, started_own = time.perf_counter(), time.thread_time()
        call()
        ended_own, ended = time.thread_time(), time.perf_counter()
        if k >= 0:
            wall[k], own[k] = ended - started, ended_own - started_own
    quantiles = {f"p{q}": float(np.percentile(wall, q) * 1e3) for q in (50, 95, 99)}
    cpu = {f"cpu_p{q}": float(np.percentile(own, q) * 1e3) for q in (50, 99)}
    return {**quantiles, "least": float(wall.min() * 1e3), **cpu}
