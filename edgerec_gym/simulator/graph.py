"""The matrix products of one step of a fitted network as an ONNX graph of few nodes.

A step absorbs the last slot and its answer into the memory, then computes the logits of the next answer.
users/learned_encode.py makes the inputs, users/learned_answer.py draws the answers, and
users/learned_layout.py has the layouts of `last`, `seen` and `logits`. The tests check that steps agree with
:meth:`UserNetwork.forward_sequence`.

Inputs: past (`last`, then the memory), memory (both GRUs side by side), seen, user_query (the user's part of
the queries) and focused (the embedding, once per query). Outputs: new_memory, logits. If `order_within_page`
is unidentified, there are also the inputs page_memory (the memory at the page's start, on which the page's
answers are based), page_starts (1 if the slot begins a page) and page (the summary of the page), and the
output new_page_memory.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import PAGE_SUMMARY, WINDOW
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.simulator.inputs import N_CONTEXT_CODE
from edgerec_gym.simulator.model import QUERIES, UserNetwork
from edgerec_gym.users.learned_layout import N_ANSWER, N_LOGITS

Weights = dict[str, np.ndarray]


def step_graph(network: UserNetwork, weights: Weights) -> bytes:
    """Return the serialised graph for networks of this shape, with one network's weights from `pack`."""
    g = OnnxGraph(weights)
    width, n_user = network.inputs.width, network.inputs.user_scale.shape[0]
    hidden = network.exposure_gru.hidden_size + network.page_view_gru.hidden_size
    compared = WINDOW + N_CONTEXT_CODE + WINDOW * network.pair.out_features + 3 * network.n_evidence
    compared += network.inputs.n_codes

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

    last = width + WINDOW + N_CONTEXT_CODE + N_ANSWER + network.n_responses
    queries = QUERIES * network.d
    inputs_ = {"past": last + hidden, "memory": hidden, "seen": WINDOW * width + n_user + compared}
    inputs_ |= {"user_query": queries, "focused": queries}
    outputs = {"new_memory": hidden}
    if network.frozen_pages:
        inputs_ |= {"page_memory": hidden, "page_starts": 1, "page": len(PAGE_SUMMARY)}
        outputs |= {"new_page_memory": hidden}
    for name, size in inputs_.items():
        g.input(name, ["batch", size])
    for name, size in {**outputs, "logits": N_LOGITS + network.n_responses}.items():
        g.output(name, ["batch", size])
    return g.serialise("step")
