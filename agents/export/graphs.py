"""The re-rankers' graphs: CRBAN scores candidates; the generator encodes them and decodes lists by steps.

Inputs: `candidates` (n, F), the pool rows that are left; `user` (1, U); `context` (1, C); for each sequence
`<name>.keys` and `<name>.values` (events, .), the codes that were kept, in any order (attention does not
depend on it), or one row of zeros. See :mod:`edgerec_gym.agents.export.layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from torch import nn

from edgerec_gym.agents.export.layers import (
    affine,
    array,
    attend,
    base_logit_column,
    candidate_weight,
    events,
    gru_step,
    layer,
    linear,
    matched,
    stacked_gru,
)
from edgerec_gym.agents.lists.pointer_net import PRIOR, PointerNet
from edgerec_gym.agents.perception.attention import AdditiveAttention, SelfAttentionBlock
from edgerec_gym.agents.perception.perception import Perception
from edgerec_gym.agents.rerank.crban import CRBAN
from edgerec_gym.config import FeedConfig
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.spaces import context_size


class ListGraph(OnnxGraph):
    """A graph with the inputs of a re-ranker.

    Args:
        config: gives the sizes.

    Attributes:
        candidates: (n, F) pool rows that are left.
        base: (n, 1) logit of the candidates' base ctr.
        cards: (n, F + 1) candidates and that logit.
        session: (1, U + C).
    """

    def __init__(self, config: FeedConfig) -> None:
        super().__init__()
        self.config = config
        candidates = self.input("candidates", ["n", config.n_item_features])
        self.candidates, self.base = candidates, base_logit_column(self, candidates, config.embedding_size)
        self.cards = self("Concat", candidates, self.base, axis=1)
        user = self.input("user", [1, config.n_user_features])
        context = self.input("context", [1, context_size(config)])
        self.session = self("Concat", user, context, axis=1)

    def of_cards(self, weight: np.ndarray, bias: np.ndarray) -> str:
        """Apply a layer with weights (outputs, F + T) to the candidates' features: (n, outputs)."""
        raw, goods = candidate_weight(weight, self.config.embedding_size, self.config.n_item_features)
        return linear(self, self.cards, raw, bias + goods)

    def behind(self, first: nn.Linear) -> Callable[[np.ndarray, np.ndarray], str]:
        """Merge a layer with the linear one before it, which reads the candidates' features."""
        inner, shift = affine(first)
        return lambda weight, bias: self.of_cards(weight @ inner, weight @ shift + bias)

    def behaviour(
        self,
        perception: Perception,
        attention: nn.ModuleDict,
        query: Callable[[np.ndarray, np.ndarray], str],
        width: int,
    ) -> list[str]:
        """What the candidates attend to in each sequence: (n, V).

        Args:
            perception: names the sequences.
            attention: modules by sequence.
            query: applies a query layer, weight (A, .) and bias (A,), to the candidates.
            width: V, outputs of the layer after attention, which the kept values have passed.
        """
        found = []
        for name in perception.sequences:
            part = attention[name]
            assert isinstance(part, AdditiveAttention)
            keys = self.input(f"{name}.keys", [f"{name}.events", part.key.out_features])
            values = self.input(f"{name}.values", [f"{name}.events", width])
            found.append(attend(self, query(*affine(part.query)), keys, values, array(part.score.weight)))
        return found


