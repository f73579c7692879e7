"""Graphs of ESAN and of the whole agent, which values cards with ESAN's layers."""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.edgerec.network import STRENGTH, EdgeRecNetwork
from edgerec_gym.agents.export.decisions import DecisionGraph, coded_events, sequential, split_layer
from edgerec_gym.agents.export.layers import array, base_logit_column, layer, linear
from edgerec_gym.agents.export.request_graphs import plain_input, request_code
from edgerec_gym.agents.insertion.esan import ESAN
from edgerec_gym.agents.lists.evaluator import CLICK, LEAVE
from edgerec_gym.agents.perception.attention import BehaviourAttention
from edgerec_gym.agents.perception.perception import SEQUENCES
from edgerec_gym.spaces import context_size

N_OUTCOMES = LEAVE + 1


def esan_graphs(network: ESAN, n_slots: int) -> dict[str, bytes]:
    """Graphs by name: an event of each sequence, and `matrix`.

    `matrix` reads the observation's `cards` and `goods` (T + below, F + T), the goods cards in the order in
    which they will be shown, zero beyond the end; see :func:`_matrix` for its outputs.

    Args:
        network: the ESAN.
        n_slots: T, slots that a plan looks ahead.
    """
    g = DecisionGraph(network.config)
    goods = g.once("goods", [n_slots + network.below, g.n_card])
    first = _rows(g, goods, 0, n_slots)
    coded = _encoded(g, network, g("Concat", g.cards, first, axis=0))
    mixed, organic = g.split(coded, [network.config.n_cards, n_slots], axis=0)
    _matrix(g, network, mixed, organic, goods, n_slots)
    return {**esan_events(network, windowed=True), "matrix": g.serialise("matrix")}


def esan_events(network: ESAN, windowed: bool) -> dict[str, bytes]:
    """Graphs of an event by sequence; without `windowed` the network remembers from the first event on."""
    if not network.settings.behaviour:
        return {}
    graphs = {}
    for name in SEQUENCES:
        encoder = network.perception.encoder(name)
        graphs[name] = coded_events([encoder], encoder.length if windowed else 1)
    return graphs


def edgerec_graphs(network: EdgeRecNetwork, n_slots: int) -> dict[str, bytes]:
    """Graphs by name: an event of each sequence, `order`, `matrix` and `gain`.

    `order` reads `cards`, `pool` and `interest` (1, d), the squashed live interest; it outputs `scores`
    (N, 1), and the codes `mixed` (M, 2 H) of the cards and `organic` (N, 2 H) of the pool. `matrix` reads
    these codes, `organic` of the first T goods only. `gain` reads `signals` (1, S) and outputs `gain` (1, 1).

    Args:
        network: the agent's network.
        n_slots: T, slots that a plan looks ahead.
    """
    esan, config = network.esan, network.config
    hidden, d = esan.settings.hidden, config.embedding_size
    unseen = () if network.page_views else ("page_views",)
    g = DecisionGraph(config, unseen)
    goods = g.goods(g.pool)
    coded = _encoded(g, esan, g("Concat", g.cards, goods, axis=0))
    mixed, organic = g.split(coded, [config.n_cards, config.pool_size], axis=0)
    live = g("Transpose", g.once("interest", [1, d]), perm=[1, 0])
    match = g("MatMul", g.embeddings(g.pool, config.n_item_features), live)  # (N, 1)
    inputs = g("Concat", g("Relu", organic), g.features(goods), match, axis=1)
    logit = base_logit_column(g, g.pool, d)
    weighted = g("Mul", match, g.floats(STRENGTH * array(network.match)))
    g.add(sequential(g, inputs, network.order), logit, weighted, name="scores")
    g("Identity", mixed, name="mixed")
    g("Identity", organic, name="organic")
    g.output("scores", [config.pool_size, 1])
    g.output("mixed", [config.n_cards, 2 * hidden])
    g.output("organic", [config.pool_size, 2 * hidden])
    order = g.serialise("order")

    g = DecisionGraph(config)
    mixed = g.once("mixed", [config.n_cards, 2 * hidden])
    organic = g.once("organic", [n_slots, 2 * hidden])
    goods = g.once("goods", [n_slots + esan.below, g.n_card])
    _matrix(g, esan, mixed, organic, goods, n_slots)
    matrix = g.serialise("matrix")

    g = DecisionGraph(config, unseen)
    head, (scale, shift) = network.request, array(network.effect)
    code = request_code(g, plain_input(g, head.mean, head.scale), head.attention, 2 * hidden)
    bent = linear(g, g("Relu", layer(g, code, head.hidden)), array(head.out.weight).T)
    gain = g("Add", layer(g, code, head.linear), bent)
    g("Add", g("Mul", gain, g.floats(scale)), g.floats(shift), name="gain")
    g.output("gain", [1, 1])
    return {
        **{name: graph for name, graph in esan_events(esan, windowed=False).items() if name not in unseen},
        "order": order,
        "matrix": matrix,
        "gain": g.serialise("gain"),
    }


def _rows(g: DecisionGraph, x: str, start: int, count: int) -> str:
    """Rows start .. start + count - 1 of x."""
    return g("Slice", x, g.integers([start]), g.integers([start + count]), g.integers([0]))


