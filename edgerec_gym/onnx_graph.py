"""ONNX graphs, written node by node: an exporter would emit more nodes, and every node costs run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 10  # read by ONNX Runtime 1.20 and later
KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}
Shape = Sequence[int | str]


class OnnxGraph:
    """Collects inputs, constants, nodes and outputs.

    Args:
        weights: arrays that nodes refer to by name; unused ones are left out.
    """

    def __init__(self, weights: dict[str, np.ndarray] | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.weights = weights or {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def __call__(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs; returns their names."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def split(self, x: str, sizes: list[int], axis: int = 1) -> list[str]:
        """Split along columns or another axis; a single part is `x` itself."""
        if len(sizes) == 1:
            return [x]
        return self.several("Split", x, self.integers(sizes), outputs=len(sizes), axis=axis)

    def add(self, *terms: str, name: str | None = None) -> str:
        """Add up values of broadcastable shapes, two at a time: MNN gets a Sum of several wrong."""
        total, *others = terms
        for k, term in enumerate(others, 1):
            total = self("Add", total, term, name=name if k == len(others) else None)
        return total

    def constant(self, values: Any) -> str:
        """Add a constant array, float32 or int64."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(values)
        return name

    def integers(self, values: Any) -> str:
        """Add an integer constant."""
        return self.constant(np.asarray(values, np.int64))

    def floats(self, values: Any) -> str:
        """Add a float32 constant."""
        return self.constant(np.asarray(values, np.float32))

    def linear(self, x: str, layer: str, name: str | None = None) -> str:
        """Apply an affine map to rows, with weights `layer` (inputs, outputs) and `layer.bias`."""
        return self("Gemm", x, layer, f"{layer}.bias", name=name)

    def input(self, name: str, shape: Shape, kind: Any = np.float32) -> str:
        """Declare an input; a string in the shape names a size that each call chooses."""
        self.inputs.append(helper.make_tensor_value_info(name, KINDS[np.dtype(kind)], shape))
        return name

    def output(self, name: str, shape: Shape, kind: Any = np.float32) -> str:
        """Declare the value `name` as an output."""
        self.outputs.append(helper.make_tensor_value_info(name, KINDS[np.dtype(kind)], shape))
        return name

    def serialise(self, name: str) -> bytes:
        """Return the checked model; the same nodes and weights give the same bytes."""
        used = {value for node in self.nodes for value in node.input}
        kept = {key: values for key, values in self.weights.items() if key in used}
        constants = [numpy_helper.from_array(v, key) for key, v in {**self.constants, **kept}.items()]
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)