def columns(weight: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Split the weight of a layer (outputs, inputs) into columns of the given sizes."""
    ends = np.cumsum([0, *sizes])
    return [weight[:, a:b] for a, b in pairwise(ends)]


def crban_graphs(network: CRBAN) -> dict[str, bytes]:
    """Build graphs by name: an event of each sequence, and `scores` -> (n, 1)."""
    config, hidden = network.config, network.settings.hidden
    first, last = network.head[0], network.head[2]
    assert isinstance(first, nn.Linear)
    names = network.perception.sequences
    widths = [network.perception.encoder(name).value_size for name in names]
    n_card = config.n_item_features + config.n_types
    n_session = config.n_user_features + context_size(config)
    raw = [n_card, n_session] if network.inputs is not None else []
    parts = columns(array(first.weight), *widths, hidden, hidden, *raw, network.match.size)
    values = dict(zip(names, parts, strict=False))
    of_code, of_final, *of_raw, of_match = parts[len(names) :]

    g = ListGraph(config)
    gru = network.candidates.gru
    weight_ih, goods = candidate_weight(
        array(gru.weight_ih_l0), config.embedding_size, config.n_item_features
    )
    steps = g("Unsqueeze", g.cards, g.integers([1]))
    codes, last_code = stacked_gru(g, steps, gru, weight_ih.T, goods)
    code = g("Squeeze", codes, g.integers([1]))  # (n, H)
    terms = g.behaviour(
        network.perception, network.attention, lambda weight, bias: linear(g, code, weight.T, bias), hidden
    )
    terms.append(linear(g, code, of_code.T, array(first.bias)))
    terms.append(linear(g, g("Squeeze", last_code, g.integers([0])), of_final.T))
    if of_raw:
        terms.append(g.of_cards(of_raw[0], np.zeros(hidden, np.float32)))
        terms.append(linear(g, g.session, of_raw[1].T))
    if network.match:
        terms.append(linear(g, matched(g, g.candidates, network.match), of_match.T))
    score = layer(g, g("Relu", g.add(*terms)), last)
    g("Add", score, g("Mul", g.base, g.floats(network.settings.residual)), name="scores")
    g.output("scores", ["n", 1])
    behaviour = events(network.perception, network.attention, values, network.match)
    return {**behaviour, "scores": g.serialise("scores")}


def generator_graphs(network: PointerNet, noise: np.ndarray) -> dict[str, bytes]:
    """Build graphs by name: an event of each sequence, `encode` and `step`.

    :mod:`edgerec_gym.device.list_decoder` runs them. `encode` outputs the candidates' `codes`, `glimpse` and
    `pointer` (n, H), the codes and the keys of the two attentions; `prior` (1, n), added to every place's
    logits; `start` and `first` (1, H), the decoder's state and the card that it has read before the first
    place. If lists are sampled, it also reads `rows` (n,) int64, the pool rows of the candidates, and outputs
    `noise` (K, S, n).

    Args:
        network: the generator.
        noise: (S, K, N) float32 added to the logits of each list, place and pool row: zero for the greedy
            list, Gumbel noise for the sampled ones.
    """
    config, hidden = network.config, network.settings.hidden
    n_card = config.n_item_features + config.n_types
    n_session = config.n_user_features + context_size(config)
    weight = array(network.project.weight)
    sizes = (n_card, n_session, 2 * hidden, 2 * hidden, network.match.size)
    of_cards, of_session, *of_values, of_match = columns(weight, *sizes)
    values = dict(zip(network.perception.sequences, of_values, strict=True))

    g = ListGraph(config)
    terms = g.behaviour(network.perception, network.attention, g.behind(network.query), hidden)
    terms.append(g.of_cards(of_cards, array(network.project.bias)))
    if network.match:
        terms.append(linear(g, matched(g, g.candidates, network.match), of_match.T))
    codes = g.add(*terms, linear(g, g.session, of_session.T))
    for block in network.blocks:
        assert isinstance(block, SelfAttentionBlock)
        codes = self_attention(g, block, codes)
    codes = g("Identity", codes, name="codes")
    linear(g, codes, array(network.glimpse.key.weight).T, name="glimpse")
    linear(g, codes, array(network.pointer.key.weight).T, name="pointer")
    weight_of_prior = array(network.sharpness) * PRIOR * network.settings.residual
    g("Mul", g("Transpose", g.base), g.floats(weight_of_prior), name="prior")
    mean = g("ReduceMean", codes, g.integers([0]))
    start = g("Tanh", layer(g, mean, network.start), name="start")
    g("Add", g("Mul", start, g.floats(0.0)), g.floats(array(network.first)[None]), name="first")
    for name in ("codes", "glimpse", "pointer"):
        g.output(name, ["n", hidden])
    g.output("prior", [1, "n"])
    for name in ("start", "first"):
        g.output(name, [1, hidden])
    if noise.any():
        rows = g.input("rows", ["n"], np.int64)
        g("Gather", g.floats(noise.transpose(1, 0, 2)), rows, name="noise", axis=2)
        g.output("noise", [noise.shape[1], noise.shape[0], "n"])
    behaviour = events(network.perception, network.attention, values, network.match)
    return {**behaviour, "encode": g.serialise("encode"), "step": _step_graph(network)}


def self_attention(g: OnnxGraph, block: SelfAttentionBlock, x: str) -> str:
    """One block over x (n, H): (n, H)."""
    attention = block.attention
    heads, size = attention.num_heads, attention.head_dim
    weight, bias = array(attention.in_proj_weight), array(attention.in_proj_bias)
    scale = np.repeat(np.array([size**-0.5, 1, 1], np.float32), heads * size)  # scales the queries
    split = g.split(linear(g, x, (weight * scale[:, None]).T, bias * scale), [heads * size] * 3)
    shape = g.integers([-1, heads, size])
    query, key, value = (
        g("Transpose", g("Reshape", part, shape), perm=perm)
        for part, perm in zip(split, ([1, 0, 2], [1, 2, 0], [1, 0, 2]), strict=True)
    )
    attended = g("MatMul", g("Softmax", g("MatMul", query, key), axis=-1), value)  # (heads, n, size)
    joined = g("Reshape", g("Transpose", attended, perm=[1, 0, 2]), g.integers([-1, heads * size]))
    out = attention.out_proj
    x = g("Add", x, layer(g, joined, out))
    x = _normalised(g, block.after_attention, x)
    inner, outer = block.feed_forward[0], block.feed_forward[2]
    bent = g("Relu", layer(g, x, inner))
    x = g("Add", x, layer(g, bent, outer))
    return _normalised(g, block.after_feed_forward, x)


def _normalised(g: OnnxGraph, norm: nn.LayerNorm, x: str) -> str:
    return g("LayerNormalization", x, *map(g.floats, affine(norm)), epsilon=norm.eps)


def _step_graph(network: PointerNet) -> bytes:
    """Build the graph that weighs the cards for the next place of S lists.

    Inputs: `codes`, `glimpse` and `pointer` (n, H) as encoded; `state` (S, H) of the decoder; `read` (S, H),
    the codes of the cards before; `taken` (S, n), a large negative number at cards that a list has; `added`
    (S, n), what else is added to the logits. Outputs: `new_state` (S, H) and `logits` (S, n).
    """
    hidden, sharpness = network.settings.hidden, array(network.sharpness)
    g = OnnxGraph()
    codes, glimpsed, pointed = (g.input(name, ["n", hidden]) for name in ("codes", "glimpse", "pointer"))
    state, read = g.input("state", ["s", hidden]), g.input("read", ["s", hidden])
    taken, added = g.input("taken", ["s", "n"]), g.input("added", ["s", "n"])
    weight, bias = array(network.decoder.weight_ih), array(network.decoder.bias_ih)
    state = gru_step(g, linear(g, read, weight.T, bias), state, network.decoder, name="new_state")
    glimpse, pointer = network.glimpse.query, network.pointer.query
    of_state, of_seen = columns(array(pointer.weight), hidden, hidden)
    both = linear(
        g,
        state,
        np.hstack([array(glimpse.weight).T, of_state.T]),
        np.concatenate([array(glimpse.bias), array(pointer.bias)]),
    )
    query, query_of_state = g.split(both, [hidden, hidden])
    logits = g("Add", compared(g, query, glimpsed, array(network.glimpse.score.weight)), taken)
    seen = g("MatMul", g("Softmax", logits, axis=1), codes)
    query = g("Add", query_of_state, linear(g, seen, of_seen.T))
    logits = compared(g, query, pointed, sharpness * array(network.pointer.score.weight))
    g.add(logits, taken, added, name="logits")
    g.output("new_state", ["s", hidden])
    g.output("logits", ["s", "n"])
    return g.serialise("step")


def compared(g: OnnxGraph, query: str, keys: str, score: np.ndarray) -> str:
    """Attention logits score . tanh(query + key): queries (S, H), keys (n, H); (S, n)."""
    both = g("Tanh", g("Add", g("Unsqueeze", query, g.integers([1])), keys))
    return g("Squeeze", g("MatMul", both, g.floats(score.reshape(-1, 1))), g.integers([2]))
