"""Layers as ONNX nodes, the match with live interest, and the graphs of one event.

An event is an exposure or a page view: the perception takes one step, and its codes for the event are kept.
So is the event's contribution to the live interest, which decays with age when it is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.cards import BASE_CTR, LOGIT_SCALE
from edgerec_gym.agents.perception.interest_match import MATCH_SCALE, BehaviourMatch, InterestMatch
from edgerec_gym.agents.perception.perception import Perception, SequenceEncoder
from edgerec_gym.onnx_graph import OnnxGraph

CLIPPED = 1e-4  # base ctr is clipped here before the logit, as in perception.base_logit


def array(parameter: Any) -> np.ndarray:
    """Return a tensor of a network as float32."""
    return parameter.detach().numpy().astype(np.float32)


def affine(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight (outputs, inputs) and bias (outputs,) of a linear layer."""
    return array(layer.weight), array(layer.bias)


def base_logit_column(g: OnnxGraph, cards: str, embedding_size: int) -> str:
    """Logit of the base ctr of cards (n, F or F + T): (n, 1)."""
    return logit_column(g, cards, embedding_size + BASE_CTR, CLIPPED)


def logit_column(g: OnnxGraph, cards: str, column: int, clipped: float) -> str:
    """Logit of a column of cards, clipped to clipped .. 1 - clipped: (n, 1)."""
    share = g("Gather", cards, g.integers([column]), axis=1)
    share = g("Clip", share, g.floats(clipped), g.floats(1 - clipped))
    return g("Sub", g("Log", share), g("Log", g("Sub", g.floats(1.0), share)))


def card_weight(weight: np.ndarray, embedding_size: int) -> np.ndarray:
    """Convert weights (outputs, F + T) of card features to (F + T + 1, outputs) of cards and their logit."""
    at = embedding_size + BASE_CTR
    raw = weight.T.copy()
    raw[at] = 0.0
    return np.vstack([raw, weight[:, at] / LOGIT_SCALE])


def candidate_weight(
    weight: np.ndarray, embedding_size: int, n_features: int
) -> tuple[np.ndarray, np.ndarray]:
    """Do the same for pool rows (F columns), which are goods: weights (F + 1, outputs), the goods' bias."""
    raw = card_weight(weight, embedding_size)
    return np.vstack([raw[:n_features], raw[-1:]]), raw[n_features]


def linear(
    g: OnnxGraph, x: str, weight: np.ndarray, bias: np.ndarray | None = None, name: str | None = None
) -> str:
    """Multiply rows x (n, inputs) by weight (inputs, outputs), and add the bias."""
    constants = [g.floats(part) for part in (weight, bias) if part is not None]
    return g("Gemm", x, *constants, name=name)


def layer(g: OnnxGraph, x: str, module: Any) -> str:
    """Apply a linear layer of a network to rows x."""
    weight, bias = affine(module)
    return linear(g, x, weight.T, bias)


def gru_step(
    g: OnnxGraph,
    gates: str,
    state: str,
    gru: nn.GRU | nn.GRUCell,
    suffix: str = "",
    name: str | None = None,
) -> str:
    """One step of a GRU as products and gates, which every engine and quantiser knows: states (n, H).

    Args:
        g: the graph that the nodes are added to.
        gates: (n, 3 H) or (1, 3 H) input of the gates: weight_ih x + bias_ih, in torch's order r, z, n.
        state: (n, H) states before.
        gru: holds the recurrent weights.
        suffix: suffix of their names.
        name: name of the new states.
    """
    weight, bias = (array(getattr(gru, f"{part}{suffix}")) for part in ("weight_hh", "bias_hh"))
    hidden = weight.shape[1]
    of_input, new_of_input = g.split(gates, [2 * hidden, hidden])
    of_state, new_of_state = g.split(linear(g, state, weight.T, bias), [2 * hidden, hidden])
    reset, update = g.split(g("Sigmoid", g("Add", of_input, of_state)), [hidden, hidden])
    new = g("Tanh", g("Add", new_of_input, g("Mul", reset, new_of_state)))
    return g("Add", new, g("Mul", update, g("Sub", state, new)), name=name)


def gru_weights(
    weight_ih: np.ndarray, gru: nn.GRU | nn.GRUCell, suffix: str = "", added: np.ndarray | None = None
) -> list[np.ndarray]:
    """W, R and B of an ONNX GRU from weights (3 H, inputs) and a torch GRU's others; gates z, r, h.

    Args:
        weight_ih: input weights.
        gru: holds the other weights.
        suffix: suffix of their names.
        added: (3 H,) added to the input bias.
    """

    def reordered(values: np.ndarray) -> np.ndarray:
        reset, update, new = np.split(values, 3)
        return np.concatenate([update, reset, new])[None]

    recurrent, *biases = (
        array(getattr(gru, f"{name}{suffix}")) for name in ("weight_hh", "bias_ih", "bias_hh")
    )
    if added is not None:
        biases[0] = biases[0] + added
    bias = np.concatenate([reordered(part) for part in biases], axis=1)
    return [reordered(weight_ih), reordered(recurrent), bias]


def gru_layer(g: OnnxGraph, x: str, weights: list[np.ndarray], start: str = "") -> tuple[str, str]:
    """Apply one layer to x (steps, batch, inputs), any number of steps, from state `start` (1, batch, H).

    A node of its own, since no graph unrolls a free number of steps. `linear_before_reset` selects torch's
    form of the gates, which is also the only one that MNN gets right.

    Returns:
        All states (steps, batch, H) and the last one (1, batch, H).
    """
    w, r, b = (g.floats(part) for part in weights)
    hidden = weights[1].shape[2]
    states, last = g.several(
        "GRU", x, w, r, b, "", start, outputs=2, hidden_size=hidden, linear_before_reset=1
    )
    return g("Squeeze", states, g.integers([1])), last


