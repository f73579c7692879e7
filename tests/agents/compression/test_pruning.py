"""Pruning: removing units that are silent changes nothing, and others shrink the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_rerankers import build

from edgerec_gym.agents.compression.pruning import (
    norms,
    pruned,
    sensitivities,
    smaller_settings,
    units_of,
)
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments, stir


def reranker(agent: str, **settings: Any) -> Callable[[], Any]:
    return lambda: stir(build(agent, Scenario.load("lite").config, RerankerConfig(hidden=8, **settings)))


def values() -> Any:
    settings = ValueConfig(hidden=16, keys=4, heads=2, queries=2)
    return stir(ValueNetwork(Scenario.load("lite").config, settings))


NETWORKS: dict[str, Callable[[], Any]] = {
    "dnn": reranker("dnn"),
    "crban": reranker("crban", match=1),
    "crban, two layers": reranker("crban", layers=2),
    "crban, exposures without actions": reranker("crban", page_views=0, actions=0),
    "values": values,
}


def silence(network: Any, share: float, seed: int = 0) -> list[torch.Tensor]:
    """Let nothing read a drawn share of each group's units; return an importance that tells which."""
    draws, worth = np.random.default_rng(seed), []
    settings = smaller_settings(network, share)
    with torch.no_grad():
        for group in units_of(network):
            left = group.size * settings.hidden // network.settings.hidden
            silent = draws.permutation(group.size)[left:]
            for part in group.parts:
                if part.dim == 1:
                    network.get_parameter(part.name)[:, part.start + silent] = 0
            values = torch.ones(group.size)
            values[silent] = 0
            worth.append(values)
    return worth


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_silent_units_the_answers_are_the_same(name: str, share: float) -> None:
    network = NETWORKS[name]()
    worth = silence(network, share)
    smaller = pruned(network, share, worth)
    observation = moments(4)
    torch.testing.assert_close(smaller.score(observation), network.score(observation), atol=1e-5, rtol=1e-5)
    sizes = [sum(p.numel() for p in one.parameters()) for one in (network, smaller)]
    assert sizes[1] < sizes[0]
    assert smaller.settings.hidden == network.settings.hidden * (1 - share)


@pytest.mark.parametrize("name", NETWORKS)
def test_importances_find_the_silent_units(name: str) -> None:
    network = NETWORKS[name]()
    expected = silence(network, 0.5)

    def losses() -> Any:
        for _ in range(2):
            score = network.score(moments(4))
            yield score[score > -1e8].square().mean()

    for worth in (norms(network), sensitivities(network, losses())):
        for group, found, wanted in zip(units_of(network), worth, expected, strict=True):
            assert found.shape == (group.size,) and torch.isfinite(found).all()
            assert (found[wanted == 0] == 0).all() and (found >= 0).all()
    assert all((found > 0).any() for found in norms(network))


def test_every_parameter_that_grows_with_hidden_is_in_a_group() -> None:
    for make in NETWORKS.values():
        network = make()
        grouped = {(part.name, part.dim) for group in units_of(network) for part in group.parts}
        smaller = type(network)(network.config, smaller_settings(network, 0.5))
        for name, parameter in smaller.named_parameters():
            own = network.get_parameter(name)
            for dim in range(own.ndim):
                assert (own.shape[dim] != parameter.shape[dim]) == ((name, dim) in grouped), (name, dim)


def test_a_share_keeps_hidden_valid(lite: Scenario) -> None:
    network = build("dnn", lite.config, RerankerConfig(hidden=12, heads=4))
    assert smaller_settings(network, 0.3).hidden == 8
    assert smaller_settings(network, 0.99).hidden == 4
    assert smaller_settings(network, 0.0) == network.settings


def test_other_networks_are_refused(lite: Scenario) -> None:
    with pytest.raises(InputError, match="the units of a PRM cannot be pruned; allowed: DNN, CRBAN"):
        units_of(build("prm", lite.config, RerankerConfig(hidden=8)))
