"""Exported re-rankers: what ONNX Runtime gives on the device is what torch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgerec_gym.agents import evaluator_training
from edgerec_gym.agents.crban import CRBAN
from edgerec_gym.agents.device import DeviceSession, load
from edgerec_gym.agents.device_export import export_network
from edgerec_gym.agents.device_files import DeviceModel
from edgerec_gym.agents.evaluator import EvaluatorConfig, ListEvaluator
from edgerec_gym.agents.perception import SEQUENCES
from edgerec_gym.agents.pointer_net import PointerNet
from edgerec_gym.agents.reranker import Reranker, RerankerConfig
from edgerec_gym.agents.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.supervised import build
from edgerec_gym.config import FeedConfig
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments, stir

PLACES = 6
EVERYTHING = (True, True, True, True)


def crban(**settings: Any) -> CRBAN:
    network = stir(build("crban", Scenario.load("lite").config, RerankerConfig(hidden=8, **settings)))
    assert isinstance(network, CRBAN)
    return network


def pointer(**settings: Any) -> PointerNet:
    network = stir(build("pointer", Scenario.load("lite").config, RerankerConfig(hidden=8, **settings)))
    assert isinstance(network, PointerNet)
    return network


def evaluator(
    config: FeedConfig, identified: tuple[bool, ...] = EVERYTHING, **settings: Any
) -> ListEvaluator:
    network = evaluator_training.build(config, EvaluatorConfig(hidden=8, horizon=5, **settings), identified)
    stir(network)
    with torch.no_grad():
        network.scale += torch.tensor([0.1, -0.2, 0.3, 0.05])
        network.shift += torch.tensor([-0.5, 0.2, 0.1, -0.3])
    return network


def search(
    identified: tuple[bool, ...] = EVERYTHING, generator: bool = True, **settings: Any
) -> SequenceSearch:
    config = Scenario.load("lite").config
    proposes = pointer() if generator else None
    return SequenceSearch(config, evaluator(config, identified), proposes, SearchConfig(**settings)).eval()


def exported(
    network: Reranker, folder: Path, places: int = PLACES, config: FeedConfig | None = None
) -> DeviceModel:
    export_network(
        network, folder / "device", "agent", "lite", config or Scenario.load("lite").config, places
    )
    return load(folder / "device")


def one(observation: dict[str, Tensor], session: int) -> dict[str, np.ndarray]:
    return {key: values[session].numpy() for key, values in observation.items()}


def followed(model: DeviceModel, observation: dict[str, np.ndarray]) -> DeviceSession:
    """A session in which what the observation's histories hold has happened."""
    session = DeviceSession(model)
    for name in SEQUENCES:
        for row in observation[name]:
            if row.any():
                session.append(name, row)
    return session


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": 2, "actions": 0},
        {"exposures": 0, "raw_inputs": 0, "residual": 0},
        {"page_views": 0, "layers": 3},
        {"exposures": 0, "page_views": 0},
    ],
)
def test_crban_scores_as_in_torch(tmp_path: Path, settings: dict[str, int]) -> None:
    network = crban(**settings)
    model = exported(network, tmp_path)
    for slots in (0, 3, 12):
        observation = moments(8, slots=slots)
        with torch.no_grad():
            expected = network.score(observation).numpy()
        for k in range(8):
            session = followed(model, one(observation, k))
            score = session.scores(one(observation, k))
            np.testing.assert_allclose(score, expected[k], rtol=1e-5, atol=1e-5)
            order = np.argsort(-expected[k], kind="stable")[:PLACES]
            assert session.rerank(one(observation, k)).tolist() == order.tolist()


@pytest.mark.parametrize("settings", [{}, {"layers": 2, "residual": 0}])
def test_the_generator_writes_the_same_lists(tmp_path: Path, settings: dict[str, int]) -> None:
    network = pointer(**settings)
    model = exported(network, tmp_path, 15)
    for slots in (0, 3, 12):
        observation = moments(8, slots=slots)
        with torch.no_grad():
            expected = network.emit(observation, 15).numpy()
            codes = network.encode(observation).codes.numpy()
        for k in range(8):
            session = followed(model, one(observation, k))
            assert session.rerank(one(observation, k)).tolist() == expected[k].tolist()
            left = (one(observation, k)["pool"] != 0).any(1)
            found = session.run(one(observation, k))["generator.lists"]
            np.testing.assert_allclose(found, codes[k, left], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"generator": False, "stability": 1.0},
        {"samples": 0, "beams": 1, "candidates": 3},
        {"beams": 30, "candidates": 20, "stability": 1.0, "seed": 3},
        {"identified": (True, False, True, False), "stability": 0.8},
        {"identified": (True, True, False, True)},
    ],
)
def test_the_search_finds_the_same_lists(tmp_path: Path, settings: dict[str, Any]) -> None:
    network = search(**settings)
    model = exported(network, tmp_path)
    differ = set()
    for slots in (0, 3, 12):
        observation = moments(8, slots=slots)
        for k in range(8):
            alone = {key: values[k : k + 1] for key, values in observation.items()}
            with torch.no_grad():
                expected = network.search(alone, PLACES)
            found = followed(model, one(observation, k)).search(one(observation, k))
            rows = np.flatnonzero((one(observation, k)["pool"] != 0).any(1))
            assert rows[found.cards].tolist() == expected.rows[0].tolist()
            assert found.value == pytest.approx(expected.value.item(), rel=1e-5, abs=1e-6)
            assert found.stopped == expected.stopped.item()
            differ.add(tuple(found.cards))
    assert len(differ) > 5
