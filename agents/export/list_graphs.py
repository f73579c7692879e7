"""Graphs of the re-rankers that read no behaviour: DNN, DLCM, PRM, SetRank and Seq2Slate.

They read the candidates that are left, as :mod:`edgerec_gym.agents.export.graphs` says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from edgerec_gym.agents.export.decisions import sequential
from edgerec_gym.agents.export.graphs import ListGraph, columns, compared, self_attention
from edgerec_gym.agents.export.layers import affine, array, gru_layer, layer, linear
from edgerec_gym.agents.perception.attention import SelfAttentionBlock
from edgerec_gym.agents.rerank.dlcm import DLCM
from edgerec_gym.agents.rerank.dnn import DNN
from edgerec_gym.agents.rerank.prm import PRM
from edgerec_gym.agents.rerank.reranker import ListScorer
from edgerec_gym.agents.rerank.seq2slate import Seq2Slate
from edgerec_gym.agents.rerank.set_rank import SetRank
from edgerec_gym.config import FeedConfig
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.spaces import context_size


def scorer_graphs(network: DNN | DLCM | PRM | SetRank) -> dict[str, bytes]:
    """The graph `scores` -> (n, 1)."""
    g = ListGraph(network.config)
    _SCORES[type(network)](g, network)
    g.output("scores", ["n", 1])
    return {"scores": g.serialise("scores")}


def _of_inputs(g: ListGraph, config: FeedConfig, weight: np.ndarray, bias: np.ndarray) -> str:
    """Apply a layer with weights (outputs, inputs) to candidates and session: (n, outputs)."""
    sizes = (config.n_item_features + config.n_types, config.n_user_features + context_size(config))
    of_cards, of_session = columns(weight, *sizes)
    return g("Add", g.of_cards(of_cards, bias), linear(g, g.session, of_session.T))


def _finish(g: ListGraph, network: ListScorer, score: str) -> None:
    g("Add", score, g("Mul", g.base, g.floats(network.settings.residual)), name="scores")


def _dnn(g: ListGraph, network: DNN) -> None:
    first, *rest = network.network.children()
    assert isinstance(first, nn.Linear)
    inner = _of_inputs(g, network.config, *affine(first))
    _finish(g, network, sequential(g, inner, nn.Sequential(*rest)))


def _attended(g: ListGraph, network: PRM | SetRank, codes: str) -> None:
    for block in network.blocks:
        assert isinstance(block, SelfAttentionBlock)
        codes = self_attention(g, block, codes)
    _finish(g, network, layer(g, codes, network.output))


def _prm(g: ListGraph, network: PRM) -> None:
    rows = g.input("rows", ["n"], np.int64)
    position = g("Gather", g.floats(array(network.position)), rows, axis=0)
    _attended(g, network, g("Add", _of_inputs(g, network.config, *affine(network.embed)), position))


def _set_rank(g: ListGraph, network: SetRank) -> None:
    _attended(g, network, _of_inputs(g, network.config, *affine(network.embed)))


def _dlcm(g: ListGraph, network: DLCM) -> None:
    """The list is read from bottom to top; a GRU node with another direction is wrong in MNN."""
    hidden, states = network.settings.hidden, ""
    for depth in range(network.gru.num_layers):
        weight_ih, bias_ih, weight_hh, bias_hh = (
            array(getattr(network.gru, f"{name}_l{depth}"))
            for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        )
        if depth == 0:
            gates = _reversed(g, _of_inputs(g, network.config, weight_ih, bias_ih))
        else:
            gates = linear(g, states, weight_ih.T, bias_ih)
        states = _gru(g, gates, weight_hh, bias_hh, hidden)
    states = _reversed(g, states)
    norm = g("LayerNormalization", states, *map(g.floats, affine(network.norm)), epsilon=network.norm.eps)
    top = g("Slice", states, g.integers([0]), g.integers([1]), g.integers([0]))  # (1, H): read last
    product = g("Mul", norm, g("Tanh", layer(g, top, network.context)))
    _finish(g, network, linear(g, product, array(network.output.weight).T))


def _reversed(g: OnnxGraph, rows: str) -> str:
    """Rows (n, .) from the last to the first."""
    ends = g.integers([-1]), g.integers([np.iinfo(np.int64).min + 1])
    return g("Slice", rows, *ends, g.integers([0]), g.integers([-1]))


def _gru(g: OnnxGraph, gates: str, weight_hh: np.ndarray, bias_hh: np.ndarray, hidden: int) -> str:
    """States (n, H) of a GRU over rows; `gates` (n, 3 H) hold what does not depend on the state."""

    def reordered(values: np.ndarray) -> np.ndarray:
        reset, update, new = np.split(values, 3)
        return np.concatenate([update, reset, new])[None]

    bias = np.concatenate([np.zeros((1, 3 * hidden), np.float32), reordered(bias_hh)], axis=1)
    weights = [reordered(np.eye(3 * hidden, dtype=np.float32)), reordered(weight_hh), bias]
    states, _ = gru_layer(g, g("Unsqueeze", gates, g.integers([1])), weights)
    return g("Squeeze", states, g.integers([1]))


_SCORES: dict[type, Callable[..., None]] = {DNN: _dnn, DLCM: _dlcm, PRM: _prm, SetRank: _set_rank}


def seq2slate_graphs(network: Seq2Slate) -> dict[str, bytes]:
    """Graphs by name: `encode` and `step`, for :class:`~edgerec_gym.device.list_decoder.ListDecoder`.

    `encode` outputs the candidates' `codes` and the pointer's keys `pointer` (n, H), `prior` (1, n), `start`
    (1, 2 H), hidden state and cell of the decoder, and `first` (1, H), what it has read before the first
    place. `step` reads these, `state` (S, 2 H), `read` (S, H), `taken` and `added` (S, n); it outputs
    `new_state` and `logits` (S, n).
    """
    config, hidden = network.config, network.settings.hidden
    g = ListGraph(config)
    codes = ""
    for depth in range(network.encoder.num_layers):
        weight_ih, bias_ih, weight_hh, bias_hh = (
            array(getattr(network.encoder, f"{name}_l{depth}"))
            for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        )
        if depth == 0:
            gates = _of_inputs(g, config, weight_ih, bias_ih + bias_hh)
        else:
            gates = linear(g, codes, weight_ih.T, bias_ih + bias_hh)
        codes = _lstm(g, gates, weight_hh, hidden)
    codes = g("Identity", codes, name="codes")
    last = g("Slice", codes, g.integers([-1]), g.integers([np.iinfo(np.int64).max]), g.integers([0]))
    silent = g("Mul", last, g.floats(0.0))
    g("Concat", last, silent, name="start", axis=1)
    g("Add", silent, g.floats(array(network.first)[None]), name="first")
    linear(g, codes, array(network.pointer.key.weight).T, name="pointer")
    g("Mul", g("Transpose", g.base, perm=[1, 0]), g.floats(network.settings.residual), name="prior")
    g.output("codes", ["n", hidden])
    g.output("pointer", ["n", hidden])
    g.output("prior", [1, "n"])
    g.output("start", [1, 2 * hidden])
    g.output("first", [1, hidden])
    encode = g.serialise("encode")

    step, decoder = OnnxGraph(), network.decoder
    keys, read = step.input("pointer", ["n", hidden]), step.input("read", ["s", hidden])
    state = step.input("state", ["s", 2 * hidden])
    taken, added = step.input("taken", ["s", "n"]), step.input("added", ["s", "n"])
    before, cell = step.split(state, [hidden, hidden])
    gates = step(
        "Add",
        linear(step, read, array(decoder.weight_ih).T, array(decoder.bias_ih) + array(decoder.bias_hh)),
        linear(step, before, array(decoder.weight_hh).T),
    )
    entering, forgetting, new, leaving = step.split(gates, [hidden] * 4)
    kept = step("Mul", step("Sigmoid", forgetting), cell)
    cell = step("Add", kept, step("Mul", step("Sigmoid", entering), step("Tanh", new)))
    now = step("Mul", step("Sigmoid", leaving), step("Tanh", cell))
    step("Concat", now, cell, name="new_state", axis=1)
    query = layer(step, now, network.pointer.query)
    step.add(compared(step, query, keys, array(network.pointer.score.weight)), taken, added, name="logits")
    step.output("new_state", ["s", 2 * hidden])
    step.output("logits", ["s", "n"])
    return {"encode": encode, "step": step.serialise("step")}


def _lstm(g: OnnxGraph, gates: str, weight_hh: np.ndarray, hidden: int) -> str:
    """States (n, H) of an LSTM over rows; `gates` (n, 4 H) hold what does not depend on the state."""

    def reordered(values: np.ndarray) -> np.ndarray:
        entering, forgetting, new, leaving = np.split(values, 4)
        return np.concatenate([entering, leaving, forgetting, new])[None]

    states, _ = g.several(
        "LSTM",
        g("Unsqueeze", gates, g.integers([1])),
        g.floats(reordered(np.eye(4 * hidden, dtype=np.float32))),
        g.floats(reordered(weight_hh)),
        outputs=2,
        hidden_size=hidden,
    )
    return g("Squeeze", states, g.integers([1, 2]))
