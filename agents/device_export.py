"""Export a trained re-ranker for the phone: ONNX graphs and device.json, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
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

from edgerec_gym.agents import generator_runs, supervised
from edgerec_gym.agents.crban import CRBAN
from edgerec_gym.agents.device import load
from edgerec_gym.agents.device_evaluator import evaluator_graphs
from edgerec_gym.agents.device_files import DESCRIPTION, KIND, SCHEMA_VERSION
from edgerec_gym.agents.device_graphs import crban_graphs, generator_graphs
from edgerec_gym.agents.device_search import BeamConfig
from edgerec_gym.agents.pointer_net import PointerNet, gumbel
from edgerec_gym.agents.reranker import Reranker
from edgerec_gym.agents.sequence_search import SequenceSearch
from edgerec_gym.atomic import make_folder, write_json
from edgerec_gym.config import FeedConfig
from edgerec_gym.scenario import Scenario

AGENTS = ("crban", "pointer", *generator_runs.AGENTS)
TOLD = ("agent", "seed", "steps", "hyper", "network", "logs", "scenario", "based_on")  # of a run
MOST_PLACES = 1000


def export(
    run: str | Path, out: str | Path, *, scenario: str | Scenario = "default", places: int | None = None
) -> dict[str, Any]:
    """Write the device model of a run.

    Args:
        run: folder of a CRBAN, a generator (pointer, pointer-...) or a sequence search.
        out: folder to write; an earlier export there is replaced.
        scenario: that the phone serves; it gives the sizes, which must be the run's.
        places: K, cards of a list at most; default: the scenario's slate_size.

    Returns:
        The content of device.json.

    Raises:
        InputError: a run of another agent, of other sizes, or broken; `out` holds something else.
    """
    place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    folder, record = read_run(run)
    agent = record["agent"]
    if agent not in AGENTS:
        raise InputError(
            f"{run} holds the agent {agent!r}, which has no form for a device; allowed: {', '.join(AGENTS)}"
        )
    loads = generator_runs.load_network if agent in generator_runs.AGENTS else supervised.load_reranker
    network = loads(folder, place.config)
    told = {key: record[key] for key in TOLD if key in record}
    return export_network(network, out, agent, place.name, place.config, places, told)


def export_network(
    network: Reranker,
    out: str | Path,
    agent: str,
    scenario: str,
    config: FeedConfig,
    places: int | None = None,
    told: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the device model of a network; see :func:`export`.

    Args:
        network: a CRBAN, PointerNet or SequenceSearch.
        out: folder to write.
        agent: name of its kind.
        scenario: name of the scenario.
        config: of the scenario.
        places: K at most; default: the slate's.
        told: what device.json tells of the run.
    """
    places = config.slate_size if places is None else places
    if not 1 <= places <= MOST_PLACES:
        raise InputError(f"places = {places} is out of range; allowed: 1 to {MOST_PLACES}")
    _check_parameters(network)
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / DESCRIPTION).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out} holds something other than an exported model: choose another folder")
    graphs = make_graphs(network, places)
    described = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "agent": agent,
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
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        make_folder(temporary)
        for name, content in graphs.items():
            (temporary / name).write_bytes(content)
        write_json(temporary / DESCRIPTION, described)
        load(temporary)  # what cannot be loaded is not handed out
        _replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return described


def make_graphs(network: Reranker, places: int) -> dict[str, bytes]:
    """The graphs of a re-ranker by file name."""
    parts: dict[str, dict[str, bytes]] = {}
    if isinstance(network, CRBAN):
        parts["crban"] = crban_graphs(network)
    elif isinstance(network, PointerNet):
        parts["generator"] = generator_graphs(
            network, np.zeros((1, places, network.config.pool_size), np.float32)
        )
    elif isinstance(network, SequenceSearch):
        if network.generator is not None:
            settings = network.search_settings
            noise = search_noise(settings.seed, settings.samples, places, network.config.pool_size)
            parts["generator"] = generator_graphs(network.generator, noise)
        parts["evaluator"] = evaluator_graphs(network.evaluator)
    else:
        raise InputError(f"a {type(network).__name__} has no form for a device")
    return {
        f"{name}.{graph}.onnx": content for name, graphs in parts.items() for graph, content in graphs.items()
    }


def search_noise(seed: int, samples: int, places: int, pool_size: int) -> np.ndarray:
    """Noise (1 + samples, K, N) of the lists of a sequence search for one session: none, then as it draws."""
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


def _replace(temporary: Path, final: Path) -> None:
    """Rename a folder to its final name, in place of an earlier one."""
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
