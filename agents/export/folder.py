"""Write the folder of a device model: graphs for an engine, golden calls and device.json, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from safetensors.numpy import save

from edgerec_gym import __version__
from edgerec_gym.agents.export.golden_calls import record_calls
from edgerec_gym.agents.export.mnn_convert import to_mnn
from edgerec_gym.config import FeedConfig
from edgerec_gym.device import golden
from edgerec_gym.device.description import (
    DESCRIPTION,
    GOLDEN,
    KIND,
    SCHEMA_VERSION,
    Description,
    File,
    GraphFile,
    Origin,
    feature_digest,
    file_name,
)
from edgerec_gym.device.engines.engine import ENGINES, REFERENCE
from edgerec_gym.device.engines.onnx_runtime import ports
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import load
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_folder, make_folder, write_json
from edgerec_gym.protocol.messages import VERSIONS

TOLERANCE = 1e-5  # of float32 graphs, relative to 1 + the size of an output


@dataclass(frozen=True)
class PackedGraph:
    """A graph as the phone stores it.

    Attributes:
        content: the file.
        engine: runs it.
        bits: of its weights: 4, 8, 16 or 32.
        tolerance: largest difference from the float32 graph's golden outputs, relative to 1 + their size.
    """

    content: bytes
    engine: str
    bits: int = 32
    tolerance: float = TOLERANCE


Packer = Callable[[str, bytes], PackedGraph]  # from a graph's name and ONNX model


def float32_for(engine: str) -> Packer:
    """Return what packs float32 graphs for an engine; InputError if there is none of the name."""
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; allowed: {', '.join(ENGINES)}")
    ENGINES[engine].check_installed()
    if engine == REFERENCE.name:
        return lambda name, graph: PackedGraph(graph, engine)
    return lambda name, graph: PackedGraph(to_mnn(graph, name), engine)


@dataclass(frozen=True)
class Told:
    """What device.json tells of a model besides its files; fields as in `Description`."""

    agent: str
    scenario: str
    config: FeedConfig
    places: int
    beams: dict[str, Any] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    base: str | None = None


def write_model(out: str | Path, told: Told, graphs: dict[str, bytes], pack: Packer) -> dict[str, Any]:
    """Write a device model, atomically; every graph passes the golden test in its engine before.

    Args:
        out: folder to write; an earlier export there is replaced.
        told: what device.json tells besides its files.
        graphs: float32 ONNX models by `<network>.<graph>`; they give the golden outputs.
        pack: how each is stored.

    Returns:
        The content of device.json.

    Raises:
        InputError: `out` holds something else, a graph cannot be converted, or fails its golden test.
        MissingExtraError: an engine is not installed.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / DESCRIPTION).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out} holds something other than an exported model: choose another folder")
    make_folder(out.parent)
    with atomic_folder(out) as temporary:
        _write(
            temporary,
            told,
            {name: PackedGraph(g, REFERENCE.name) for name, g in graphs.items()},
            graphs,
            b"-",
        )
        calls = record_calls(DeviceModel(temporary))
        for file in temporary.iterdir():
            file.unlink()
        packed = {name: pack(name, graph) for name, graph in graphs.items()}
        described = _write(temporary, told, packed, graphs, save(golden.to_tensors(calls)))
        load(temporary)  # never hand out what cannot be loaded, or answers otherwise
    return described


def _write(
    folder: Path, told: Told, packed: dict[str, PackedGraph], graphs: dict[str, bytes], golden_file: bytes
) -> dict[str, Any]:
    files = {}
    for name, graph in packed.items():
        (folder / file_name(name, graph.engine)).write_bytes(graph.content)
        inputs, outputs = ports(graphs[name])
        files[name] = GraphFile(
            **_file(graph.content),
            engine=graph.engine,
            bits=graph.bits,  # type: ignore[arg-type]
            inputs=inputs,
            outputs=outputs,
            tolerance=graph.tolerance,
        )
    for name, content_of in told.files.items():
        (folder / name).write_bytes(content_of)
    (folder / GOLDEN).write_bytes(golden_file)
    engines = sorted({ENGINES[graph.engine].package for graph in packed.values()})
    described = Description(
        kind=KIND,
        schema_version=SCHEMA_VERSION,
        agent=told.agent,
        scenario=told.scenario,
        config=told.config.to_dict(),
        places=told.places,
        beams=told.beams,
        graphs=files,
        golden=File(**_file(golden_file)),
        settings=told.settings,
        files={name: File(**_file(content_of)) for name, content_of in told.files.items()},
        bytes=len(golden_file)
        + sum(len(graph.content) for graph in packed.values())
        + sum(map(len, told.files.values())),
        features=feature_digest(told.config),
        protocol=VERSIONS,
        origin=told.origin,
        base=told.base,
        versions={
            "edgerec_gym": __version__,
            **{name: version(name) for name in ("torch", "onnx", *engines)},
        },
    )
    content: dict[str, Any] = msgspec.to_builtins(described)
    write_json(folder / DESCRIPTION, content)
    return content


def _file(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
