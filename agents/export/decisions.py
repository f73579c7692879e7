"""Graphs of a decision over fixed sizes: what is on offer, what has happened, and attention to it.

Inputs are named after the observation: `user` (1, U), `context` (1, C), `pool` (N, F), `cards` (M, F + T),
`screen` (lookahead, F + T). What has happened comes as `<sequence>.codes` (L, C) and `<sequence>.present`
(L,), the oldest event first (:class:`~edgerec_gym.device.codes.EventCodes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from edgerec_gym.agents.export.graphs import columns
from edgerec_gym.agents.export.layers import (
    affine,
    array,
    base_logit_column,
    card_weight,
    gru_step,
    layer,
    linear,
)
from edgerec_gym.agents.perception.attention import AdditiveAttention, BehaviourAttention
from edgerec_gym.agents.perception.cards import LOGIT_SCALE
from edgerec_gym.agents.perception.perception import SequenceEncoder
from edgerec_gym.config import FeedConfig
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.spaces import context_size

ABSENT = 1e9  # taken from the logit of an event that has not happened


def sequential(g: OnnxGraph, x: str, modules: nn.Module, name: str | None = None) -> str:
    """Apply linear layers and activations to rows x."""
    kinds = {nn.ReLU: "Relu", nn.Tanh: "Tanh"}
    steps = list(modules.children())
    for k, module in enumerate(steps):
        last = name if k == len(steps) - 1 else None
        if isinstance(module, nn.Linear):
            weight, bias = affine(module)
            x = linear(g, x, weight.T, bias, name=last)
        else:
            x = g(kinds[type(module)], x, name=last)
    return x


def joined(g: OnnxGraph, parts: Sequence[str], axis: int, name: str) -> str:
    """Concatenate one or more values."""
    if len(parts) == 1:
        return g("Identity", *parts, name=name)
    return g("Concat", *parts, name=name, axis=axis)


class DecisionGraph(OnnxGraph):
    """A graph that reads one session's observation and the codes of its events.

    Args:
        config: gives the sizes.
        hidden: sequences that read as if nothing had happened.
    """

    def __init__(self, config: FeedConfig, hidden: Sequence[str] = ()) -> None:
        super().__init__()
        self.hidden = hidden
        self.config, self.d = config, config.embedding_size
        self.n_card = config.n_item_features + config.n_types
        self._read: dict[str, str] = {}

    def once(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare an input, unless it is there already."""
        if name not in self._read:
            self._read[name] = self.input(name, list(shape))
        return self._read[name]

    @property
    def user(self) -> str:
        """(1, U)."""
        return self.once("user", [1, self.config.n_user_features])

    @property
    def context(self) -> str:
        """(1, C)."""
        return self.once("context", [1, context_size(self.config)])

    @property
    def session(self) -> str:
        """(1, U + C)."""
        return self("Concat", self.user, self.context, axis=1)

    @property
    def cards(self) -> str:
        """(M, F + T)."""
        return self.once("cards", [self.config.n_cards, self.n_card])

    @property
    def pool(self) -> str:
        """(N, F)."""
        return self.once("pool", [self.config.pool_size, self.config.n_item_features])

    @property
    def screen(self) -> str:
        """(lookahead, F + T); the feed must have a lookahead."""
        return self.once("screen", [self.config.lookahead, self.n_card])

    def history(self, name: str, width: int) -> tuple[str, str]:
        """Codes (L, width) of a sequence, and which are present (L,)."""
        length = self.length(name)
        if name in self.hidden:
            return self.floats(np.zeros((length, width))), self.floats(np.zeros(length))
        return self.codes(name, width), self.once(f"{name}.present", [length])

    def codes(self, name: str, width: int) -> str:
        """Codes (L, width) of a sequence; rows of zeros where nothing has happened yet."""
        return self.once(f"{name}.codes", [self.length(name), width])

    def length(self, name: str) -> int:
        """L of a sequence."""
        config = self.config
        return config.exposure_history if name == "exposures" else config.page_view_history

    def present(self, rows: str) -> str:
        """Which rows (n, .) hold something: (n, 1), 1 or 0."""
        return self("Sign", self("ReduceMax", self("Abs", rows), self.integers([1])))

    def goods(self, pool: str) -> str:
        """Turn pool rows (n, F) into goods cards (n, F + T)."""
        first = np.zeros((1, self.config.n_types), np.float32)
        first[0, 0] = 1
        return self("Concat", pool, self("MatMul", self.present(pool), self.floats(first)), axis=1)

    def features(self, cards: str) -> str:
        """Replace the base ctr of cards (n, F + T) by its scaled logit; zero for absent cards."""
        at = self.d + 1
        left, _, right = self.split(cards, [at, 1, self.n_card - at - 1])
        logit = self("Mul", base_logit_column(self, cards, self.d), self.floats(1 / LOGIT_SCALE))
        return self("Concat", left, self("Mul", logit, self.present(cards)), right, axis=1)

    def embeddings(self, rows: str, width: int) -> str:
        """The first d columns of rows (n, width)."""
        return self.split(rows, [self.d, width - self.d])[0]

    def additive(
        self, attention: AdditiveAttention, query: str, keys: str, present: str, bias: str | None = None
    ) -> str:
        """Weights (n, L) of the events for queries (n, .); zero for those that have not happened.

        Args:
            attention: compares queries with keys.
            query: (n, .).
            keys: (L, .).
            present: (L,).
            bias: (1, L), added to the logits.
        """
        key = linear(self, keys, array(attention.key.weight).T)
        both = self("Add", self("Unsqueeze", layer(self, query, attention.query), self.integers([1])), key)
        score = self.floats(array(attention.score.weight).reshape(-1, 1))
        logits = self("Squeeze", self("MatMul", self("Tanh", both), score), self.integers([2]))
        return self.attention_weights(logits if bias is None else self("Add", logits, bias), present)

    def attention_weights(self, logits: str, present: str) -> str:
        """Softmax of logits (n, L) over the events that are present (L,)."""
        there = self("Unsqueeze", present, self.integers([0]))
        absent = self("Mul", self("Sub", there, self.floats(1.0)), self.floats(ABSENT))
        masked = self("Add", self("Mul", logits, there), absent)
        return self("Mul", self("Softmax", masked, axis=1), there)

    def ages(self, present: str, length: int) -> str:
        """Number of events since each: (1, L), 0 where there is none."""
        newest = self("Sub", self("ReduceSum", present, self.integers([0]), keepdims=1), self.floats(1.0))
        age = self("Sub", newest, self.floats(np.arange(length)))
        return self("Unsqueeze", self("Relu", age), self.integers([0]))

    def behaviour(self, attention: BehaviourAttention, name: str, query: str, hidden: int) -> str:
        """What queries (n, .) find in a sequence by a :class:`BehaviourAttention`: (n, size)."""
        codes, present = self.history(name, 2 * hidden)
        items = self.split(codes, [hidden, hidden])[0]
        age = self.ages(present, self.length(name))
        weights = self.additive(
            attention.additive, query, items, present, self("Mul", age, self.floats(-array(attention.age)))
        )
        found = self("MatMul", weights, codes)
        column = self("Transpose", age, perm=[1, 0])
        decay = self("Exp", self("Mul", column, self.floats(-np.exp(array(attention.decay))[None])))
        weight = self("Mul", self("Mul", layer(self, codes, attention.weight), decay), self.column(present))
        key = linear(self, items, array(attention.key.weight).T)
        memory = self("MatMul", self("Transpose", key, perm=[1, 0]), weight)  # (H, heads)
        asked = linear(self, query, array(attention.query.weight).T * hidden**-0.5)
        return self("Concat", found, self("MatMul", asked, memory), axis=1)

    def column(self, values: str) -> str:
        """(L,) as (L, 1)."""
        return self("Unsqueeze", values, self.integers([1]))


