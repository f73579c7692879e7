"""The list evaluator's graphs: encode the candidates, add a card to partial lists, judge whole lists.

A place depends on the cards above it, through the state of a GRU, and on the `lookahead` cards below it. So a
partial list is kept as that state, plus the inputs so far of the output layer at the last places, which still
wait for cards below (*pending*). Adding a card costs one step of the GRU, however long the list. The value of
the places before is settled.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from edgerec_gym.agents.export.graphs import ListGraph, columns
from edgerec_gym.agents.export.layers import (
    array,
    base_logit_column,
    card_weight,
    events,
    gru_step,
    gru_weights,
    layer,
    linear,
    logit_column,
    matched,
)
from edgerec_gym.agents.lists.evaluator import (
    CLICK,
    LEAST_CVR,
    LEAVE,
    LONG_PAGE_VIEW,
    PURCHASE,
    ListEvaluator,
)
from edgerec_gym.agents.perception.cards import BASE_CVR
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.spaces import context_size


def evaluator_graphs(network: ListEvaluator) -> dict[str, bytes]:
    """Graphs by name: an event of each sequence, `encode`, `extend` and `judge`."""
    _, *of_behaviour, _, _ = _of_cards(network)
    values = dict(zip(network.perception.sequences, of_behaviour, strict=True))
    return {
        **events(network.perception, network.attention, values, network.match),
        "encode": _encode_graph(network),
        "extend": _extend_graph(network),
        "judge": _judge_graph(network),
    }


class _Head:
    """The output layer behind the GRU, split by input, for all the places that a new card changes.

    Attributes:
        by_card: (H, (lookahead + 1) H): effect of a card on the places that see it below, the highest place
            first, and on its own place.
        by_above: (H, H), for the GRU's state.
        bias: (H,).
    """

    def __init__(self, network: ListEvaluator) -> None:
        first = network.head[0]
        assert isinstance(first, nn.Linear)
        lookahead, hidden = network.config.lookahead, network.settings.hidden
        own, above, *below = columns(array(first.weight), *[hidden] * (2 + lookahead))
        self.by_card = np.hstack([part.T for part in (*below[::-1], own)])
        self.by_above, self.bias = above.T, array(first.bias)


def _encode_graph(network: ListEvaluator) -> bytes:
    """Build the graph from a re-ranker's inputs and `screen` (lookahead, F + T) to the parts of lists.

    Outputs: `codes` (n, H); `base` (n, 2), logits of click and purchase from the card alone; `gates`
    (n, 3 H), each card's input to the GRU's gates; `parts` (n, (lookahead + 1) H), its input to the output
    layer; `start` (1, 1, H), the GRU's state after the screen.
    """
    config, hidden, d = network.config, network.settings.hidden, network.config.embedding_size
    n_card, lookahead = config.n_item_features + config.n_types, config.lookahead
    of_cards, _, _, of_session, of_match = _of_cards(network)
    g = ListGraph(config)
    terms = g.behaviour(network.perception, network.attention, g.behind(network.query), hidden)
    bias = array(network.card.bias) + of_session @ array(network.session.bias)
    terms.append(g.of_cards(of_cards, bias))
    terms.append(linear(g, g.session, (of_session @ array(network.session.weight)).T))
    found = matched(g, g.candidates, network.match) if network.match else None
    if found is not None:
        terms.append(linear(g, found, of_match.T))
    codes = g("Relu", g.add(*terms), name="codes")
    weight_ih = array(network.above.weight_ih_l0)
    linear(g, codes, weight_ih.T, array(network.above.bias_ih_l0), name="gates")
    linear(g, codes, _Head(network).by_card, name="parts")
    conversion = g(
        "Mul", logit_column(g, g.cards, d + BASE_CVR, LEAST_CVR), g.floats(network.conversion.item())
    )
    g("Add", g("Concat", g.base, conversion, axis=1), _alone(g, network, found), name="base")
    if lookahead:
        screen = g.input("screen", [lookahead, n_card])
        present = g("Sign", g("ReduceMax", g("Abs", screen), g.integers([1])))  # (lookahead, 1)
        logit = g("Mul", base_logit_column(g, screen, d), present)
        cards = g("Concat", screen, logit, axis=1)
        weight = card_weight(array(network.screen.weight), d)
        cards = g("Tanh", linear(g, cards, weight, array(network.screen.bias)))
        gates = linear(g, cards, weight_ih.T, array(network.above.bias_ih_l0))
        state = g.floats(np.zeros((1, hidden)))
        for one in g.split(gates, [1] * lookahead, axis=0):
            state = gru_step(g, one, state, network.above, "_l0")
        start = g("Unsqueeze", state, g.integers([0]))
    else:
        start = g.floats(np.zeros((1, 1, hidden)))
    g("Identity", start, name="start")
    g.output("codes", ["n", hidden])
    g.output("base", ["n", 2])
    g.output("gates", ["n", 3 * hidden])
    g.output("parts", ["n", (lookahead + 1) * hidden])
    g.output("start", [1, 1, hidden])
    return g.serialise("encode")


def _of_cards(network: ListEvaluator) -> list[np.ndarray]:
    """Split the card layer's weights: features, what is attended in each sequence, session, match."""
    config, hidden = network.config, network.settings.hidden
    n_card = config.n_item_features + config.n_types
    sizes = (n_card, 2 * hidden, 2 * hidden, hidden, network.match.size)
    return columns(array(network.card.weight), *sizes)


