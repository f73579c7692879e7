"""How long calls take: quantiles of wall time and of the process's own processor time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from edgerec_gym import __version__

WARM_UP = 20  # number of calls that are not counted


def measure(calls: Mapping[str, Sequence[Callable[[], Any]]], count: int) -> dict[str, dict[str, float]]:
    """Time `count` calls of each kind, which take turns, so that other processes disturb them alike.

    Returns:
        Milliseconds by kind: p50, p95, p99 and the least of wall time, p50 and p99 of processor time. On a
        busy machine, wall time includes other processes.
    """
    wall, own = ({name: np.empty(count) for name in calls} for _ in range(2))
    for k in range(-WARM_UP, count):
        for name, several in calls.items():
            call = several[k % len(several)]
            started, started_own = time.perf_counter(), time.process_time()
            call()
            ended_own, ended = time.process_time(), time.perf_counter()
            if k >= 0:
                wall[name][k], own[name][k] = ended - started, ended_own - started_own
    return {
        name: {
            **{f"p{q}": float(np.percentile(wall[name], q) * 1e3) for q in (50, 95, 99)},
            "least": float(wall[name].min() * 1e3),
            **{f"cpu_p{q}": float(np.percentile(own[name], q) * 1e3) for q in (50, 99)},
        }
        for name in calls
    }


def measured_on(*packages: str) -> dict[str, Any]:
    """Return what times depend on: versions of this package and of `packages`, machine and its load."""
    return {
        "edgerec_gym": __version__,
        **{name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
    }
