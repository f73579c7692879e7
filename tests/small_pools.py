"""Moments of `lite` with few candidates, so that all lists can be counted out."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario


def moments(n_sessions: int, rows: list[int] | None = None, slots: int = 6) -> dict[str, Tensor]:
    """Observations some slots into sessions; only the pool rows `rows` are left, all unused ones if None."""
    env = make_feeds("EdgeFeedRerank-v0", n_sessions, scenario=Scenario.load("lite"), users="synthetic")
    observation, _ = env.reset(seed=5)
    for _ in range(slots):
        observation, *_ = env.step(19 - observation["action_mask"][:, ::-1].argmax(1))
    tensors = to_tensors(observation)
    if rows is not None:
        kept = torch.zeros(tensors["pool"].shape[1], dtype=torch.bool)
        kept[rows] = True
        tensors["pool"] = tensors["pool"] * kept.view(1, -1, 1)
    return tensors


def stir(network: Any, seed: int = 1, size: float = 0.3) -> Any:
    """Move parameters away from initial zeros, so that every part has a say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    assert isinstance(network, nn.Module)
    return network.eval()


def all_lists(rows: list[int], k: int) -> Tensor:
    """Every list of k different rows, (lists, k)."""
    return torch.tensor(list(permutations(rows, k)))
