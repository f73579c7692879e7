"""Re-rankers by name, as the table of agents holds them: made, and trained from logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents import registry
from edgerec_gym.agents.rerank import train as training
from edgerec_gym.agents.rerank.reranker import Reranker, RerankerConfig
from edgerec_gym.config import FeedConfig

RERANKERS: dict[str, type[Reranker]] = {
    name: registry.AGENTS[name].code("network")
    for name in registry.family(registry.RERANKER, registry.GENERATOR)
    if registry.AGENTS[name].network is not None
}


def build(agent: str, config: FeedConfig, settings: RerankerConfig, seed: int = 0) -> Reranker:
    return training.build(RERANKERS[agent], config, settings, seed)


def train(out: Path, logs: Path, *, agent: str = "crban", **options: Any) -> dict[str, Any]:
    return training.train(out, logs, agent=agent, network=RERANKERS[agent], **options)
