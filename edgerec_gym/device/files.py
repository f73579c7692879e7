"""The files of an exported re-ranker: checks, and loading for ONNX Runtime.

A device model is a folder, written by :func:`~edgerec_gym.agents.export.export.export` (`edgerec export`):

| file | content |
| --- | --- |
| device.json | schema version, agent, scenario and its sizes, K, sha256 of the graphs, origin |
| <network>.<sequence>.onnx | one event of the exposures or page views |
| crban.scores.onnx | scores of the candidates |
| generator.lists.onnx | the greedy list and those sampled from the generator |
| evaluator.encode, .extend, .judge.onnx | the evaluator, in steps (:mod:`edgerec_gym.device.beam_search`) |
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgerec_gym.config import FeedConfig
from edgerec_gym.device.beam_search import Arrays, BeamConfig, BeamSearch
from edgerec_gym.errors import InputError
from edgerec_gym.files import read_json
from edgerec_gym.spaces import observation_layout

DESCRIPTION = "device.json"
KIND, SCHEMA_VERSION = "edgerec_gym device model", 1
FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "schema_version": int,
    "agent": str,
    "scenario": str,
    "config": dict,
    "places": int,
    "beams": (dict, type(None)),
    "sha256": dict,
    "bytes": int,
    "run": dict,
    "versions": dict,
}
SEQUENCES = ("exposures", "page_views")
NETWORKS: dict[str, tuple[str, ...]] = {  # the graphs of each network, besides those of the events
    "crban": ("scores",),
    "generator": ("lists",),
    "evaluator": ("encode", "extend", "judge"),
}
CRBAN, GENERATOR, EVALUATOR = NETWORKS


class DeviceGraph:
    """One graph, loaded."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.inputs = {node.name: node.shape for node in self.session.get_inputs()}
        self.outputs = {node.name: node.shape for node in self.session.get_outputs()}
        self._names = list(self.outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the graph; inputs that it does not have are ignored."""
        feeds = {name: inputs[name] for name in self.inputs}
        return dict(zip(self._names, self.session.run(None, feeds), strict=True))


class DeviceModel:
    """An exported re-ranker, checked and loaded; its sessions share it.

    Args:
        folder: the folder of the export.

    Attributes:
        agent: the agent of the exported run.
        config: the feed that it was made for.
        places: K, maximum number of cards in a list.
        bytes: total size of the graphs.

    Raises:
        InputError: a file is missing, broken, of another version, or not finite; names the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        described = read_description(self.folder)
        self.described, self.agent, self.places = described, described["agent"], described["places"]
        try:
            self.config = FeedConfig.from_dict(described["config"])
            beams = BeamConfig.from_dict(described["beams"] or {})
        except InputError as error:
            raise InputError(f"{self.folder / DESCRIPTION}: {error}") from None
        self.sizes = {key: part.shape for key, part in observation_layout(self.config, "joint").items()}
        self.graphs: dict[str, dict[str, DeviceGraph]] = {}
        for name in described["sha256"]:
            network, graph, _ = name.split(".")
            self.graphs.setdefault(network, {})[graph] = DeviceGraph(self.folder / name)
        self.bytes = sum((self.folder / name).stat().st_size for name in described["sha256"])
        self._check_graphs()
        self.search: BeamSearch | None = None
        if EVALUATOR in self.graphs:
            evaluator = self.graphs[EVALUATOR]
            lookahead = self.config.lookahead
            self.search = BeamSearch(evaluator["extend"], evaluator["judge"], lookahead, beams)

    def _check_graphs(self) -> None:
        """Raise InputError if graphs are missing, or were made for other sizes than those in device.json."""
        for network, graphs in self.graphs.items():
            read = {key for graph in graphs.values() for key in graph.inputs}
            events = (name for name in SEQUENCES if f"{name}.keys" in read)
            for name in (*NETWORKS[network], *events):
                if name not in graphs:
                    raise InputError(f"{self.folder / DESCRIPTION} lacks the graph {network}.{name}.onnx")
            for name, graph in graphs.items():
                for key, found in self._expected(name, graph).items():
                    if graph.inputs.get(key) != found:
                        raise InputError(
                            f"{self.folder / f'{network}.{name}.onnx'}: input {key!r} has the shape "
                            f"{graph.inputs.get(key)}; the sizes in {DESCRIPTION} need {found}"
                        )

    def _expected(self, name: str, graph: DeviceGraph) -> dict[str, list[int | str]]:
        """Input shapes of a graph that follow from the feed's sizes."""
        if name in SEQUENCES:
            return {"row": [1, self.sizes[name][1]]}
        if "candidates" not in graph.inputs:
            return {}
        expected: dict[str, list[int | str]] = {
            "candidates": ["n", self.sizes["pool"][1]],
            "user": [1, *self.sizes["user"]],
            "context": [1, *self.sizes["context"]],
        }
        return expected | ({"screen": [*self.sizes["screen"]]} if "screen" in graph.inputs else {})


def read_description(folder: Path) -> dict[str, Any]:
    """Read device.json and check the files that it names; InputError says what is wrong."""
    file = folder / DESCRIPTION
    described = read_json(file)
    if described.get("kind") != KIND:
        raise InputError(f"{file} does not describe a device model (kind is {described.get('kind')!r})")
    if described.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{file} has schema version {described.get('schema_version')!r}; "
            f"this version reads {SCHEMA_VERSION}"
        )
    for name, kind in FIELDS.items():
        if not isinstance(described.get(name), kind):
            raise InputError(f"{file}: {name!r} is missing or has the wrong type: {described.get(name)!r}")
    if not described["sha256"]:
        raise InputError(f"{file} names no graphs")
    for name, recorded in described["sha256"].items():
        if name.count(".") != 2 or name.split(".")[0] not in NETWORKS or not name.endswith(".onnx"):
            raise InputError(f"{file} names an unknown graph {name!r}")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} does not exist")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != recorded:
            raise InputError(
                f"{folder / name} is corrupted: its content differs from what {file.name} recorded"
            )
    return described
