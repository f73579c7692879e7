"""Graphs of policies trained by MaskablePPO: the logits of all actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from edgerec_gym.agents.export.decisions import DecisionGraph, coded_events, joined, sequential
from edgerec_gym.agents.export.layers import array, layer, linear
from edgerec_gym.agents.perception.perception import SEQUENCES, RowEncoder, SequenceEncoder, action_columns
from edgerec_gym.agents.ppo.pointer_policy import (
    ABSENT,
    CARD_BIAS,
    MATCH_SCALE,
    REQUEST_BIAS,
    BehaviourReader,
    PointerNetwork,
    Scorer,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.spaces import CONTEXT


def flat_graphs(policy: Any, n_inputs: int) -> dict[str, bytes]:
    """The graph `logits` of a plain network: `flat` (1, I), all keys side by side -> `logits` (1, A)."""
    g = OnnxGraph()
    x = sequential(g, g.input("flat", [1, n_inputs]), policy.mlp_extractor.policy_net)
    weight, bias = array(policy.action_net.weight), array(policy.action_net.bias)
    linear(g, x, weight.T, bias, name="logits")
    g.output("logits", [1, len(bias)])
    return {"logits": g.serialise("logits")}


def pointer_graphs(network: PointerNetwork, config: FeedConfig) -> dict[str, bytes]:
    """Graphs by name: an event of each sequence, unless histories are read row by row, and `logits` (1, A).

    `logits` reads the rows of the histories, too: `<sequence>.rows` (L, W), the oldest first, then zeros.
    """
    built = _Pointer(network, config)
    built.finish()
    graphs = {}
    for name in SEQUENCES:
        encoder = network.encoders[name]
        if isinstance(encoder, SequenceEncoder):
            graphs[name] = coded_events([encoder], encoder.length)
    return {**graphs, "logits": built.g.serialise("logits")}


class _Pointer:
    """Builds the graph of :class:`PointerNetwork`, whose methods these follow."""

    def __init__(self, network: PointerNetwork, config: FeedConfig) -> None:
        self.network, self.config, self.g = network, config, DecisionGraph(config)
        g = self.g
        self.d, self.n_scalars = g.d, config.n_item_features - g.d
        self.slot = g("Slice", g.context, g.integers([0]), g.integers([1]), g.integers([1]))  # (1, 1)
        user = g.split(g.user, [self.d, config.n_user_features - self.d])
        self.parts, self.queries = [user[1]], []
        self.sequences: dict[str, tuple[str, str, str, str]] = {}  # rows, item codes, descriptions, present
        for name in SEQUENCES:
            self._read(name)
        self.queries.append(user[0])
        if config.lookahead:
            self.queries.append(g.embeddings(g.screen, g.n_card))
            described = g.split(g.features(g.screen), [self.d, g.n_card - self.d])[1]
            size = config.lookahead * (g.n_card - self.d)
            self.parts.append(g("Reshape", described, g.integers([1, size])))
        vectors = g("Mul", g("Concat", *self.queries, axis=0), g.floats(array(network.query_scale)))
        self.vectors = g("Transpose", vectors, perm=[1, 0])  # (d, matches)

    def _read(self, name: str) -> None:
        """Read one history: interest vectors, and parts of the state."""
        g, config = self.g, self.config
        reader, encoder = self.network.readers[name], self.network.encoders[name]
        assert isinstance(reader, BehaviourReader)
        length = g.length(name)
        n_actions = action_columns(config)[name] - 1
        rows = g.once(f"{name}.rows", [length, g.n_card + n_actions + 1])
        card, actions, at = g.split(rows, [g.n_card, n_actions, 1])
        features = g.features(card)
        if isinstance(encoder, SequenceEncoder):
            hidden = encoder.hidden
            codes, present = g.history(name, encoder.value_size)
            items = g.split(codes, [hidden, hidden])[0]
        else:
            assert isinstance(encoder, RowEncoder)
            present = g("Squeeze", g.present(rows), g.integers([1]))
            items = g("Tanh", layer(g, features, encoder.cards))
            both = g("Concat", actions, at, axis=1)
            codes = g("Concat", items, g("Tanh", layer(g, both, encoder.actions)), axis=1)
        there = g.column(present)
        age = g("Sub", self.slot, at)  # (L, 1)
        recent = g("Exp", g("Mul", age, g.floats(-10.0)))
        scalars = g.split(features, [self.d, g.n_card - self.d])[1]
        inputs = g("Concat", scalars, actions, age, recent, codes, axis=1)
        described = g("Mul", sequential(g, inputs, reader.rows), there)
        weights = g("Add", layer(g, actions, reader.evidence), layer(g, described, reader.weights))
        decay = g("Exp", g("Mul", age, g.floats(-np.exp(array(reader.decay))[None])))
        weighted = g("Transpose", g("Mul", weights, decay), perm=[1, 0])
        interests = g("MatMul", weighted, g.embeddings(card, g.n_card))  # (heads, d)
        square = g("ReduceSum", g("Mul", interests, interests), g.integers([1]), keepdims=1)
        length_of = g("Sqrt", g("Add", square, g.floats(1e-6)))
        scaled = g("Mul", interests, g.floats(MATCH_SCALE))
        self.queries.append(g("Div", scaled, g("Add", length_of, g.floats(1.0))))
        total = g("ReduceSum", described, g.integers([0]), keepdims=1)
        self.parts.append(g("Mul", total, g.floats(1 / length)))
        self.parts.append(self._newest(codes, present, length))
        self.sequences[name] = (card, items, described, present)

    def _newest(self, codes: str, present: str, length: int) -> str:
        """Codes (1, C) of the last event; of the first row if there is none."""
        g = self.g
        ends = g.integers([1]), g.integers([length]), g.integers([0])
        after = g("Concat", g("Slice", present, *ends), g.floats([0.0]), axis=0)
        return self._row(codes, g("Unsqueeze", g("Sub", present, after), g.integers([0])), length)

    def _row(self, rows: str, chosen: str, count: int) -> str:
        """The row (1, .) of rows (count, .) where `chosen` (1, count) is 1; the first if it is so nowhere."""
        g, first = self.g, np.zeros((1, count), np.float32)
        first[0, 0] = 1
        none = g("Sub", g.floats([[1.0]]), g("ReduceSum", chosen, g.integers([1]), keepdims=1))
        return g("MatMul", g("Add", chosen, g("Mul", none, g.floats(first))), rows)

    def _candidates(self, cards: str) -> tuple[str, str]:
        """Features of candidates (n, F + T), and the card features that they are made from."""
        g = self.g
        features = g.features(cards)
        found = [g("MatMul", g.embeddings(cards, g.n_card), self.vectors)]
        found.append(g.split(features, [self.d, self.n_scalars, self.config.n_types])[1])
        for name, (card, items, described, present) in self.sequences.items():
            reader = self.network.readers[name]
            assert isinstance(reader, BehaviourReader)
            shown = g("Transpose", g.embeddings(card, g.n_card), perm=[1, 0])
            alike = g("MatMul", g.embeddings(features, g.n_card), shown)
            part = reader.attention
            scale = part.scale
            query = linear(g, features, array(part.query.weight).T * scale, array(part.query.bias) * scale)
            key = g("Transpose", linear(g, items, array(part.key.weight).T), perm=[1, 0])
            bias = g("Mul", alike, g.floats(array(reader.sharpness)))
            logits = g("Add", g("MatMul", query, key), bias)
            found.append(g("MatMul", g.attention_weights(logits, present), described))
        return g("Concat", *found, axis=1), features

    def _summary(self, pool: str, present: str) -> list[str]:
        """Mean and maximum over the pool, and the row that keep would place; (1, features) each."""
        g = self.g
        count = g("ReduceSum", present, g.integers([0]), keepdims=1)
        total = g("ReduceSum", g("Mul", pool, present), g.integers([0]), keepdims=1)
        least = g("Add", g("Relu", g("Sub", count, g.floats(1.0))), g.floats(1.0))  # at least 1
        mean = g("Div", total, least)
        low = g("Mul", g("Sub", present, g.floats(1.0)), g.floats(10.0))  # -10 where there is none
        best = g("ReduceMax", g("Add", g("Mul", pool, present), low), g.integers([0]), keepdims=1)
        before = g("CumSum", present, g.integers(0), exclusive=1)
        first = g("Mul", present, g("Sub", g.floats(1.0), g("Sign", before)))
        row = g("Transpose", first, perm=[1, 0])
        return [mean, best, self._row(pool, row, self.config.pool_size)]

    def _scored(self, scorer: nn.Module, candidates: str, hidden: str) -> str:
        """Scores (n, 1)."""
        g = self.g
        assert isinstance(scorer, Scorer)
        of_state = linear(g, hidden, array(scorer.state.weight).T, array(scorer.candidate.bias))
        inner = linear(g, candidates, array(scorer.candidate.weight).T)
        bent = g("Relu", g("Add", inner, of_state))
        return g("Add", layer(g, candidates, scorer.linear), linear(g, bent, array(scorer.out.weight).T))

    def finish(self) -> None:
        """Add the output."""
        g, network = self.g, self.network
        pool, _ = self._candidates(g.goods(g.pool))
        present = g.present(g.pool)
        state = g("Concat", g.context, *self.parts, *self._summary(pool, present), axis=1)
        hidden = sequential(g, state, network.policy_state)
        logits = []
        if network.track in ("joint", "rerank"):
            score = self._scored(network.pool_scorer, pool, hidden)
            absent = g("Mul", g("Sub", g.floats(1.0), present), g.floats(ABSENT))
            score = g("Add", g("Mul", score, present), absent)
            score = g("Transpose", score, perm=[1, 0])
            score = g("Sub", score, g("ReduceMax", score, g.integers([1])))
            total = g("ReduceSum", g("Exp", score), g.integers([1]), keepdims=1)
            logits.append(g("Sub", score, g("Log", total)))  # log-softmax
        else:
            logits.append(g("Mul", self.slot, g.floats(0.0)))
        if network.track in ("joint", "mix"):
            cards, _ = self._candidates(g.cards)
            cards = g("Concat", cards, self._card_types(), axis=1)
            score = g("Add", self._scored(network.card_scorer, cards, hidden), g.floats(CARD_BIAS))
            logits.append(g("Transpose", score, perm=[1, 0]))
        if network.track in ("joint", "request"):
            score = layer(g, hidden, network.request_scorer)
            logits.append(g("Add", score, g.floats(REQUEST_BIAS)))
        joined(g, logits, 1, "logits")
        g.output("logits", [1, sum(network.group_sizes)])

    def _card_types(self) -> str:
        """One-hot type, its share so far, and slots since its last card: (M, T + 2)."""
        g, n_types = self.g, self.config.n_types
        types = g.split(g.cards, [g.n_card - n_types, n_types])[1]
        mixed = g.split(types, [1, n_types - 1])[1]
        told = g.split(g.context, [len(CONTEXT), 2 * (n_types - 1)])[1]
        per_type = g("Reshape", told, g.integers([2, n_types - 1]))
        return g("Concat", types, g("MatMul", mixed, g("Transpose", per_type, perm=[1, 0])), axis=1)
