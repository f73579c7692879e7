"""Export a trained re-ranker for the phone: ONNX graphs and device.json, written completely or not at all."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym import __version__
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.runs import read_run

try:
    import onnx  # noqa: F401
    import torch
except ImportError:
    raise MissingExtraError("an export", "train") from None

from edgerec_gym.agents.export.evaluator_graphs import evaluator_graphs
from edgerec_gym.agents.export.graphs import crban_graphs, generator_graphs
from edgerec_gym.agents.lists.pointer_net import PointerNet, gumbel
from edgerec_gym.agents.lists.sequence_search import SequenceSearch
from edgerec_gym.agents.registry import AGENTS, Agent, find_agent
from edgerec_gym.agents.rerank.crban import CRBAN
from edgerec_gym.agents.rerank.reranker import Reranker
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.beam_search import BeamConfig
from edgerec_gym.device.files import DESCRIPTION, KIND, SCHEMA_VERSION
from edgerec_gym.device.session import load
from edgerec_gym.files import atomic_folder, make_folder, write_json
from edgerec_gym.scenario import Scenario

TOLD = ("agent", "seed", "steps", "hyper", "network", "logs", "scenario", "based_on")  # fields of a run
MOST_PLACES = 1000


def export(
    run: str | Path, out: str | Path, *, scenario: str | Scenario = "default", places: int | None = None
) -> dict[str, Any]:
    """Write the device model of a run.

    Args:
        run: folder of a CRBAN, a generator (pointer, pointer-...) or a sequence search.
        out: folder to write; an earlier export there is replaced.
        scenario: the scenario that the phone serves; its sizes must be those of the run.
        places: K, maximum number of cards in a list; default: the scenario's slate_size.

    Returns:
        The content of device.json.

    Raises:
        InputError: a run of another agent, of other sizes, or broken; or `out` holds something else.
    """
    place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    trained = read_run(run)
    agent = find_agent(trained.agent)
    if agent.graphs is None:
        allowed = ", ".join(name for name, known in AGENTS.items() if known.graphs is not None)
        raise InputError(
            f"{run} holds the agent {agent.name!r}, which cannot be exported to a device; allowed: {allowed}"
        )
    network = agent.code("load_network")(trained, place.config)
    told = {key: trained.record[key] for key in TOLD if key in trained.record}
    return export_network(network, out, agent, place.name, place.config, places, told)


def export_network(
    network: Reranker,
    out: str | Path,
    agent: Agent,
    scenario: str,
    config: FeedConfig,
    places: int | None = None,
    told: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the device model of a network; see :func:`export`.

    Args:
        network: a CRBAN, PointerNet or SequenceSearch.
        out: folder to write.
        agent: the agent, which decides how the network becomes graphs.
        scenario: name of the scenario.
        config: the scenario's feed.
        places: maximum K; default: the slate's.
        told: what device.json reports about the run.
    """
    places = config.slate_size if places is None else places
    if not 1 <= places <= MOST_PLACES:
        raise InputError(f"places = {places} is out of range; allowed: 1 to {MOST_PLACES}")
    _check_parameters(network)
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / DESCRIPTION).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out} holds something other than an exported model: choose another folder")
    graphs = make_graphs(agent, network, places)
    described = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "agent": agent.name,
        "scenario": scenario,
        "config": config.to_dict(),
        "places": places,
        "beams": _beams(network),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in graphs.items()},
        "bytes": sum(len(content) for content in graphs.values()),
        "run": told or {},
        "versions": {
            "edgerec_gym": __version__,
            **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        },
    }
    make_folder(out.parent)
    with atomic_folder(out) as temporary:
        for name, content in graphs.items():
            (temporary / name).write_bytes(content)
        write_json(temporary / DESCRIPTION, described)
        load(temporary)  # never hand out what cannot be loaded
    return described


def make_graphs(agent: Agent, network: Reranker, places: int) -> dict[str, bytes]:
    """The graphs of an agent's network by file name."""
    if agent.graphs is None:
        raise InputError(f"a {type(network).__name__} cannot be exported to a device")
    parts: dict[str, dict[str, bytes]] = agent.code("graphs")(network, places)
    return {
        f"{name}.{graph}.onnx": content for name, graphs in parts.items() for graph, content in graphs.items()
    }


def crban_parts(network: CRBAN, places: int) -> dict[str, dict[str, bytes]]:
    """Graphs of CRBAN."""
    return {"crban": crban_graphs(network)}


def pointer_parts(network: PointerNet, places: int) -> dict[str, dict[str, bytes]]:
    """Graphs of a generator that decodes its most probable list."""
    noise = np.zeros((1, places, network.config.pool_size), np.float32)
    return {"generator": generator_graphs(network, noise)}


def search_parts(network: SequenceSearch, places: int) -> dict[str, dict[str, bytes]]:
    """Graphs of a sequence search: its generator, if it has one, and its evaluator."""
    parts: dict[str, dict[str, bytes]] = {}
    if network.generator is not None:
        settings = network.search_settings
        noise = search_noise(settings.seed, settings.samples, places, network.config.pool_size)
        parts["generator"] = generator_graphs(network.generator, noise)
    return parts | {"evaluator": evaluator_graphs(network.evaluator)}


def search_noise(seed: int, samples: int, places: int, pool_size: int) -> np.ndarray:
    """Noise (1 + samples, K, N) for a sequence search's lists in one session: zero, then its own draws."""
    generator = torch.Generator().manual_seed(seed)
    noise = np.zeros((1 + samples, places, pool_size), np.float32)
    for at in np.ndindex(samples, places):
        noise[1 + at[0], at[1]] = gumbel((1, pool_size), generator)[0]
    return noise


def _beams(network: Reranker) -> dict[str, Any] | None:
    if not isinstance(network, SequenceSearch):
        return None
    s = network.search_settings
    return BeamConfig(beams=s.beams, candidates=s.candidates, stability=s.stability, every=s.every).to_dict()


def _check_parameters(network: Reranker) -> None:
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"parameter {name!r} is not finite; the network cannot be exported")