def coded_events(encoders: Sequence[SequenceEncoder], windows: int) -> bytes:
    """Build the graph of one event: `row` (1, W), `hidden` (states, windows, H) -> `codes`, `new_hidden`.

    Args:
        encoders: encoders of one sequence, of one network; `codes` (windows, C) are their codes of the card
            and of the actions on it, side by side.
        windows: 1, or the number of events that the network looks back at.
    """
    first = encoders[0]
    n_states = sum(encoder.layers * (1 if encoder.actions is None else 2) for encoder in encoders)
    g = OnnxGraph()
    row = g.input("row", [1, first.n_card + first.n_action])
    state = g.input("hidden", [n_states, windows, first.hidden])
    starts = [g("Squeeze", part, g.integers([0])) for part in g.split(state, [1] * n_states, axis=0)]
    card, actions = g.split(row, [first.n_card, first.n_action])
    cards = g("Concat", card, base_logit_column(g, card, first.embedding_size), axis=1)
    codes: list[str] = []
    lasts: list[str] = []
    for encoder in encoders:
        grus: list[Any] = [encoder.cards] if encoder.actions is None else [encoder.cards, encoder.actions]
        for gru, x in zip(grus, (cards, actions), strict=False):
            for depth in range(encoder.layers):
                weight, bias = (array(getattr(gru, f"{part}_ih_l{depth}")) for part in ("weight", "bias"))
                raw = gru is encoder.cards and depth == 0
                inputs = card_weight(weight, encoder.embedding_size) if raw else weight.T
                x = gru_step(g, linear(g, x, inputs, bias), starts[len(lasts)], gru, f"_l{depth}")
                lasts.append(x)
            codes.append(x)
    g(
        "Concat" if len(codes) > 1 else "Identity",
        *codes,
        name="codes",
        **({"axis": 1} if len(codes) > 1 else {}),
    )
    stacked = [g("Unsqueeze", last, g.integers([0])) for last in lasts]
    g(
        "Concat" if len(stacked) > 1 else "Identity",
        *stacked,
        name="new_hidden",
        **({"axis": 0} if len(stacked) > 1 else {}),
    )
    width = sum(encoder.value_size for encoder in encoders)
    g.output("codes", [windows, width])
    g.output("new_hidden", [n_states, windows, first.hidden])
    return g.serialise("event")


def split_layer(weight: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Parts of a layer's weight (outputs, inputs) by input, as (inputs, outputs)."""
    return [part.T for part in columns(weight, *sizes)]
