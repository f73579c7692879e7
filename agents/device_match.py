"""The match with live interest on the phone: what an event tells of it is kept, and ages until it is read."""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.device_layers import array, linear
from edgerec_gym.agents.interest_match import MATCH_SCALE, BehaviourMatch, InterestMatch
from edgerec_gym.simulator.onnx_graph import OnnxGraph


def event_interest(g: OnnxGraph, embedding: str, actions: str | None, match: InterestMatch) -> None:
    """Give `interest` (1, heads x d): the event's embedding (1, d), weighted by the actions (1, A)."""
    d = len(match.metric)
    weight, bias = array(match.weight.weight), array(match.weight.bias)
    heads = g.floats(bias[None]) if actions is None else linear(g, actions, weight.T, bias)  # (1, heads)
    product = g("Mul", g("Unsqueeze", heads, g.integers([2])), g("Unsqueeze", embedding, g.integers([1])))
    g("Reshape", product, g.integers([1, match.heads * d]), name="interest")
    g.output("interest", [1, match.heads * d])


def matched(g: OnnxGraph, candidates: str, match: BehaviourMatch) -> str:
    """Match of the candidates (n, F) with the interest of each sequence, (n, size).

    It reads `<sequence>.interests` (events, heads x d) and `<sequence>.ages` (events,) float32, the events
    that have come after each.
    """
    found = []
    for name, part in match.items():
        assert isinstance(part, InterestMatch)
        d, events = len(part.metric), f"{name}.events"
        kept = g.input(f"{name}.interests", [events, part.heads * d])
        ages = g("Unsqueeze", g.input(f"{name}.ages", [events]), g.integers([1]))
        decay = g("Exp", g("Mul", ages, g.floats(-np.exp(array(part.decay))[None])))  # (events, heads)
        by_head = g("Reshape", kept, g.integers([-1, part.heads, d]))
        weighted = g("Mul", by_head, g("Unsqueeze", decay, g.integers([2])))
        interest = g("ReduceSum", weighted, g.integers([0]), keepdims=0)  # (heads, d)
        square = g("ReduceSum", g("Mul", interest, interest), g.integers([1]))
        length = g("Sqrt", g("Add", square, g.floats(1e-12)))
        unit = g("Div", interest, g("Add", length, g.floats(1.0)))
        metric = np.zeros((match.n_features, d), np.float32)
        metric[:d] = MATCH_SCALE * array(part.metric)
        found.append(g("MatMul", linear(g, candidates, metric), g("Transpose", unit, perm=[1, 0])))
    return g("Concat", *found, axis=1)