def _alone(g: ListGraph, network: ListEvaluator, found: str | None) -> str:
    """Logits of click and purchase from the card alone, and its match if there is one, (n, 2)."""
    first, second, last = network.alone[0], network.alone[2], network.alone[4]
    assert isinstance(first, nn.Linear)
    config = network.config
    n_card, n_session = config.n_item_features + config.n_types, config.n_user_features + context_size(config)
    sizes = (n_card, n_session, network.match.size)
    of_cards, of_session, of_match = columns(array(first.weight), *sizes)
    terms = [g.of_cards(of_cards, array(first.bias)), linear(g, g.session, of_session.T)]
    if found is not None:
        terms.append(linear(g, found, of_match.T))
    return layer(g, g("Relu", layer(g, g("Relu", g.add(*terms)), second)), last)


def _value(g: OnnxGraph, network: ListEvaluator, inner: str, base: str, there: str) -> tuple[str, str]:
    """Value of places given that the user is still there (..., 1), and probability of staying after each.

    Args:
        g: the graph that the nodes are added to.
        network: the evaluator.
        inner: (..., H) input of the output layer's activation.
        base: (..., 2) logits of click and purchase from the card alone.
        there: (..., 1) 1 where there is a place, else 0.
    """
    last, s, identified = network.head[2], network.settings, network.identified
    scale, shift = array(network.scale), array(network.shift)
    logits = g("MatMul", g("Relu", inner), g.floats(array(last.weight).T * scale))
    logits = g("Add", logits, g.floats(array(last.bias) * scale + shift))
    residual = np.zeros((2, 4), np.float32)
    residual[0, CLICK] = scale[CLICK]
    residual[1, PURCHASE] = scale[PURCHASE]
    logits = g("Add", logits, g("MatMul", base, g.floats(residual)))
    p = g("Sigmoid", logits)
    # click * (w_click + w_purchase p_purchase + w_long p_long), where the log identifies them.
    weights = np.zeros((4, 1), np.float32)
    for head, weight in ((PURCHASE, s.purchase_weight), (LONG_PAGE_VIEW, s.long_page_view_weight)):
        weights[head] = weight * identified[head]
    worth = g("Add", g("MatMul", p, g.floats(weights)), g.floats(s.click_weight * identified[CLICK]))
    click = g("Gather", p, g.integers([CLICK]), axis=-1)
    value = g("Mul", g("Mul", click, worth), there)
    leave = g("Gather", p, g.integers([LEAVE]), axis=-1)
    if not identified[LEAVE]:  # not identified: equally likely at every place
        leave = g("Add", g("Mul", leave, g.floats(0.0)), g.floats(1 - s.decay))
    return value, g("Sub", g.floats(1.0), g("Mul", leave, there))


