"""The graphs of one event: the perception takes a step, and what it made of the event is kept."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgerec_gym.agents.attention import AdditiveAttention
from edgerec_gym.agents.device_layers import array, base_logit_column, card_weight, linear, stacked_gru
from edgerec_gym.agents.device_match import event_interest
from edgerec_gym.agents.interest_match import BehaviourMatch, InterestMatch
from edgerec_gym.agents.perception import ACTION_COLUMNS, Perception, SequenceEncoder
from edgerec_gym.simulator.onnx_graph import OnnxGraph


def events(
    perception: Perception, attention: nn.ModuleDict, values: dict[str, np.ndarray], match: BehaviourMatch
) -> dict[str, bytes]:
    """The graphs of an event of each sequence; `values` (V, .) are weights of the layer behind attention."""
    graphs = {}
    for name in perception.sequences:
        compared, matches = attention[name], match[name] if name in match else None
        assert isinstance(compared, AdditiveAttention) and isinstance(matches, InterestMatch | None)
        graphs[name] = event_graph(
            perception.encoder(name),
            ACTION_COLUMNS[name],
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
    """The graph of one event: `row` (1, W) and `hidden` (states, 1, H) -> `key`, `value`, `new_hidden`.

    Args:
        encoder: of the sequence.
        n_actions: columns of actions.
        key_weight: (A, H) of the attention's comparison.
        value_weight: (V, H or 2 H) of the layer behind the attention.
        match: then there is also `interest`, see :mod:`edgerec_gym.agents.device_match`.
        match_actions: whether it reads the actions.
    """
    d, hidden, n_card = encoder.embedding_size, encoder.hidden, encoder.n_card
    grus = [encoder.cards] if encoder.actions is None else [encoder.cards, encoder.actions]
    g = OnnxGraph()
    n_states = encoder.layers * len(grus)
    row, state = g.input("row", [1, n_card + n_actions]), g.input("hidden", [n_states, 1, hidden])
    starts = g.split(state, [1] * n_states, axis=0)
    card, actions = g.split(row, [n_card, n_actions])
    cards = g("Concat", card, base_logit_column(g, card, d), axis=1)
    codes, lasts = [], []
    for k, (gru, x) in enumerate(zip(grus, (cards, actions), strict=False)):
        first = array(gru.weight_ih_l0)
        first = card_weight(first, d).T if k == 0 else first
        own = starts[k * encoder.layers : (k + 1) * encoder.layers]
        code, last = stacked_gru(g, g("Unsqueeze", x, g.integers([1])), gru, first, starts=own)
        codes.append(g("Squeeze", code, g.integers([1])))
        lasts += last
    linear(g, codes[0], key_weight.T, name="key")
    linear(g, codes[0] if len(codes) == 1 else g("Concat", *codes, axis=1), value_weight.T, name="value")
    g("Concat", *lasts, name="new_hidden", axis=0)
    g.output("key", [1, len(key_weight)])
    g.output("value", [1, len(value_weight)])
    g.output("new_hidden", [n_states, 1, hidden])
    if match is not None:
        embedding = g.split(card, [d, n_card - d])[0]
        event_interest(g, embedding, actions if match_actions else None, match)
    return g.serialise("event")
