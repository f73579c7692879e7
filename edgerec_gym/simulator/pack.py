"""Packs a network's weights for run time: folds in the units, puts the gates side by side.

Some are weights of the step graph (simulator/graph.py), the others belong to the kernels around it
(`Networks` in users/learned_layout.py).
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import (
    CLICK,
    CONTEXT_SIZE,
    DWELL_BUCKETS,
    FOCUSED,
    PAGE_SUMMARY,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    WINDOW,
)
from edgerec_gym.errors import InputError
from edgerec_gym.simulator.graph import Weights
from edgerec_gym.simulator.inputs import N_ACTIONS, N_CONTEXT_CODE
from edgerec_gym.simulator.model import BUY_SIGN, UserNetwork
from edgerec_gym.users.learned_layout import N_ANSWER

CLOSED = 30.0  # logit that shuts a gate
# Columns of the graph's answer: dwell, e2.., click, opened, d2..d11; the named responses follow.
ANSWER_CODE = [
    *range(DWELL_BUCKETS),
    *range(DWELL_BUCKETS + 1, DWELL_BUCKETS + CLICK + 1),
    *range(DWELL_BUCKETS + N_ACTIONS, N_ANSWER),
    *range(DWELL_BUCKETS + PAGE_VIEW + 1, DWELL_BUCKETS + N_ACTIONS),
]


def _answer_code(network: UserNetwork) -> list[int]:
    """Return the columns of the graph's answer that the network's answer code holds."""
    return [*ANSWER_CODE, *range(N_ANSWER, N_ANSWER + network.n_responses)]


class _Inputs:
    """The affine map from the graph's columns to a layer's inputs, built column by column."""

    def __init__(self, sources: dict[str, int]) -> None:
        ends = np.cumsum([0, *sources.values()])
        self.start = dict(zip(sources, ends[:-1], strict=True))
        self.size = int(ends[-1])
        self.columns: list[np.ndarray] = []
        self.offsets: list[float] = []

    def add(self, source: str, column: int, factor: float = 1.0, offset: float = 0.0) -> None:
        """Add the layer's next input: factor * column of source + offset."""
        values = np.zeros(self.size)
        values[self.start[source] + column] = factor
        self.columns.append(values)
        self.offsets.append(offset)

    def add_all(self, source: str, factors: np.ndarray) -> None:
        """Add the layer's next inputs: all columns of source, times their factors."""
        for column, factor in enumerate(factors):
            self.add(source, column, factor)

    def add_logit(self, encoder: dict[str, np.ndarray], place: int) -> None:
        """Add the layer's next input: a window card's logit of base ctr, in the network's units."""
        centre, factor = encoder["ctr_logit"][0], encoder["ctr_logit"][1] * encoder["near"][place, 0]
        self.add("logit", place, factor, -centre * factor)

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert a layer (outputs, inputs) to weights (inputs, outputs) and bias on the graph's columns."""
        return np.stack(self.columns, 1) @ weight.T, bias + weight @ np.array(self.offsets)


def _context_factors(encoder: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([encoder["context_scale"], np.ones(N_CONTEXT_CODE - CONTEXT_SIZE)])


def pack(network: UserNetwork) -> Weights:
    """Turn a network into the weights of its step graph.

    Returns:
        float32 arrays by initializer name; matrices are (inputs, outputs).

    Raises:
        InputError: the network was made with behaviour=False; the graph always has a memory.
    """
    if not network.behaviour:
        raise InputError("a UserNetwork with behaviour=False is for comparison only and has no step graph")
    parameters = {name: value.detach().double().numpy() for name, value in network.named_parameters()}
    encoder = {name: value.double().numpy() for name, value in network.inputs.named_buffers()}
    layers = {
        "gates": _pack_gates(_pack_new(network, parameters, encoder), _pack_old(parameters)),
        "trunk1": _pack_trunk(network, parameters, encoder),
        "trunk2": (parameters["trunk.2.weight"].T, parameters["trunk.2.bias"]),
        "heads": _pack_heads(network, parameters),
    }
    strength = np.zeros((network.n_evidence, N_ANSWER + network.n_responses))
    strength[:, _answer_code(network)] = parameters["evidence.weight"]
    leave = np.zeros(N_ANSWER + network.n_responses)
    leave[DWELL_BUCKETS : DWELL_BUCKETS + N_ACTIONS] = parameters["leave_by_actions"][0]
    query, hidden = parameters["query.weight"].T, network.query.in_features - len(encoder["user_scale"])
    weights = {
        "query": query[:hidden],
        "query_by_user": (query[hidden:] * encoder["user_scale"][:, None]).T,
        "query_bias": parameters["query.bias"],
        "card_scale": encoder["card_scale"],
        "context": np.concatenate([encoder["context_ages"], encoder["context_waves"]], axis=1),
        "context_bias": np.concatenate([encoder["age_shift"], encoder["wave_shift"]]),
        "pair": parameters["pair.weight"],
        "decay": network.decay.double().numpy(),
        "strength": strength,
        "strength_bias": parameters["evidence.bias"],
        "exposure_by_dwell": parameters["exposure_by_dwell"],
        "click_by_dwell": parameters["click_by_dwell"],
        "signs_by_page_view": parameters["signs_by_page_view"],
        "leave_by_answer": leave,
        **{name: encoder[name] for name in ("count_scale", "bin_start", "bin_factor") if encoder[name].size},
    }
    if network.n_responses:
        leave[N_ANSWER:] = parameters["leave_by_responses"][0]
        by_answer = np.zeros((network.n_responses, N_ANSWER))
        by_answer[:, ANSWER_CODE] = parameters["responses_by_answer"]
        weights["responses_by_answer"] = by_answer
    for name, (weight, bias) in layers.items():
        weights |= {name: weight, f"{name}.bias": bias}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in weights.items()}