def _extend_graph(network: ListEvaluator) -> bytes:
    """Build the graph that adds each of m cards to each of W partial lists.

    Inputs: `gates` and `parts` of the m cards, `base` (m, 2); `place` (1,) int64 of the added card; `above`
    (W, H); `pending` (W, lookahead, H) and `pending_base` (W, lookahead, 2); `there` (lookahead + 1,), 1
    where there is such a place; `settled` (W, 1), the value of the places before, and `stay` (W, 1), the
    probability that the user is still there.

    Outputs: `value` (W, m) of the longer list; `new_above` (W, m, H); if there is a
    lookahead, `new_pending` (W, m, lookahead, H), which now wait; `first_value` and `first_stay` (W, m) of
    the place above them, which is now settled.
    """
    hidden, n = network.settings.hidden, network.config.lookahead + 1
    head, horizon = _Head(network), network.settings.horizon
    places = array(network.place.weight)  # (horizon, H)
    g = OnnxGraph()
    gates, parts = g.input("gates", ["m", 3 * hidden]), g.input("parts", ["m", n * hidden])
    base, place = g.input("base", ["m", 2]), g.input("place", [1], np.int64)
    above, there = g.input("above", ["w", hidden]), g.input("there", [n])
    settled, stay = g.input("settled", ["w", 1]), g.input("stay", ["w", 1])
    place = g("Min", place, g.integers(horizon - 1))

    def at_place(x: str, table: np.ndarray) -> str:
        return g("Add", x, g("Gather", g.floats(table), place, axis=0))

    # One GRU step for all pairs; a place adds to a card's code, and so to its gates.
    inputs = at_place(gates, places @ array(network.above.weight_ih_l0).T)  # (m, 3 H)
    weight, bias = array(network.above.weight_hh_l0).T, array(network.above.bias_hh_l0)
    recurrent = g("Unsqueeze", linear(g, above, weight, bias), g.integers([1]))  # (W, 1, 3 H)
    of_card, of_state = g.split(inputs, [2 * hidden, hidden]), g.split(recurrent, [2 * hidden, hidden], 2)
    reset, update = g.split(g("Sigmoid", g("Add", of_card[0], of_state[0])), [hidden, hidden], 2)
    new = g("Tanh", g("Add", of_card[1], g("Mul", reset, of_state[1])))
    kept = g("Mul", update, g("Sub", g("Unsqueeze", above, g.integers([1])), new))
    state = g("Add", new, kept, name="new_above")  # (W, m, H)

    parts = g("Reshape", at_place(parts, places @ head.by_card), g.integers([-1, n, hidden]))
    own = g("Add", g("MatMul", state, g.floats(head.by_above)), g.floats(head.bias))
    inner = g("Unsqueeze", own, g.integers([2]))  # (W, m, 1, H)
    bases = g("Unsqueeze", base, g.integers([0, 2]))  # (1, m, 1, 2)
    if n > 1:
        pending = g.input("pending", ["w", n - 1, hidden])
        pending_base = g("Unsqueeze", g.input("pending_base", ["w", n - 1, 2]), g.integers([1]))
        shape = g("Concat", g("Shape", state, start=0, end=2), g.integers([n - 1, hidden]), axis=0)
        old = g("Expand", g("Unsqueeze", pending, g.integers([1])), shape)  # (W, m, n - 1, H)
        inner = g("Concat", old, inner, axis=2)
        shape = g("Shape", state, start=0, end=2)
        one = g("Expand", bases, g("Concat", shape, g.integers([1, 2]), axis=0))
        older = g("Expand", pending_base, g("Concat", shape, g.integers([n - 1, 2]), axis=0))
        bases = g("Concat", older, one, axis=2)
    inner = g("Add", inner, parts)  # (W, m, n, H)
    if n > 1:
        waiting = g.split(inner, [1, n - 1], axis=2)[1]
        g("Identity", waiting, name="new_pending")
        g.output("new_pending", ["w", "m", n - 1, hidden])
    value, staying = _value(g, network, inner, bases, g("Unsqueeze", there, g.integers([1])))
    values, stays = (
        g.split(g("Squeeze", x, g.integers([3])), [1] * n, 2) for x in (value, staying)
    )  # (W, m, 1)
    total = values[-1]
    for earlier, left in zip(values[-2::-1], stays[-2::-1], strict=True):
        total = g("Add", earlier, g("Mul", left, total))
    flat = g.integers([2])
    whole = g("Mul", g("Squeeze", total, flat), stay)
    g("Add", settled, whole, name="value")
    g("Squeeze", values[0], flat, name="first_value")
    g("Squeeze", stays[0], flat, name="first_stay")
    g.output("value", ["w", "m"])
    g.output("new_above", ["w", "m", hidden])
    g.output("first_value", ["w", "m"])
    g.output("first_stay", ["w", "m"])
    return g.serialise("extend")


