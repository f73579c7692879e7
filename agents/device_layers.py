"""Parts of the graphs that a phone runs: cards, GRUs, attention, and one event of the perception.

A phone serves one session (batch 1), and its graphs read the candidates that are left in the pool, packed: so
nothing is masked. What only depends on an event is computed once, when it happens, and kept: the code of the
event's card as the attention compares it (a *key*), and the fused code as the layer behind the attention
takes it up (a *value*). Both are products with fixed matrices, so the results are those of the torch modules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from edgerec_gym.agents.perception import BASE_CTR, LOGIT_SCALE
from edgerec_gym.simulator.onnx_graph import OnnxGraph

CLIPPED = 1e-4  # least base ctr that the logit tells apart, as in perception.base_logit


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
    """Weights (outputs, F + T) of card features as those (F + T + 1, outputs) of cards and their logit."""
    at = embedding_size + BASE_CTR
    raw = weight.T.copy()
    raw[at] = 0.0
    return np.vstack([raw, weight[:, at] / LOGIT_SCALE])


def candidate_weight(
    weight: np.ndarray, embedding_size: int, n_features: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same for pool rows (F columns), which are goods: weights (F + 1, outputs), and what goods add."""
    raw = card_weight(weight, embedding_size)
    return np.vstack([raw[:n_features], raw[-1:]]), raw[n_features]


def linear(
    g: OnnxGraph, x: str, weight: np.ndarray, bias: np.ndarray | None = None, name: str | None = None
) -> str:
    """Rows x (n, inputs) times weight (inputs, outputs), plus bias."""
    constants = [g.floats(part) for part in (weight, bias) if part is not None]
    return g("Gemm", x, *constants, name=name)


def layer(g: OnnxGraph, x: str, module: Any) -> str:
    """Apply a linear layer of a network to rows x."""
    weight, bias = affine(module)
    return linear(g, x, weight.T, bias)


def gru_weights(
    weight_ih: np.ndarray, gru: nn.GRU | nn.GRUCell, suffix: str = "", added: np.ndarray | None = None
) -> list[np.ndarray]:
    """W, R and B of an ONNX GRU from weights (3 H, inputs) and torch's others; gates z, r, h.

    Args:
        weight_ih: input weights.
        gru: has the other weights.
        suffix: ends the names of these.
        added: (3 H,) to the input's bias.
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
    """One layer over x (steps, batch, inputs) from `start` (1, batch, H): all states, and the last.

    Returns:
        (steps, batch, H) and (1, batch, H).
    """
    w, r, b = (g.floats(part) for part in weights)
    hidden = weights[1].shape[2]
    # linear_before_reset is torch's form of the gates.
    states, last = g.several(
        "GRU", x, w, r, b, "", start, outputs=2, hidden_size=hidden, linear_before_reset=1
    )
    return g("Squeeze", states, g.integers([1])), last


def stacked_gru(
    g: OnnxGraph,
    x: str,
    gru: nn.GRU,
    first: np.ndarray,
    added: np.ndarray | None = None,
    starts: list[str] | None = None,
) -> tuple[str, list[str]]:
    """All layers of a GRU.

    Args:
        g: takes the nodes.
        x: (steps, batch, inputs).
        gru: has the weights.
        first: (3 H, inputs) input weights of the first layer, in place of its own.
        added: (3 H,) to the first layer's bias.
        starts: (1, batch, H) first state of each layer; None: zeros.

    Returns:
        (steps, batch, H) of the last layer, and the last state (1, batch, H) of each.
    """
    lasts = []
    for layer in range(gru.num_layers):
        weight_ih = first if layer == 0 else array(getattr(gru, f"weight_ih_l{layer}"))
        weights = gru_weights(weight_ih, gru, f"_l{layer}", added if layer == 0 else None)
        x, last = gru_layer(g, x, weights, starts[layer] if starts else "")
        lasts.append(last)
    return x, lasts


def attend(g: OnnxGraph, query: str, keys: str, values: str, score: np.ndarray) -> str:
    """Weighted sum of values (L, V) by score . tanh(query + key): queries (n, H), keys (L, H); (n, V)."""
    both = g("Add", g("Unsqueeze", query, g.integers([1])), keys)  # (n, L, H)
    logits = g("Squeeze", g("MatMul", g("Tanh", both), g.floats(score.reshape(-1, 1))), g.integers([2]))
    return g("MatMul", g("Softmax", logits, axis=1), values)