def _gates(exposure: np.ndarray, page_view: np.ndarray) -> list[np.ndarray]:
    """Return the rows of both GRUs side by side: reset gates, update gates, candidates."""
    return [r for pair in zip(np.split(exposure, 3), np.split(page_view, 3), strict=True) for r in pair]


def _pack_new(
    network: UserNetwork, p: dict[str, np.ndarray], encoder: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights from the last slot and its answer to the gates of both GRUs."""
    width = network.inputs.width
    n_answer = N_ANSWER + network.n_responses
    x = _Inputs({"card": width, "logit": WINDOW, "context": N_CONTEXT_CODE, "answer": n_answer})
    x.add_all("card", np.ones(width))
    x.add_logit(encoder, FOCUSED)
    x.add_all("context", _context_factors(encoder))
    for column in _answer_code(network):
        x.add("answer", column)
    gates = np.concatenate(_gates(p["exposure_gru.weight_ih_l0"], p["page_view_gru.weight_ih_l0"]))
    biases = np.concatenate(_gates(p["exposure_gru.bias_ih_l0"], p["page_view_gru.bias_ih_l0"]))
    weight, bias = x.fold(gates, biases)
    # Without a click, closed update gates keep the page-view GRU unchanged.
    exposure, page_view = network.exposure_gru.hidden_size, network.page_view_gru.hidden_size
    update = slice(2 * exposure + page_view, 2 * (exposure + page_view))
    weight[x.start["answer"] + DWELL_BUCKETS + CLICK, update] -= CLOSED
    bias[update] += CLOSED
    return weight, bias


def _pack_old(p: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the recurrent weights of both GRUs, without connections between the two."""
    weight = {name: p[f"{name}_gru.weight_hh_l0"] for name in ("exposure", "page_view")}
    n, m = weight["exposure"].shape[1], weight["page_view"].shape[1]
    apart = _gates(
        np.pad(weight["exposure"], ((0, 0), (0, m))), np.pad(weight["page_view"], ((0, 0), (n, 0)))
    )
    biases = _gates(p["exposure_gru.bias_hh_l0"], p["page_view_gru.bias_hh_l0"])
    return np.concatenate(apart).T, np.concatenate(biases)


def _pack_gates(
    new: tuple[np.ndarray, np.ndarray], old: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Combine both in one product: reset and update gates, new candidates, old candidates."""
    cut = new[0].shape[1] * 2 // 3
    new_candidate, old_candidate = (np.split(w[0], [cut], axis=1)[1] for w in (new, old))
    weight = np.block(
        [
            [new[0][:, :cut], new_candidate, np.zeros_like(new_candidate)],
            [old[0][:, :cut], np.zeros_like(old_candidate), old_candidate],
        ]
    )
    return weight, np.concatenate([new[1][:cut] + old[1][:cut], new[1][cut:], old[1][cut:]])


def _pack_trunk(
    network: UserNetwork, p: dict[str, np.ndarray], encoder: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    width, d, scale = network.inputs.width, network.d, encoder["card_scale"]
    hidden = network.exposure_gru.hidden_size + network.page_view_gru.hidden_size
    users, weight = len(encoder["user_scale"]), p["trunk.0.weight"]
    page = len(PAGE_SUMMARY) if network.frozen_pages else 0
    compared = weight.shape[1] - hidden - users - d - WINDOW * network.inputs.n_attributes - N_CONTEXT_CODE
    codes = network.inputs.n_codes
    compared -= page + codes
    wanted = network.query.out_features
    before = {"cards": WINDOW * width, "user": users, "logit": WINDOW, "context": N_CONTEXT_CODE}
    after = {"codes": codes, "memory": hidden, "wanted": wanted, "page": page}
    x = _Inputs({**before, "compared": compared - wanted, **after})
    x.add_all("memory", np.ones(hidden))
    x.add_all("user", encoder["user_scale"])
    for k in range(d):
        x.add("cards", FOCUSED * width + k, scale[FOCUSED, k])
    for place in range(WINDOW):
        for k in range(d, width):
            x.add("cards", place * width + k, scale[place, k])
        x.add_logit(encoder, place)
    x.add_all("context", _context_factors(encoder))
    x.add_all("compared", np.ones(compared - wanted))
    x.add_all("wanted", np.ones(wanted))
    factor, offset = network.inputs.page_factors()
    for k in range(page):
        x.add("page", k, float(factor[k]), float(offset[k]))
    x.add_all("codes", np.ones(codes))
    return x.fold(weight, p["trunk.0.bias"])


def _pack_heads(network: UserNetwork, p: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the heads in the graph's order; click and buy also per bucket of the preceding duration."""
    heads, cuts = network.head_sizes, np.cumsum(list(network.head_sizes.values()))[:-1]
    weight = dict(zip(heads, np.split(p["heads.weight"], cuts), strict=True))
    bias = dict(zip(heads, np.split(p["heads.bias"], cuts), strict=True))
    weight["click_by"] = np.repeat(weight["click"], DWELL_BUCKETS, axis=0)
    bias["click_by"] = bias["click"] + p["click_by_dwell"]
    weight["buy_by"] = np.repeat(weight["signs"][[BUY_SIGN]], PAGE_VIEW_BUCKETS, axis=0)
    bias["buy_by"] = bias["signs"][BUY_SIGN] + p["signs_by_page_view"][:, BUY_SIGN]
    order = ["dwell", "exposure", "click", "click_by", "page_view", "signs", "buy_by", "leave"]
    order += ["responses"] if network.n_responses else []
    return np.concatenate([weight[h] for h in order]).T, np.concatenate([bias[h] for h in order])
