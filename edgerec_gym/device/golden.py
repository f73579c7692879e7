"""The golden test: every graph answers recorded inputs as it did when the model was written.

The inputs are those of a short session, twice with other sizes; the outputs are the reference engine's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgerec_gym.device.engines.engine import Arrays
from edgerec_gym.device.graph import DeviceGraph
from edgerec_gym.errors import InputError, shown

Calls = list[tuple[Arrays, Arrays]]  # inputs and outputs of each


def to_tensors(calls: Mapping[str, Calls]) -> Arrays:
    """Name the arrays of each graph's calls for a file: `<graph>/<call>/<in or out>/<name>`."""
    return {
        f"{graph}/{k}/{side}/{name}": np.array(value, order="C")
        for graph, several in calls.items()
        for k, (inputs, outputs) in enumerate(several)
        for side, arrays in (("in", inputs), ("out", outputs))
        for name, value in arrays.items()
    }


def from_tensors(tensors: Arrays) -> dict[str, Calls]:
    """Do the reverse; InputError names a tensor that does not fit."""
    calls: dict[str, Calls] = {}
    for key in sorted(tensors):
        graph, *rest = key.split("/")
        several = calls.setdefault(graph, [])
        if len(rest) != 3 or rest[1] not in ("in", "out") or rest[0] not in map(str, range(len(several) + 1)):
            raise InputError(f"tensor {shown(key)} is no golden input or output")
        if int(rest[0]) == len(several):
            several.append(({}, {}))
        several[int(rest[0])][rest[1] == "out"][rest[2]] = tensors[key]
    return calls


def check_graph(graph: DeviceGraph, calls: Calls, tolerance: float) -> float:
    """Run a graph on golden inputs.

    Args:
        graph: the graph, loaded by its engine.
        calls: golden inputs and outputs.
        tolerance: largest difference to allow, relative to 1 + the size of the golden output.

    Returns:
        The largest such difference.

    Raises:
        InputError: an output is missing, has another shape, is not finite, or differs by more.
    """
    if not calls:
        raise InputError(f"{graph.path} has no golden inputs and outputs")
    worst = 0.0
    for inputs, golden in calls:
        if golden.keys() != graph.outputs.keys():
            raise InputError(
                f"{graph.path} has golden outputs {shown(', '.join(golden))}, not those it returns"
            )
        found = graph(inputs)
        for name, wanted in golden.items():
            value = found[name]
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                raise InputError(
                    f"{graph.path}: output {name!r} is {value.dtype} {list(value.shape)}; golden: "
                    f"{wanted.dtype} {list(wanted.shape)}"
                )
            if not np.isfinite(value).all():
                raise InputError(f"{graph.path} gives values that are not finite")
            gap = float((np.abs(value - wanted) / (1 + np.abs(wanted))).max(initial=0.0))
            if gap > tolerance:
                raise InputError(
                    f"{graph.path} differs from its golden output {name!r} by {gap:.1e}; allowed: "
                    f"{tolerance:.0e}"
                )
            worst = max(worst, gap)
    return worst
