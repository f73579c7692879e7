"""Export a trained agent for the phone: its graphs, in a folder that says all about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.runs import Run, read_run

try:
    import onnx  # noqa: F401
    import torch
except ImportError:
    raise MissingExtraError("an export", "train") from None

from edgerec_gym.agents.export.evaluator_graphs import evaluator_graphs
from edgerec_gym.agents.export.folder import Packer, Told, float32_for, write_model
from edgerec_gym.agents.export.graphs import crban_graphs, generator_graphs
from edgerec_gym.agents.export.parts import Parts
from edgerec_gym.agents.lists.pointer_net import PointerNet, gumbel
from edgerec_gym.agents.lists.sequence_search import SequenceSearch
from edgerec_gym.agents.registry import AGENTS, Agent, find_agent
from edgerec_gym.agents.rerank.crban import CRBAN
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.beam_search import BeamConfig
from edgerec_gym.device.description import MOST_PLACES, Origin
from edgerec_gym.device.engines.engine import REFERENCE
from edgerec_gym.scenario import Scenario

TOLD = (
    "agent",
    "seed",
    "steps",
    "hyper",
    "network",
    "compression",
    "logs",
    "scenario",
    "based_on",
)  # fields of a run


def export(
    run: str | Path,
    out: str | Path,
    *,
    scenario: str | Scenario = "default",
    places: int | None = None,
    engine: str = REFERENCE.name,
    pack: Packer | None = None,
) -> dict[str, Any]:
    """Write the device model of a run.

    Args:
        run: folder of a run of any agent that plays.
        out: folder to write; an earlier export there is replaced.
        scenario: the scenario that the phone serves; its sizes must be those of the run.
        places: K, maximum number of cards in a list; default: the scenario's slate_size.
        engine: engine that runs the graphs on the phone, a name of
            :data:`~edgerec_gym.device.engines.engine.ENGINES`.
        pack: how graphs are stored, in place of float32 graphs for that engine.

    Returns:
        The content of device.json.

    Raises:
        InputError: a run of another agent, of other sizes, or broken; an unknown engine; a graph that
            answers otherwise in that engine; or `out` holds something else.
        MissingExtraError: the engine is not installed.
    """
    place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    trained = read_run(run)
    agent = check_exported(trained)
    load = agent.code("load_whole") or agent.code("load_network")
    network = load(trained, place.config)
    told = {key: trained.record[key] for key in TOLD if key in trained.record}
    return export_network(network, out, agent, place.name, place.config, places, told, engine, pack)


def check_exported(run: Run) -> Agent:
    """Return the agent of a run; InputError if it has no form for a device."""
    agent = find_agent(run.agent)
    if agent.graphs is None:
        allowed = ", ".join(name for name, known in AGENTS.items() if known.graphs is not None)
        why = f": {agent.not_exported}" if agent.not_exported else ""
        raise InputError(
            f"{run.folder} holds the agent {agent.name!r}, which cannot be exported to a device{why}; "
            f"allowed: {allowed}"
        )
    return agent


def export_network(
    network: Any,
    out: str | Path,
    agent: Agent,
    scenario: str,
    config: FeedConfig,
    places: int | None = None,
    told: dict[str, Any] | None = None,
    engine: str = REFERENCE.name,
    pack: Packer | None = None,
) -> dict[str, Any]:
    """Write the device model of a network; see :func:`export`.

    Args:
        network: what the agent's `graphs` take: a network, or what its `load_whole` returns.
        out: folder to write.
        agent: the agent, which decides how the network becomes graphs.
        scenario: name of the scenario.
        config: the scenario's feed.
        places: maximum K; default: the slate's.
        told: what device.json reports about the run.
        engine: engine that runs the graphs.
        pack: how graphs are stored, in place of float32 graphs for that engine.
    """
    places = config.slate_size if places is None else places
    if not 1 <= places <= MOST_PLACES:
        raise InputError(f"places = {places} is out of range; allowed: 1 to {MOST_PLACES}")
    _check_parameters(network)
    parts = make_parts(agent, network, places)
    about = Told(
        agent.name, scenario, config, places, parts.beams, parts.settings, parts.files, Origin(run=told or {})
    )
    return write_model(out, about, parts.by_name(), pack or float32_for(engine))


def make_parts(agent: Agent, network: Any, places: int) -> Parts:
    """What an agent's network becomes on a device."""
    if agent.graphs is None:
        raise InputError(f"a {type(network).__name__} cannot be exported to a device")
    parts: Parts = agent.code("graphs")(network, places)
    return parts


def crban_parts(network: CRBAN, places: int) -> Parts:
    """Graphs of CRBAN."""
    return Parts({"crban": crban_graphs(network)})


def pointer_parts(network: PointerNet, places: int) -> Parts:
    """Graphs of a generator that decodes its most probable list."""
    noise = np.zeros((1, places, network.config.pool_size), np.float32)
    return Parts({"generator": generator_graphs(network, noise)})


def search_parts(network: SequenceSearch, places: int) -> Parts:
    """Graphs of a sequence search: its generator, if it has one, and its evaluator."""
    graphs: dict[str, dict[str, bytes]] = {}
    s = network.search_settings
    if network.generator is not None:
        noise = search_noise(s.seed, s.samples, places, network.config.pool_size)
        graphs["generator"] = generator_graphs(network.generator, noise)
    beams = BeamConfig(beams=s.beams, candidates=s.candidates, stability=s.stability, every=s.every)
    return Parts(graphs | {"evaluator": evaluator_graphs(network.evaluator)}, beams=beams.to_dict())


def search_noise(seed: int, samples: int, places: int, pool_size: int) -> np.ndarray:
    """Noise (1 + samples, K, N) for a sequence search's lists in one session: zero, then its own draws."""
    generator = torch.Generator().manual_seed(seed)
    noise = np.zeros((1 + samples, places, pool_size), np.float32)
    for at in np.ndindex(samples, places):
        noise[1 + at[0], at[1]] = gumbel((1, pool_size), generator)[0]
    return noise


def _check_parameters(network: Any) -> None:
    """Raise InputError if a parameter of the network, or of one of its parts, is not finite."""
    parts = [network] if isinstance(network, torch.nn.Module) else list(vars(network).values())
    for part in parts:
        for name, parameter in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if not torch.isfinite(parameter).all():
                raise InputError(f"parameter {name!r} is not finite; the network cannot be exported")
