"""ONNX Runtime, the reference engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgerec_gym.device.engines.engine import Arrays, Graph, Port, Ports
from edgerec_gym.errors import InputError
from edgerec_gym.onnx_check import check_graph

DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def load(path: Path, content: bytes, inputs: Ports, outputs: Ports) -> Graph:
    """Load an ONNX file; see :meth:`~edgerec_gym.device.engines.engine.Engine.load`."""
    check_graph(content, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
    for what, wanted, nodes in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        found = {node.name: Port(node.shape, DTYPES.get(node.type, node.type)) for node in nodes}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"{path}: {what} {name!r} is {_told(found, name)}, not {_told(wanted, name)}"
                )
    names, run = list(outputs), session.run

    def graph(arrays: Arrays) -> Arrays:
        try:
            return dict(zip(names, run(names, arrays), strict=True))
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise InputError(f"{path} does not run: {str(error).splitlines()[0]}") from None

    return graph


def ports(content: bytes) -> tuple[dict[str, Port], dict[str, Port]]:
    """Inputs and outputs of an ONNX graph by name."""
    session: Any = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        {node.name: Port(list(node.shape), DTYPES[node.type]) for node in nodes}  # type: ignore[arg-type]
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def _told(ports: Ports, name: str) -> str:
    port = ports.get(name)
    return "missing" if port is None else f"{port.dtype} {port.shape}"