def stacked_gru(g: OnnxGraph, x: str, gru: nn.GRU, first: np.ndarray, added: np.ndarray) -> tuple[str, str]:
    """Apply all layers of a GRU.

    Args:
        g: the graph that the nodes are added to.
        x: (steps, batch, inputs).
        gru: holds the weights.
        first: (3 H, inputs) input weights of the first layer, in place of its own.
        added: (3 H,) added to the first layer's bias.

    Returns:
        (steps, batch, H) of the last layer, and its last state (1, batch, H).
    """
    last = ""
    for depth in range(gru.num_layers):
        weight_ih = first if depth == 0 else array(getattr(gru, f"weight_ih_l{depth}"))
        weights = gru_weights(weight_ih, gru, f"_l{depth}", added if depth == 0 else None)
        x, last = gru_layer(g, x, weights)
    return x, last


def attend(g: OnnxGraph, query: str, keys: str, values: str, score: np.ndarray) -> str:
    """Sum values (L, V), weighted by score . tanh(query + key): queries (n, H), keys (L, H); (n, V)."""
    both = g("Add", g("Unsqueeze", query, g.integers([1])), keys)  # (n, L, H)
    logits = g("Squeeze", g("MatMul", g("Tanh", both), g.floats(score.reshape(-1, 1))), g.integers([2]))
    return g("MatMul", g("Softmax", logits, axis=1), values)


def event_interest(g: OnnxGraph, embedding: str, actions: str | None, match: InterestMatch) -> None:
    """Output `interest` (1, heads x d): the event's embedding (1, d), weighted by the actions (1, A)."""
    d = len(match.metric)
    weight, bias = array(match.weight.weight), array(match.weight.bias)
    heads = g.floats(bias[None]) if actions is None else linear(g, actions, weight.T, bias)  # (1, heads)
    product = g("Mul", g("Unsqueeze", heads, g.integers([2])), g("Unsqueeze", embedding, g.integers([1])))
    g("Reshape", product, g.integers([1, match.heads * d]), name="interest")
    g.output("interest", [1, match.heads * d])


def matched(g: OnnxGraph, candidates: str, match: BehaviourMatch) -> str:
    """Match the candidates (n, F) with the interest of each sequence, (n, size).

    Reads `<sequence>.interests` (events, heads x d) and `<sequence>.ages` (events,) float32, the number of
    events since each.
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


def events(
    perception: Perception, attention: nn.ModuleDict, values: dict[str, np.ndarray], match: BehaviourMatch
) -> dict[str, bytes]:
    """Build an event graph for each sequence; `values` (V, .) are weights of the layer after attention."""
    graphs = {}
    for name in perception.sequences:
        compared, matches = attention[name], match[name] if name in match else None
        assert isinstance(compared, AdditiveAttention) and isinstance(matches, InterestMatch | None)
        graphs[name] = event_graph(
            perception.encoder(name),
            perception.encoder(name).n_action,
            array(compared.key.weight),
            values[name],
            matches,
            match.actions,
        )
    return graphs


def event_graph(
    encoder: SequenceEncoder,
    n_actions: int,
    key_weight: np.ndarray,
    value_weight: np.ndarray,
    match: InterestMatch | None = None,
    match_actions: bool = True,
) -> bytes:
    """Build the graph of one event: `row` (1, W), `hidden` (states, 1, H) -> `key`, `value`, `new_hidden`.

    Args:
        encoder: encoder of the sequence.
        n_actions: number of action columns.
        key_weight: (A, H) weights of the attention's keys.
        value_weight: (V, H or 2 H) weights of the layer after attention.
        match: adds the output `interest`, see :mod:`edgerec_gym.agents.export.layers`.
        match_actions: whether the match reads the actions.
    """
    d, hidden, n_card = encoder.embedding_size, encoder.hidden, encoder.n_card
    grus = [encoder.cards] if encoder.actions is None else [encoder.cards, encoder.actions]
    g = OnnxGraph()
    n_states = encoder.layers * len(grus)
    row, state = g.input("row", [1, n_card + n_actions]), g.input("hidden", [n_states, 1, hidden])
    starts = g.split(g("Squeeze", state, g.integers([1])), [1] * n_states, axis=0)  # (1, H) each
    card, actions = g.split(row, [n_card, n_actions])
    cards = g("Concat", card, base_logit_column(g, card, d), axis=1)
    codes: list[str] = []
    lasts: list[str] = []
    for k, (gru, x) in enumerate(zip(grus, (cards, actions), strict=False)):
        for depth in range(encoder.layers):
            weight, bias = (array(getattr(gru, f"{part}_ih_l{depth}")) for part in ("weight", "bias"))
            inputs = card_weight(weight, d) if k == depth == 0 else weight.T
            x = gru_step(g, linear(g, x, inputs, bias), starts[len(lasts)], gru, f"_l{depth}")
            lasts.append(x)
        codes.append(x)
    linear(g, codes[0], key_weight.T, name="key")
    linear(g, codes[0] if len(codes) == 1 else g("Concat", *codes, axis=1), value_weight.T, name="value")
    g("Unsqueeze", g("Concat", *lasts, axis=0), g.integers([1]), name="new_hidden")
    g.output("key", [1, len(key_weight)])
    g.output("value", [1, len(value_weight)])
    g.output("new_hidden", [n_states, 1, hidden])
    if match is not None:
        embedding = g.split(card, [d, n_card - d])[0]
        event_interest(g, embedding, actions if match_actions else None, match)
    return g.serialise("event")
