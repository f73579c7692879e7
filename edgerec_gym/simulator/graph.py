"""One step of a fitted network as an ONNX graph, written out for speed: few nodes, constants folded away.

A step absorbs the last answer into the memory, then answers one slot from given uniforms. The state holds
the memory and the last slot with its answer: whoever writes another answer there makes the step go on from
that. The tests prove that steps agree with :meth:`UserNetwork.forward_sequence`.

Layouts (W = F + T features of a card, U user features):

| array | columns |
| --- | --- |
| slot | window of cards (5 W), context (8), user (U), uniforms (19: one an action, one for leaving) |
| state | both GRUs, evidence, focused card (W), ctr logits (5), context code (16), answer (34) |
| answer | one-hot dwell (8), actions (18), one-hot page-view duration if clicked (8) |

With `order_within_page` unidentified the state ends with both GRUs, evidence and context code as they stood
at the page's start, from which the page is answered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgerec_gym.simulator.inputs import LEAST_CTR, N_ACTIONS, N_CONTEXT_CODE, N_SIGNS
from edgerec_gym.simulator.model import HEADS, LEVELS, MOST_LEVELS, QUERIES, UserNetwork
from edgerec_gym.users.base import (
    CLICK,
    CONTEXT_SIZE,
    DWELL_BUCKETS,
    FOCUSED,
    PAGE_AGE,
    PAGE_VIEW_BUCKETS,
    RESPONSE_SIZE,
    SLOT,
    WINDOW,
)

N_UNIFORMS = N_ACTIONS + 1
N_ANSWER = DWELL_BUCKETS + N_ACTIONS + PAGE_VIEW_BUCKETS
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

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add a float constant."""
        return self._add(np.asarray(values, np.float32), name)

    def integers(self, values: Any) -> str:
        """Add an integer constant."""
        return self._add(np.asarray(values, np.int64), None)

    def _add(self, values: np.ndarray, name: str | None) -> str:
        name = name or f"c{len(self.constants)}"
        self.constants[name] = values
        return name

    def columns(self, x: str, start: int, stop: int) -> str:
        """Columns start..stop of x."""
        ends = (self.integers([start]), self.integers([stop]), self.integers([1]))
        return self("Slice", x, *ends)

    def linear(self, x: str, name: str) -> str:
        """Affine map with the weights `name` and `name.bias`."""
        return self("Gemm", x, name, f"{name}.bias")

    def below(self, probabilities: str, levels: int, uniform: str) -> str:
        """1 for each level that the draw exceeds, (..., levels - 1) float."""
        cumulative = self("MatMul", probabilities, self.constant(np.triu(np.ones((levels, levels - 1)))))
        return self.number(self("LessOrEqual", cumulative, uniform))

    def number(self, x: str) -> str:
        """Booleans as 0 and 1."""
        return self("Cast", x, to=TensorProto.FLOAT)

    def happens(self, uniform: str, probability: str) -> str:
        """1 with the given probability."""
        return self.number(self("Less", uniform, probability))


def state_sizes(network: UserNetwork) -> list[int]:
    """Widths of the parts of the state, in order."""
    hidden = network.exposure_gru.hidden_size + network.page_view_gru.hidden_size
    memory = [hidden, network.n_evidence * network.d]
    frozen = [*memory, N_CONTEXT_CODE] if network.frozen_pages else []
    return [*memory, network.inputs.width + WINDOW + N_CONTEXT_CODE + N_ANSWER, *frozen]


def answer_columns(network: UserNetwork) -> tuple[int, int]:
    """First and last + 1 column of the state that hold the last answer."""
    stop = sum(state_sizes(network)[:3])
    return stop - N_ANSWER, stop


