"""A small EdgeRec network whose three decisions all happen, and its sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgerec_gym.agents.edgerec.network import EdgeRecNetwork
from edgerec_gym.agents.edgerec.values import FEATURES
from edgerec_gym.agents.insertion.esan import ESANConfig
from edgerec_gym.agents.insertion.train import build
from edgerec_gym.evaluation.play import play
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

ID = "EdgeFeed-v0"


def stirred_network(lite: Scenario) -> EdgeRecNetwork:
    network = EdgeRecNetwork(build(lite.config, ESANConfig(hidden=8), (True,) * 4), 8, True, len(FEATURES))
    stir(network)
    with torch.no_grad():
        network.effect.copy_(torch.tensor([1.0, 0.1]))  # about as much as a request costs
        network.price.zero_()
        network.plan.copy_(torch.linspace(-0.2, 0.2, len(FEATURES)))
    return network.eval()


def results(policy: Policy, lite: Scenario, sessions: int = 30, **options: Any) -> dict[str, np.ndarray]:
    options = {"users": "synthetic", "seed": 0} | options
    return play(policy, env_id=ID, scenario=lite, sessions=sessions, **options)
