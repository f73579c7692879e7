"""The matrix products of one step of a fitted network as an ONNX graph of few nodes.

A step absorbs the last slot with its answer into the memory, then gives the logits of the next answer. What
the products read is made in users/learned_encode.py, answers are drawn in users/learned_answer.py; the
layouts of `last`, `seen` and `logits` are in users/learned_layout.py. The tests prove that steps agree with
:meth:`UserNetwork.forward_sequence`.

Inputs: past (`last`, then the memory), memory (both GRUs side by side), seen, user_query (the user's part of
the queries) and focused (the embedding, once a query). Outputs: new_memory, logits. With `order_within_page`
unidentified also page_memory (as it stood at the page's start, from which the page is answered), page_starts
(1 if the slot begins a page), page (the summary of the page) and new_page_memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgerec_gym.simulator.inputs import N_CONTEXT_CODE
from edgerec_gym.simulator.model import QUERIES, UserNetwork
from edgerec_gym.users.base import PAGE_SUMMARY, WINDOW
from edgerec_gym.users.learned_layout import N_ANSWER, N_LOGITS

OPSET, IR_VERSION = 20, 10  # read by ONNX Runtime 1.20 and later
Weights = dict[str, np.ndarray]


class _Graph:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: Weights = {}

    def split(self, x: str, sizes: list[int]) -> list[str]:
        """Split columns."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [x, self.integers(sizes)], names, axis=1))
        return names

    def __call__(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def integers(self, values: Any) -> str:
        """Add an integer constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def linear(self, x: str, layer: str, name: str | None = None) -> str:
        """Affine map with the weights `layer` and `layer.bias`."""
        return self("Gemm", x, layer, f"{layer}.bias", name=name)


def step_graph(network: UserNetwork, weights: Weights) -> bytes:
    """Write the graph for networks of this shape, with the weights that :func:`pack` made of one of them."""
    g = _Graph()
    width, n_user = network.inputs.width, network.inputs.user_scale.shape[0]
    hidden = network.exposure_gru.hidden_size + network.page_view_gru.hidden_size
    compared = WINDOW + N_CONTEXT_CODE + WINDOW * network.pair.out_features + 3 * network.n_evidence

    gates = g.split(g.linear("past", "gates"), [2 * hidden, hidden, hidden])
    reset, update = g.split(g("Sigmoid", gates[0]), [hidden, hidden])
    candidate = g("Tanh", g("Add", gates[1], g("Mul", reset, gates[2])))
    kept = g("Mul", update, g("Sub", "memory", candidate))
    memory = g("Add", candidate, kept, name="new_memory")
    if network.frozen_pages:
        moved = g("Mul", "page_starts", g("Sub", memory, "page_memory"))
        memory = g("Add", "page_memory", moved, name="new_page_memory")
    wanted = g("Mul", g("Gemm", memory, "query", "user_query"), "focused")
    page = ["page"] if network.frozen_pages else []
    inputs = g("Concat", "seen", memory, wanted, *page, axis=1)
    for layer in ("trunk1", "trunk2"):
        inputs = g("Relu", g.linear(inputs, layer))
    g.linear(inputs, "heads", name="logits")

    last = width + WINDOW + N_CONTEXT_CODE + N_ANSWER
    queries = QUERIES * network.d
    inputs_ = {"past": last + hidden, "memory": hidden, "seen": WINDOW * width + n_user + compared}
    inputs_ |= {"user_query": queries, "focused": queries}
    outputs = {"new_memory": hidden}
    if network.frozen_pages:
        inputs_ |= {"page_memory": hidden, "page_starts": 1, "page": len(PAGE_SUMMARY)}
        outputs |= {"new_page_memory": hidden}
    return _serialise(g, weights, inputs_, {**outputs, "logits": N_LOGITS})


def _serialise(g: _Graph, weights: Weights, inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
    def rows(sizes: dict[str, int]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
            for name, size in sizes.items()
        ]

    used = {name for node in g.nodes for name in node.input}
    constants = {**g.constants, **{name: values for name, values in weights.items() if name in used}}
    graph = helper.make_graph(
        g.nodes,
        "step",
        rows(inputs),
        rows(outputs),
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
