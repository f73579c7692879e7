"""Record the golden calls of a model: what its graphs are asked in a short session, and what they answer."""

from __future__ import annotations

import numpy as np

from edgerec_gym.device.description import DQN, EDGEREC, ESAN, NETWORKS, PPO, SEQUENCES, UPLIFT, VALUES
from edgerec_gym.device.engines.engine import Arrays
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.golden import Calls
from edgerec_gym.device.graph import DeviceGraph
from edgerec_gym.device.session import DeviceSession
from edgerec_gym.spaces import CONTEXT

SLOT = CONTEXT.index("slot")
DECISIONS = (VALUES, ESAN, UPLIFT, DQN, PPO, EDGEREC)
NOW = 0.3  # slot of the re-rankings and decisions, / max_slots
CARDS = (4, 7)  # left in the pool at the two re-rankings: few, since the phone stores the calls


def record_calls(model: DeviceModel, seed: int = 0) -> dict[str, Calls]:
    """Play a short session with drawn events and observations.

    Returns:
        The first and the last call of every graph by `<network>.<graph>`; their sizes differ wherever a call
        chooses them.
    """
    rng = np.random.default_rng(seed)
    calls: dict[str, Calls] = {}
    for network, graphs in model.graphs.items():
        for name, graph in graphs.items():
            calls[f"{network}.{name}"] = []
            _listen(graph, calls[f"{network}.{name}"])
    session = DeviceSession(model)
    for cards in CARDS:
        for name in SEQUENCES:
            for _ in range(cards):
                row = rng.uniform(0.05, 0.95, model.sizes[name][1]).astype(np.float32)
                row[-1] = rng.uniform(0.8, 1.0) * NOW  # the event's slot: what has happened lies in the past
                session.append(name, row)
        shapes = {key: shape for key, shape in model.sizes.items() if key != "action_mask"}
        observation = {key: rng.uniform(0.05, 0.95, shape) for key, shape in shapes.items()}
        observation["pool"][cards:] = 0
        observation["context"][SLOT] = NOW
        if session.scorer is not None or model.decoder is not None or model.search is not None:
            session.rerank(observation)
        for network, graphs in model.graphs.items():
            if network in DECISIONS:
                for name in NETWORKS[network]:
                    told = _drawn(graphs[name], model, cards, rng)
                    session.decide(network, name, observation, **told)
    return {name: several[:1] + several[1:][-1:] for name, several in calls.items()}


def _drawn(graph: DeviceGraph, model: DeviceModel, cards: int, rng: np.random.Generator) -> Arrays:
    """Inputs of a decision that neither the observation nor what is kept gives."""
    return {
        name: rng.uniform(0.05, 0.95, [size if isinstance(size, int) else cards for size in shape]).astype(
            np.float32
        )
        for name, shape in graph.inputs.items()
        if name not in model.sizes and "." not in name
    }


def _listen(graph: DeviceGraph, calls: Calls) -> None:
    run = graph.run

    def listening(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        copies = [{name: value.copy() for name, value in arrays.items()} for arrays in (inputs, outputs)]
        calls.append((copies[0], copies[1]))
        return outputs

    graph.run = listening
