"""Quantised ONNX graphs: weights on the grid of training, smaller files, and answers near those before."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from edgerec_gym.agents.compression.rounding import ROUND, round_rows
from edgerec_gym.agents.export.quantised import quantise, round_kept_outputs
from edgerec_gym.errors import InputError
from edgerec_gym.onnx_graph import OnnxGraph

DRAWS = np.random.default_rng(0)
FIRST, SECOND = (DRAWS.normal(size=size).astype(np.float32) for size in ((40, 64), (64, 32)))
TINY = DRAWS.normal(size=(32, 4)).astype(np.float32)
X = DRAWS.normal(size=(7, 40)).astype(np.float32)


def graph() -> bytes:
    g = OnnxGraph()
    x = g.input("x", ["n", 40])
    hidden = g("Relu", g("Gemm", x, g.floats(FIRST), g.floats(np.linspace(-1, 1, 64))))
    hidden = g("Relu", g("MatMul", hidden, g.floats(SECOND)))
    g("Gemm", hidden, g.floats(TINY), name="y")
    g.output("y", ["n", 4])
    return g.serialise("small")


def run(content: bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, inputs or {"x": X})


def stored(content: bytes, bits: int) -> list[np.ndarray]:
    """The weights that a graph stores as whole numbers, times their scales."""
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load_from_string(content).graph.initializer}
    found = []
    for name, values in weights.items():
        if bits == 8 and name.endswith("_quantized"):
            zero = weights[name.replace("_quantized", "_zero_point")].astype(np.float32)
            found.append((values - zero) * weights[name.replace("_quantized", "_scale")])
        if bits == 4 and name.endswith("_DQ_Q4"):
            scales = np.repeat(weights[name.replace("_Q4", "_scales")], 32, axis=0)[: len(values)]
            found.append(values.astype(np.float32) * scales)
    return found


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_stored_as_they_are_trained(bits: int) -> None:
    found = stored(quantise(graph(), bits), bits)
    assert len(found) == 2  # the tiny one stays
    for weight, wanted in zip(sorted(found, key=len), (FIRST, SECOND), strict=True):
        rounded = ROUND[bits](torch.from_numpy(np.ascontiguousarray(wanted.T))).numpy().T
        np.testing.assert_allclose(weight, rounded, atol=1e-6)


@pytest.mark.parametrize(("bits", "gap"), [(8, 0.03), (4, 0.4)])
def test_answers_stay_near(bits: int, gap: float) -> None:
    exact, found = run(graph())[0], run(quantise(graph(), bits))[0]
    assert 0 < np.abs(found - exact).max() < gap * exact.std()


def test_fewer_bits_make_smaller_files_and_32_change_nothing() -> None:
    sizes = [len(quantise(graph(), bits)) for bits in (32, 8, 4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[1] < sizes[0] / 2
    assert quantise(graph(), 32) == graph()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_same_graph_gives_the_same_bytes_and_logging_is_left_alone(bits: int) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.root.manager.disable)
    assert quantise(graph(), bits) == quantise(graph(), bits)
    assert (root.handlers, root.level, logging.root.manager.disable) == before


@pytest.mark.parametrize("bits", [8, 4])
def test_a_gru_node_stores_the_grid_of_training(bits: int) -> None:
    def gru(weight: np.ndarray, recurrent: np.ndarray) -> bytes:
        g = OnnxGraph()
        x = g.input("x", ["steps", 1, 40])
        constants = [g.floats(part[None]) for part in (weight, recurrent)]
        g.several("GRU", x, *constants, outputs=2, hidden_size=16, linear_before_reset=1)
        g("Squeeze", "v0_1", g.integers([0]), name="y")
        g.output("y", [1, 16])
        return g.serialise("gru")

    weights = [DRAWS.normal(size=(48, size)).astype(np.float32) / 4 for size in (40, 16)]
    rounded = [ROUND[bits](torch.from_numpy(weight)).numpy() for weight in weights]
    found, exact = (
        run(content, x=X[:, None])[0] for content in (quantise(gru(*weights), bits), gru(*rounded))
    )
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.abs(found - run(gru(*weights), x=X[:, None])[0]).max() > 1e-4
    assert len(quantise(gru(*weights), bits)) < len(gru(*weights)) / (2 if bits == 8 else 3)


@pytest.mark.parametrize("bits", [3, 0, 16, -8])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=rf"bits = {bits} is not possible; allowed: 4, 8, 32"):
        quantise(graph(), bits)


def event() -> bytes:
    g = OnnxGraph()
    row, hidden = g.input("row", [1, 6]), g.input("hidden", [2, 1, 5])
    g("Tanh", hidden, name="new_hidden")
    g("Gemm", row, g.floats(FIRST[:6, :9]), name="key")
    g("Mul", row, g.floats(0.0), name="value")
    for name, shape in (("key", [1, 9]), ("value", [1, 6]), ("new_hidden", [2, 1, 5])):
        g.output(name, shape)
    return g.serialise("event")


def test_what_a_phone_keeps_is_rounded_row_by_row() -> None:
    inputs = {"row": X[:1, :6], "hidden": X[:2, None, :5]}
    exact, found = run(event(), **inputs), run(round_kept_outputs(event()), **inputs)
    for before, after in zip(exact, found, strict=True):
        np.testing.assert_allclose(after, round_rows(torch.from_numpy(before)).numpy(), atol=1e-6)
    assert np.abs(found[0] - exact[0]).max() > 0
    assert not found[1].any()  # zeros stay zeros
    assert round_kept_outputs(graph()) == graph()
