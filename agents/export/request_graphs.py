"""Graphs of what a request gains: uplift estimators and DQN."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgerec_gym.agents.export.decisions import DecisionGraph, coded_events, sequential
from edgerec_gym.agents.export.layers import array, layer, linear
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.intent_change import SIGNALS
from edgerec_gym.agents.perception.perception import SEQUENCES
from edgerec_gym.agents.requests.feed_encoder import FeedEncoder
from edgerec_gym.agents.requests.uplift_models import (
    ClassTransformation,
    DragonNet,
    Regressor,
    TLearner,
    UpliftModel,
    XLearner,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.onnx_graph import OnnxGraph


def uplift_graphs(network: UpliftModel, config: FeedConfig) -> dict[str, bytes]:
    """Graphs by name: an event of each sequence if behaviour is read, and `gain`.

    `gain` reads `signals` (1, S), the signals of a changed intent; it outputs `gain` (1, 1), the estimated
    effect of a request.
    """
    encoders = _encoders(network)
    g = DecisionGraph(config)
    g.output(_effect(g, network, [_feed_code(g, encoders, k) for k in range(len(encoders))]), [1, 1])
    graphs = {}
    if encoders[0].perception is not None:
        for name in SEQUENCES:
            own = [e.perception.encoder(name) for e in encoders if e.perception is not None]
            graphs[name] = coded_events(own, own[0].length)
    return {**graphs, "gain": g.serialise("gain")}


def dqn_graphs(q_net: nn.Module) -> dict[str, bytes]:
    """The graph `gain`: from `state` (1, S), the state vector, to the value of a request beyond keeping."""
    layers = list(q_net.children())
    first, last = layers[0], layers[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    g = OnnxGraph()
    x = sequential(g, g.input("state", [1, first.in_features]), nn.Sequential(*layers[:-1]))
    weight, bias = array(last.weight), array(last.bias)
    linear(g, x, (weight[1:] - weight[:1]).T, bias[1:] - bias[:1], name="gain")
    g.output("gain", [1, 1])
    return {"gain": g.serialise("gain")}


def plain_input(g: DecisionGraph, mean: Tensor, scale: Tensor) -> str:
    """Standardised signals, user and context, (1, n)."""
    plain = g("Concat", g.once("signals", [1, len(SIGNALS)]), g.user, g.context, axis=1)
    return g("Div", g("Sub", plain, g.floats(array(mean)[None])), g.floats(array(scale)[None]))


def request_code(
    g: DecisionGraph, plain: str, attention: nn.ModuleDict, width: int, offset: int = 0, total: int = 0
) -> str:
    """Code of a request's moment (1, .): what is `plain`, and what it finds in behaviour.

    Args:
        g: the graph.
        plain: (1, n), the query.
        attention: by sequence; may be empty.
        width: of the codes of an event, half of it the card's.
        offset: of these in all codes of the event.
        total: width of all codes; 0 = these alone.
    """
    parts = [plain]
    for name in attention:
        part = attention[name]
        assert isinstance(part, AdditiveAttention)
        codes, present = g.history(name, total or width)
        if total:
            codes = g.split(codes, [width] * (total // width))[offset // width]
        items = g.split(codes, [width // 2, width // 2])[0]
        weights = g.additive(part, plain, items, present)
        parts.append(g("MatMul", weights, codes))
    return g("Concat", *parts, axis=1) if len(parts) > 1 else plain


def _encoders(network: UpliftModel) -> list[FeedEncoder]:
    """The encoders that the effect needs."""
    found: list[nn.Module]
    if isinstance(network, TLearner):
        found = [network.without.encoder, network.treated.encoder]
    elif isinstance(network, XLearner):
        found = [network.effects.encoder]
    elif isinstance(network, ClassTransformation):
        found = [network.effect.encoder]
    else:
        found = [network.encoder]
    encoders = [encoder for encoder in found if isinstance(encoder, FeedEncoder)]
    assert len(encoders) == len(found)
    return encoders


def _feed_code(g: DecisionGraph, encoders: list[FeedEncoder], k: int) -> str:
    encoder = encoders[k]
    plain = plain_input(g, encoder.mean, encoder.scale)
    if encoder.perception is None:
        return plain
    width = encoder.perception.encoder(SEQUENCES[0]).value_size
    return request_code(g, plain, encoder.attention, width, k * width, len(encoders) * width)


def _regressed(g: DecisionGraph, code: str, regressor: Regressor) -> str:
    """(1, outputs)."""
    bent = g("Relu", layer(g, code, regressor.hidden))
    return g("Add", layer(g, code, regressor.linear), linear(g, bent, array(regressor.out.weight).T))


def _effect(g: DecisionGraph, network: UpliftModel, codes: list[str]) -> str:
    if isinstance(network, TLearner):
        without, treated = (
            _regressed(g, code, part)
            for code, part in zip(codes, (network.without, network.treated), strict=True)
        )
        return g("Sub", treated, without, name="gain")
    if isinstance(network, XLearner):
        both = g.split(_regressed(g, codes[0], network.effects), [1, 1])
        share: Any = network.share
        weighted = [g("Mul", part, g.floats(w)) for part, w in zip(both, (share, 1 - share), strict=True)]
        return g("Add", *weighted, name="gain")
    if isinstance(network, ClassTransformation):
        return g("Identity", _regressed(g, codes[0], network.effect), name="gain")
    assert isinstance(network, DragonNet)
    code = g("Concat", g("Relu", layer(g, codes[0], network.trunk)), codes[0], axis=1)
    without, treated = (sequential(g, code, part) for part in (network.without, network.treated))
    return g("Sub", treated, without, name="gain")
