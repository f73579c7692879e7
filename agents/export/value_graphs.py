"""Graphs of the value network.

An event's part in the evidence does not depend on when it is read, except for its decay. So it is computed
once, when it happens: keys, weights and description are kept, and a decision sums them up.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.export.decisions import DecisionGraph, sequential
from edgerec_gym.agents.export.layers import array, layer, linear
from edgerec_gym.agents.perception.perception import SEQUENCES, action_columns
from edgerec_gym.agents.values.network import Evidence, ValueNetwork


def value_graphs(network: ValueNetwork) -> dict[str, bytes]:
    """Graphs by name: an event of each sequence, and `values`.

    `values` reads `offered` (n, F + T), cards; it outputs `values` (n, 1) in reward units, to be ignored
    where there is no card.
    """
    return {
        **{name: _event_graph(network, name) for name in SEQUENCES},
        "values": _values_graph(network),
    }


def _encoded(g: DecisionGraph, network: ValueNetwork, cards: str) -> tuple[str, str, str]:
    """Codes (n, H / 2), keys (n, d + keys) and features (n, F + T) of cards (n, F + T)."""
    features, present = g.features(cards), g.present(cards)
    codes = sequential(g, features, network.item)
    learned = g("Mul", linear(g, codes, array(network.key.weight).T), present)
    keys = g("Concat", g.embeddings(features, g.n_card), learned, axis=1)
    return g("Mul", codes, present), keys, features


def _sizes(network: ValueNetwork) -> list[int]:
    """Columns of an event's codes: keys, weights of the heads, description, slot."""
    s = network.settings
    return [network.d + s.keys, s.heads, s.hidden // 2, 1]


def _evidence(network: ValueNetwork, name: str) -> Evidence:
    module = network.evidence[name]
    assert isinstance(module, Evidence)
    return module


def _event_graph(network: ValueNetwork, name: str) -> bytes:
    """Build the graph of one event: `row` (1, W) -> `codes` (1, C)."""
    g, module = DecisionGraph(network.config), _evidence(network, name)
    n_actions = action_columns(network.config)[name] - 1
    row = g.input("row", [1, g.n_card + n_actions + 1])
    card, actions, slot = g.split(row, [g.n_card, n_actions, 1])
    codes, keys, _ = _encoded(g, network, card)
    described = sequential(g, g("Concat", codes, actions, axis=1), module.describe)
    weight = g("Add", linear(g, described, array(module.weight.weight).T), layer(g, actions, module.linear))
    g("Concat", keys, weight, described, slot, name="codes", axis=1)
    g.output("codes", [1, sum(_sizes(network))])
    return g.serialise("event")


def _read(g: DecisionGraph, network: ValueNetwork, name: str) -> tuple[str, str]:
    """Evidence (heads, D) and sums of descriptions (1, H / 2) of one history; rows of zeros add nothing."""
    module, sizes = _evidence(network, name), _sizes(network)
    codes = g.codes(name, sum(sizes))
    keys, weight, described, slot = g.split(codes, sizes)
    now = g("Slice", g.context, g.integers([0]), g.integers([1]), g.integers([1]))
    age = g("Mul", g("Sub", now, slot), g.floats(network.config.max_slots))  # (L, 1)
    decay = g("Exp", g("Mul", age, g.floats(-np.exp(array(module.rate))[None])))
    evidence = g("MatMul", g("Transpose", g("Mul", weight, decay), perm=[1, 0]), keys)
    square = g("ReduceSum", g("Mul", evidence, evidence), g.integers([1]), keepdims=1)
    size = g("Sqrt", g("Add", square, g.floats(1e-6)))
    evidence = g("Div", evidence, g("Add", size, g.floats(1.0)))
    decay = g("Exp", g("Mul", age, g.floats(-np.exp(array(module.slow))[None])))
    summed = g("MatMul", g("Transpose", decay, perm=[1, 0]), described)
    return evidence, g("Div", summed, g("Add", g("Mul", summed, g.floats(0.1)), g.floats(1.0)))


def _values_graph(network: ValueNetwork) -> bytes:
    config, s, d = network.config, network.settings, network.d
    g, width = DecisionGraph(network.config), network.d + s.keys
    evidence = [_read(g, network, name) for name in SEQUENCES]
    parts = []
    for vectors, summed in evidence:
        parts += [g("Reshape", vectors, g.integers([1, s.heads * width])), summed]
    parts += [g.user, g.context]
    no_keys = g.floats(np.zeros((1, s.keys)))
    long_term = g("Concat", g.embeddings(g.user, config.n_user_features), no_keys, axis=1)
    compared = [vectors for vectors, _ in evidence]
    screen = []
    if config.lookahead:
        codes, keys, _ = _encoded(g, network, g.screen)
        parts.append(g("Reshape", codes, g.integers([1, config.lookahead * (s.hidden // 2)])))
        screen.append(keys)
    state = sequential(g, g("Concat", *parts, axis=1), network.state)
    if s.queries:
        compared.append(g("Reshape", layer(g, state, network.query), g.integers([s.queries, width])))
    vectors = g("Concat", *compared, long_term, *screen, axis=0)  # (vectors, D)

    codes, keys, features = _encoded(g, network, g.input("offered", ["n", g.n_card]))
    told = [codes, g("MatMul", keys, g("Transpose", vectors, perm=[1, 0]))]
    if screen:
        near = g.embeddings(screen[0], width)
        told.append(g("MatMul", g.embeddings(keys, width), g("Transpose", near, perm=[1, 0])))
    told.append(g.split(features, [d, config.n_item_features - d, config.n_types])[1])
    told_of = g("Concat", *told, axis=1)
    of_state = linear(g, state, array(network.by_state.weight).T, array(network.candidate.bias))
    inner = linear(g, told_of, array(network.candidate.weight).T)
    hidden = g("Relu", g("Add", inner, of_state))
    logits = g("Add", layer(g, told_of, network.plain), sequential(g, hidden, network.head))
    click, buys = g.split(g("Sigmoid", logits), [1, 1])
    reward = config.reward
    worth = g("Add", g("Mul", buys, g.floats(reward.purchase)), g.floats(reward.click))
    g("Mul", click, worth, name="values")
    g.output("values", ["n", 1])
    return g.serialise("values")
