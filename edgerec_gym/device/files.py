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
from typing import Annotated, Any, NoReturn

import onnxruntime as ort
from msgspec import Meta

from edgerec_gym.config import FeedConfig
from edgerec_gym.device.beam_search import Arrays, BeamConfig, BeamSearch
from edgerec_gym.documents import MOST_BYTES, OpenDocument, check_version, config_from, read_object
from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import read_bytes
from edgerec_gym.onnx_check import read_graph
from edgerec_gym.spaces import observation_layout

DESCRIPTION = "device.json"
KIND, SCHEMA_VERSION = "edgerec_gym device model", 1
MOST_PLACES = 1000  # cards in a list; a pool has no more
SEQUENCES = ("exposures", "page_views")
NETWORKS: dict[str, tuple[str, ...]] = {  # the graphs of each network, besides those of the events
    "crban": ("scores",),
    "generator": ("lists",),
    "evaluator": ("encode", "extend", "judge"),
}
EVENT_INPUTS, EVENT_OUTPUTS = ("row", "hidden"), ("key", "value", "new_hidden")
MOST_SIZE = 100_000  # of a dimension
CRBAN, GENERATOR, EVALUATOR = NETWORKS
LOOPS = {"generator.lists.onnx": 1}  # loops in a graph; one that writes a list runs once for each place


class Description(OpenDocument):
    """The content of device.json."""

    kind: str
    schema_version: int
    agent: str
    scenario: str
    config: dict[str, Any]
    places: Annotated[int, Meta(ge=1, le=MOST_PLACES)]
    beams: dict[str, Any] | None
    sha256: dict[str, str]
    bytes: Annotated[int, Meta(ge=0)]
    run: dict[str, Any]
    versions: dict[str, str]


class Outputs(dict[str, Any]):
    """What a graph answers, by name; a name that it lacks raises InputError."""

    def __init__(self, path: Path, names: list[str], values: list[Any]) -> None:
        super().__init__(zip(names, values, strict=True))
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise InputError(f"{self.path} has no output {name!r}; it has {shown(', '.join(self))}")


class DeviceGraph:
    """One graph, loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_graph(path, loops=LOOPS.get(path.name, 0)).content
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.inputs = {node.name: node.shape for node in self.session.get_inputs()}
        self.outputs = {node.name: node.shape for node in self.session.get_outputs()}
        self._names = list(self.outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the graph; inputs that it does not have are ignored."""
        try:
            feeds = {name: inputs[name] for name in self.inputs}
        except KeyError as error:
            allowed = shown(", ".join(sorted(inputs)))
            raise InputError(f"{self.path} has an input {error}; allowed: {allowed}") from None
        try:
            return Outputs(self.path, self._names, self.session.run(None, feeds))
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise InputError(f"{self.path} does not run: {str(error).splitlines()[0]}") from None


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
        file = self.folder / DESCRIPTION
        self.config = config_from(FeedConfig, described["config"], file, "config")
        beams = config_from(BeamConfig, described["beams"] or {}, file, "beams")
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
            for name in SEQUENCES:
                if name in graphs:
                    self._check_event(f"{network}.{name}.onnx", graphs[name])
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

    def _check_event(self, name: str, graph: DeviceGraph) -> None:
        """Raise InputError unless a graph adds one event, with sizes that memory can be allocated for."""
        for nodes, needed in ((graph.inputs, EVENT_INPUTS), (graph.outputs, EVENT_OUTPUTS)):
            for node in needed:
                shape = nodes.get(node)
                if not shape or not all(isinstance(size, int) and 1 <= size <= MOST_SIZE for size in shape):
                    raise InputError(
                        f"{self.folder / name}: {node!r} has the shape {shape}; allowed: fixed sizes"
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
    described = read_object(file)
    if described.get("kind") != KIND:
        raise InputError(f"{file} does not describe a device model (kind is {shown(described.get('kind'))})")
    check_version(file, read_object(file, Description)["schema_version"], SCHEMA_VERSION)
    if not described["sha256"]:
        raise InputError(f"{file} names no graphs")
    for name, recorded in described["sha256"].items():
        if name.count(".") != 2 or name.split(".")[0] not in NETWORKS or not name.endswith(".onnx"):
            raise InputError(f"{file} names an unknown graph {shown(name)}")
        if hashlib.sha256(read_bytes(folder / name, MOST_BYTES)).hexdigest() != recorded:
            raise InputError(
                f"{folder / name} is corrupted: its content differs from what {file.name} recorded"
            )
    return described