def _encoded(g: DecisionGraph, network: ESAN, cards: str) -> str:
    """Codes (n, 2 H) of cards (n, F + T), as :meth:`ESAN.encode`."""
    config, hidden = network.config, network.settings.hidden
    features = g.features(cards)
    sizes = [g.n_card]
    found = [features]
    if network.settings.behaviour:
        for name in SEQUENCES:
            part = network.attention[name]
            assert isinstance(part, BehaviourAttention)
            found.append(g.behaviour(part, name, features, hidden))
            sizes.append(part.size)
    assert network.session.in_features == config.n_user_features + context_size(config)
    *of_cards, of_session = split_layer(array(network.card.weight), *sizes, hidden)
    session = g("Relu", layer(g, g.session, network.session))
    bias = linear(g, session, of_session, array(network.card.bias))  # (1, 2 H)
    return g.add(*(linear(g, x, weight) for x, weight in zip(found, of_cards, strict=True)), bias)


def _matrix(g: DecisionGraph, network: ESAN, mixed: str, organic: str, goods: str, n_slots: int) -> None:
    """Add what :meth:`ESAN.predict_coded` predicts.

    Outputs: `of_cards` (M, T, 4), probabilities of the outcomes of each card at each slot, and `of_goods`
    (T, 4); rows without a card or goods are to be ignored.

    Args:
        g: the graph.
        network: the ESAN.
        mixed: (M, 2 H) codes of the cards.
        organic: (T, 2 H) codes of the first goods.
        goods: (T + below, F + T).
        n_slots: T.
    """
    s, n_cards = network.settings, network.config.n_cards
    cards, d, width = g.cards, g.d, 2 * s.hidden
    place = array(network.place.weight)[np.minimum(np.arange(n_slots), s.horizon - 1)]
    of_goods, of_cards = g("Add", organic, g.floats(place)), g("Unsqueeze", mixed, g.integers([1]))
    first = _rows(g, goods, 0, n_slots)
    if s.surroundings:
        stream = _stream(g, network, goods)
        codes = g("Mul", g("Relu", layer(g, g.features(stream), network.neighbour)), g.present(stream))
        shown = g.embeddings(stream, g.n_card)
        own = g.embeddings(first, g.n_card)  # (T, d)
        other = g.embeddings(cards, g.n_card)  # (M, d)
        above, below = s.window, network.below
        weights = split_layer(array(network.around.weight), *[s.hidden] * (above + below))
        likeness = array(network.likeness.weight).T  # (W, 2 H)
        beside = [*range(above), *range(above + 1, above + 1 + below)]
        between = range(above + below)
        bias = array(network.around.bias)
        terms = []
        for k, (start, weight) in enumerate(zip(beside, weights, strict=True)):
            terms.append(linear(g, _rows(g, codes, start, n_slots), weight))
            product = g("Mul", _rows(g, shown, start, n_slots), own)
            alike = g("ReduceSum", product, g.integers([1]), keepdims=1)  # (T, 1)
            terms.append(g("Mul", alike, g.floats(likeness[k][None])))
        of_goods = g.add(of_goods, *terms, g.floats(bias))
        around, terms = [], []
        for k, (start, weight) in enumerate(zip(between, weights, strict=True)):
            around.append(linear(g, _rows(g, codes, start, n_slots), weight))  # (T, 2 H)
            alike = g("MatMul", other, g("Transpose", _rows(g, shown, start, n_slots), perm=[1, 0]))  # (M, T)
            terms.append(g("Mul", g("Unsqueeze", alike, g.integers([2])), g.floats(likeness[k])))
        of_cards = g.add(of_cards, g.add(*around, g.floats(place + bias)), *terms)
    else:
        of_cards = g("Add", of_cards, g.floats(place))
    of_cards = g("Reshape", of_cards, g.integers([n_cards * n_slots, width]))
    base = base_logit_column(g, cards, d)  # (M, 1)
    repeated = g("MatMul", base, g.floats(np.ones((1, n_slots), np.float32)))
    base = g("Reshape", repeated, g.integers([n_cards * n_slots, 1]))
    found = _probabilities(g, network, of_cards, base)
    g("Reshape", found, g.integers([n_cards, n_slots, N_OUTCOMES]), name="of_cards")
    found = _probabilities(g, network, of_goods, base_logit_column(g, first, d))
    g("Identity", found, name="of_goods")
    g.output("of_cards", [n_cards, n_slots, N_OUTCOMES])
    g.output("of_goods", [n_slots, N_OUTCOMES])


def _stream(g: DecisionGraph, network: ESAN, goods: str) -> str:
    """The cards above the list, then the list; slot t of the list is at `window` + t."""
    config, above = network.config, network.settings.window
    parts = [goods]
    if config.lookahead:
        seen = min(above, config.lookahead)
        parts.insert(0, _rows(g, g.screen, config.lookahead - seen, seen))
    if above > config.lookahead:
        parts.insert(0, g.floats(np.zeros((above - config.lookahead, g.n_card), np.float32)))
    return g("Concat", *parts, axis=0) if len(parts) > 1 else goods


def _probabilities(g: DecisionGraph, network: ESAN, inner: str, base: str) -> str:
    """Calibrated probabilities (n, 4) of rows (n, 2 H) before the head, with logits `base` (n, 1)."""
    scale, shift = array(network.scale), array(network.shift)
    residual = np.zeros((1, N_OUTCOMES), np.float32)
    residual[0, CLICK] = 1
    logits = g("Add", sequential(g, inner, network.head), g("MatMul", base, g.floats(residual)))
    p = g("Sigmoid", g("Add", g("Mul", logits, g.floats(scale)), g.floats(shift)))
    click, after, leave = g.split(p, [1, LEAVE - 1, 1])
    joint = g("Concat", click, g("Mul", click, after), leave, axis=1)
    return g("Mul", joint, g.floats(np.array(network.identified, np.float32)))
