"""Rounded weights and kept state: the grids of a plain numpy reference, and gradients that pass through."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_rerankers import build
from torch import nn

from edgerec_gym.agents.compression.rounding import (
    ROUND,
    round_blocks,
    round_in_place,
    round_kept_state,
    round_rows,
    rounded_weights,
    with_rounded_weights,
)
from edgerec_gym.agents.export.quantised import LEAST_NUMBERS
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments, stir


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """Rows of one to 70 numbers of any size, some of them equal to each other or to zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(size=(draw(st.integers(1, 3)), draw(st.integers(1, 70))))
    values *= 10.0 ** rng.integers(-3, 3, (len(values), 1))
    return np.where(rng.random(values.shape) < 0.2, 0, values.round(rng.integers(1, 9))).astype(np.float32)


def reference_rows(values: np.ndarray) -> np.ndarray:
    """INT8, symmetric, a scale a row."""
    found = np.zeros_like(values)
    for row, out in zip(values, found, strict=True):
        if scale := np.abs(row).max() / np.float32(127):
            out[:] = np.round(row / scale) * scale
    return found


def reference_blocks(values: np.ndarray) -> np.ndarray:
    """INT4, a scale for 32 inputs; the largest number is -8 steps."""
    found = np.zeros_like(values)
    for row, out in zip(values, found, strict=True):
        for at in range(0, len(row), 32):
            block = np.append(row[at : at + 32], np.float32(0)) if len(row) - at < 32 else row[at : at + 32]
            extreme = block.max() if abs(block.max()) > abs(block.min()) else block.min()
            if scale := extreme / np.float32(-8):
                steps = np.clip(np.floor(block / scale + np.float32(0.5)), -8, 7)
                out[at : at + 32] = (steps * scale)[: len(row) - at]
    return found


@given(weights())
def test_the_grids_are_those_of_the_reference(values: np.ndarray) -> None:
    for found, wanted in (
        (round_rows, reference_rows(values)),
        (round_blocks, reference_blocks(values)),
    ):
        np.testing.assert_allclose(found(torch.from_numpy(values)).numpy(), wanted, rtol=1e-6, atol=1e-6)


@given(weights())
def test_no_number_moves_by_more_than_a_step(values: np.ndarray) -> None:
    largest = np.abs(values).max(1, keepdims=True)
    assert (np.abs(round_rows(torch.from_numpy(values)).numpy() - values) <= largest / 253).all()
    assert (np.abs(round_blocks(torch.from_numpy(values)).numpy() - values) <= largest / 7.9).all()


@pytest.mark.parametrize("bits", ROUND)
def test_gradients_pass_straight_through(bits: int) -> None:
    weight = torch.randn(3, 40, requires_grad=True)
    factor = torch.randn(3, 40)
    (ROUND[bits](weight) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("bits", ROUND)
def test_a_gru_and_a_layer_run_with_rounded_weights(bits: int) -> None:
    torch.manual_seed(0)
    network = nn.ModuleDict({"gru": nn.GRU(40, 32, batch_first=True), "last": nn.Linear(32, 16)})
    x = torch.randn(2, 5, 40)

    def run(given: nn.ModuleDict = network) -> torch.Tensor:
        return given["last"](given["gru"](x)[0])

    other = copy.deepcopy(network)
    round_in_place(other, bits)
    plain = run()
    rounded = with_rounded_weights(network, bits, run)
    torch.testing.assert_close(rounded, run(other))
    assert not torch.allclose(rounded, plain)
    torch.testing.assert_close(run(), plain)  # the weights themselves stay as they are
    with_rounded_weights(network, bits, run).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network["gru"].weight_hh_l0.grad.abs().sum() > 0


def test_small_weights_and_biases_stay(lite: Scenario) -> None:
    network = build("dnn", lite.config, RerankerConfig(hidden=32))
    names = rounded_weights(network, 8)
    assert set(names) == {"network.0.weight", "network.2.weight"}
    assert network.network[4].weight.numel() < LEAST_NUMBERS
    assert rounded_weights(network, 32) == {}


@pytest.mark.parametrize("match", [0, 1])
def test_kept_state_is_rounded_and_learns(lite: Scenario, match: int) -> None:
    network = stir(build("crban", lite.config, RerankerConfig(hidden=8, layers=2, match=match)))
    exact = network.score(moments(4)).detach()
    round_kept_state(network)
    rounded = network.score(moments(4))
    torch.testing.assert_close(rounded, exact, atol=0.2, rtol=0.05)
    assert not torch.equal(rounded.detach(), exact)
    codes = network.perception(moments(4))["exposures"]
    items = codes.items[codes.present]
    steps = items / items.abs().amax(-1, keepdim=True) * 127
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    rounded[rounded > -1e8].sum().backward()
    assert network.perception.encoder("exposures").cards.weight_hh_l0.grad.abs().sum() > 0


def test_without_rounding_the_steps_are_those_of_the_fused_gru(
    lite: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = stir(build("crban", lite.config, RerankerConfig(hidden=8, layers=2)))
    exact = network.score(moments(4)).detach()
    round_kept_state(network)
    monkeypatch.setattr("edgerec_gym.agents.compression.rounding.round_rows", lambda values: values)
    torch.testing.assert_close(network.score(moments(4)).detach(), exact, atol=1e-5, rtol=1e-5)


def test_the_value_network_keeps_rounded_events(lite: Scenario) -> None:
    network = stir(ValueNetwork(lite.config, ValueConfig(hidden=8, keys=4, heads=2, queries=2)))
    observation = moments(4)
    exact = network.score(observation).detach()
    round_kept_state(network)
    rounded = network.score(observation).detach()
    there = exact > -1e8
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded[there], exact[there], atol=0.1, rtol=0.1)
