"""Re-rankers with few hidden units and stirred weights, exported for a device and followed on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_rerankers import build
from torch import Tensor

from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.lists import evaluator_training
from edgerec_gym.agents.lists.evaluator import EvaluatorConfig, ListEvaluator
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.perception.perception import SEQUENCES
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.crban import CRBAN
from edgerec_gym.agents.rerank.reranker import Reranker, RerankerConfig
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

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
    identified: tuple[bool, ...] = EVERYTHING, generator: bool = True, match: int = 0, **settings: Any
) -> SequenceSearch:
    config = Scenario.load("lite").config
    proposes = pointer(match=match) if generator else None
    judge = evaluator(config, identified, match=match)
    return SequenceSearch(config, judge, proposes, SearchConfig(**settings)).eval()


def exported(
    network: Reranker,
    folder: Path,
    places: int = PLACES,
    config: FeedConfig | None = None,
    engine: str = "onnxruntime",
) -> DeviceModel:
    kind = {CRBAN: "crban", PointerNet: "pointer", SequenceSearch: "sequence-search"}[type(network)]
    config = config or Scenario.load("lite").config
    export_network(network, folder / "device", find_agent(kind), "lite", config, places, engine=engine)
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