def step_graph(network: UserNetwork, weights: Weights) -> bytes:
    """Write the graph for networks of this shape, with the weights that :func:`pack` made of one of them."""
    g = _Graph()
    d, width, n_user = network.d, network.inputs.width, network.inputs.user_scale.shape[0]
    hidden = network.exposure_gru.hidden_size + network.page_view_gru.hidden_size
    one, first, last = g.constant(1.0), g.integers([1]), g.integers([2])

    # What is seen.
    slot_sizes = [WINDOW * width, CONTEXT_SIZE, n_user, 1, CLICK - 1, 1, 1, N_SIGNS, 1]
    flat, context, user, u_dwell, u_exposure, u_click, u_view, u_signs, u_leave = g.split("slot", slot_sizes)
    ctr = g("Gather", flat, g.integers(np.arange(WINDOW) * width + d + 1), axis=1)
    ctr = g("Clip", ctr, g.constant(LEAST_CTR), g.constant(1 - LEAST_CTR))
    logit = g("Log", g("Div", ctr, g("Sub", one, ctr)))  # (N, 5)
    n_waves = network.inputs.context_waves.shape[1]
    fading, waves = g.split(g.linear(context, "context"), [N_CONTEXT_CODE - CONTEXT_SIZE - n_waves, n_waves])
    code = g("Concat", context, g("Exp", fading), g("Sin", waves), axis=1)
    cards = g("Mul", g("Reshape", flat, g.integers([-1, WINDOW, width])), "card_scale")  # (N, 5, W)
    focused = g("Gather", cards, g.integers(FOCUSED), axis=1)  # (N, W)
    pairs = g("MatMul", g("Mul", cards, g("Unsqueeze", focused, first)), "pair")
    pairs = g("Reshape", pairs, g.integers([-1, WINDOW * network.pair.out_features]))
    embedding = g.columns(focused, 0, d)

    # Absorb the last answer.
    parts = g.split("state", state_sizes(network))
    gates = [2 * hidden, hidden, network.n_evidence]
    new, new_candidate, strength = g.split(g.linear(parts[2], "new"), gates)
    old, old_candidate = g.split(g.linear(parts[0], "old"), gates[:2])
    reset, update = g.split(g("Sigmoid", g("Add", new, old)), [hidden, hidden])
    candidate = g("Tanh", g("Add", new_candidate, g("Mul", reset, old_candidate)))
    memory = g("Add", candidate, g("Mul", update, g("Sub", parts[0], candidate)))
    shown = g("Mul", g("Unsqueeze", strength, last), g("Unsqueeze", g.columns(parts[2], 0, d), first))
    evidence = g("Reshape", parts[1], g.integers([-1, network.n_evidence, d]))
    evidence = g("Add", g("Mul", evidence, "decay"), shown)  # (N, K, d)
    kept = [memory, g("Reshape", evidence, g.integers([-1, network.n_evidence * d]))]
    state = [*kept, focused, logit, code]
    frozen: list[str] = []
    if network.frozen_pages:
        age = g("Mul", g.columns(context, PAGE_AGE, PAGE_AGE + 1), g.columns(context, SLOT, SLOT + 1))
        starts = g("Equal", age, g.constant(0.0))
        frozen = [g("Where", starts, x, before) for x, before in zip([*kept, code], parts[3:], strict=True)]
        memory, code = frozen[0], frozen[2]
        evidence = g("Reshape", frozen[1], g.integers([-1, network.n_evidence, d]))

    # The logits of every head.
    matches = g("MatMul", evidence, g("Unsqueeze", embedding, last))
    matches = g("Reshape", matches, g.integers([-1, network.n_evidence]))
    size = g("ReduceL2", evidence, last, keepdims=0)
    query = g.linear(g("Concat", memory, user, axis=1), "query")
    wanted = g("Mul", query, g("Concat", *[embedding] * QUERIES, axis=1))
    cosine = g("Div", matches, g("Add", size, one))
    inputs = g("Concat", flat, user, memory, logit, code, pairs, matches, size, cosine, wanted, axis=1)
    for layer in ("trunk1", "trunk2"):
        inputs = g("Relu", g.linear(inputs, layer))
    sizes = [*(HEADS[h] for h in ("dwell", "exposure", "click")), DWELL_BUCKETS]
    sizes += [HEADS["page_view"], HEADS["signs"], PAGE_VIEW_BUCKETS, 1]
    dwell, exposure, click, click_by, view, signs, buy_by, leave = g.split(g.linear(inputs, "heads"), sizes)

    # Draw the answer.
    p_dwell = g("Softmax", dwell, axis=1)
    drawn = g.linear(g.below(p_dwell, DWELL_BUCKETS, u_dwell), "by_dwell")
    looked, duration, exposure_by, click_offset = g.split(drawn, [DWELL_BUCKETS, 1, HEADS["exposure"], 1])
    exposure = g("Reshape", g("Add", exposure, exposure_by), g.integers([-1, len(LEVELS), MOST_LEVELS]))
    above = g.below(g("Softmax", exposure, axis=2), MOST_LEVELS, g("Unsqueeze", u_exposure, last))
    above = g("Reshape", above, g.integers([-1, len(LEVELS) * (MOST_LEVELS - 1)]))
    rest = g("MatMul", above, g.constant(_level_values()))
    p_of = g("Mul", p_dwell, g("Sigmoid", click_by))  # (N, 8) click and dwell bucket
    p_click = g("ReduceSum", p_of, first)
    click = g.happens(u_click, g("Sigmoid", g("Add", click, click_offset)))
    p_view = g("Softmax", view, axis=1)
    drawn = g.linear(g.below(p_view, PAGE_VIEW_BUCKETS, u_view), "by_page_view")
    length, signs_by, opened = g.split(drawn, [1, N_SIGNS, PAGE_VIEW_BUCKETS])
    signs = g.happens(u_signs, g("Sigmoid", g("Add", signs, signs_by)))
    viewed = g("Mul", g("Concat", length, signs, opened, axis=1), click)
    p_buy = g("ReduceSum", g("Mul", p_view, g("Sigmoid", buy_by)), first)
    answer = g("Concat", looked, duration, rest, click, viewed, axis=1)
    leave = g.happens(u_leave, g("Sigmoid", g("Gemm", answer, "leave_by_answer", leave)))
    actions = g.columns(answer, DWELL_BUCKETS, DWELL_BUCKETS + N_ACTIONS)
    g("Concat", actions, leave, p_click, g("Mul", p_click, p_buy), axis=1, name="response")
    g("Concat", *state, answer, *frozen, axis=1, name="new_state")
    return _serialise(g, weights, sum(slot_sizes), sum(state_sizes(network)))


def _level_values() -> np.ndarray:
    """Values of e2..e6 by levels exceeded, (20, 5); levels that do not exist count nothing."""
    values = np.zeros((len(LEVELS), MOST_LEVELS - 1, len(LEVELS)))
    for k, n in enumerate(LEVELS):
        values[k, : n - 1, k] = 1 / (n - 1)
    return values.reshape(-1, len(LEVELS))


def _serialise(g: _Graph, weights: Weights, slot_size: int, state_size: int) -> bytes:
    def rows(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])

    graph = helper.make_graph(
        g.nodes,
        "step",
        [rows("slot", slot_size), rows("state", state_size)],
        [rows("response", RESPONSE_SIZE), rows("new_state", state_size)],
        [numpy_helper.from_array(values, name) for name, values in {**g.constants, **weights}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