def _judge_graph(network: ListEvaluator) -> bytes:
    """Build the graph that judges lists: `codes`, `base`, `start` as encoded; `lists` (S, l) -> `value`."""
    hidden, lookahead = network.settings.hidden, network.config.lookahead
    head = _Head(network)
    g = OnnxGraph()
    codes, base = g.input("codes", ["n", hidden]), g.input("base", ["n", 2])
    start, lists = g.input("start", [1, 1, hidden]), g.input("lists", ["s", "l"], np.int64)
    n_lists, length = g.split(g("Shape", lists), [1, 1], 0)
    place = g("Range", g.integers(0), g("Squeeze", length), g.integers(1))
    place = g("Min", place, g.integers(network.settings.horizon - 1))
    by_place = g("Gather", g.floats(array(network.place.weight)), place, axis=0)  # (l, H)
    cards = g("Transpose", g("Add", g("Gather", codes, lists, axis=0), by_place), perm=[1, 0, 2])
    starts = g("Expand", start, g("Concat", g.integers([1]), n_lists, g.integers([hidden]), axis=0))
    weights = gru_weights(array(network.above.weight_ih_l0), network.above, "_l0")
    states, _ = g.several(
        "GRU", cards, *(g.floats(part) for part in weights), "", starts,
        outputs=2, hidden_size=hidden, linear_before_reset=1,
    )  # fmt: skip
    above = g("MatMul", g("Squeeze", states, g.integers([1])), g.floats(head.by_above))  # (l, S, H)
    parts = g.split(g("MatMul", cards, g.floats(head.by_card)), [hidden] * (lookahead + 1), 2)
    terms = [above, g.floats(head.bias), parts[-1]]
    for distance, part in enumerate(parts[-2::-1], 1):  # a card as seen from `distance` places above
        ahead = g("Pad", part, g.integers([0, 0, 0, distance, 0, 0]))
        end = g("Add", length, g.integers([distance]))
        terms.append(g("Slice", ahead, g.integers([distance]), end, g.integers([0])))
    bases = g("Transpose", g("Gather", base, lists, axis=0), perm=[1, 0, 2])  # (l, S, 2)
    value, staying = _value(g, network, g.add(*terms), bases, g.floats(1.0))
    left = g("Exp", g("CumSum", g("Log", staying), g.integers(0), exclusive=1))  # a cumulative product
    g("ReduceSum", g("Mul", value, left), g.integers([0, 2]), name="value", keepdims=0)
    g.output("value", ["s"])
    return g.serialise("judge")
