"""The files of a device model: checks, and loading into engines.

A device model is a folder, written by :func:`~edgerec_gym.agents.export.export.export` (`edgerec export`):

| file | content |
| --- | --- |
| device.json | :class:`~edgerec_gym.device.description.Description` |
| golden.safetensors | what every graph must answer (:mod:`edgerec_gym.device.golden`) |
| <network>.<sequence>.* | one event of the exposures or page views |
| crban.scores.* | scores of the candidates |
| generator.encode, .step.* | the generator, in steps (:mod:`edgerec_gym.device.list_decoder`) |
| evaluator.encode, .extend, .judge.* | the evaluator, in steps (:mod:`edgerec_gym.device.beam_search`) |
| scorer.scores.* | scores of the candidates by a re-ranker that reads no behaviour |
| values.values.* | values of pool rows and cards |
| esan.matrix.* | outcomes of cards and goods at the slots ahead |
| uplift.gain, dqn.gain.* | gain of a request |
| ppo.logits.* | logits of all actions |
| edgerec.order, .matrix, .gain.* | the three decisions of the whole agent |
| rules.toml | rules of the whole agent |

Graphs end in .onnx for ONNX Runtime and in .mnn for MNN.
"""

from __future__ import annotations

from pathlib import Path

from edgerec_gym.config import FeedConfig
from edgerec_gym.device import golden
from edgerec_gym.device.beam_search import BeamConfig, BeamSearch
from edgerec_gym.device.description import (
    DESCRIPTION,
    EVALUATOR,
    GENERATOR,
    GOLDEN,
    NETWORKS,
    SEQUENCES,
    digest_of,
    feature_digest,
    file_name,
    read_description,
    read_file,
)
from edgerec_gym.device.graph import DeviceGraph
from edgerec_gym.device.list_decoder import ListDecoder
from edgerec_gym.documents import config_from
from edgerec_gym.errors import InputError
from edgerec_gym.spaces import observation_layout
from edgerec_gym.tensors import read_tensors

EVENT_INPUTS, EVENT_OUTPUTS = ("row", "hidden"), ("key", "value", "new_hidden")
OBSERVED = ("user", "context", "pool", "cards", "screen")  # keys that graphs of decisions read as they are


class DeviceModel:
    """An exported agent, checked and loaded; its sessions share it.

    :func:`~edgerec_gym.device.session.load` also checks that its graphs answer as recorded.

    Args:
        folder: the folder of the export.

    Attributes:
        described: the content of device.json.
        digest: sha256 of device.json, which stands for the folder.
        agent: the agent of the exported run.
        config: the feed that it was made for.
        places: K, maximum number of cards in a list.
        sizes: shapes of what it reads, by observation key.
        graphs: by network and name.
        bytes: total size of the folder's files.
        search: beam search of a sequence search, else None.
        decoder: list decoder of a generator, else None.

    Raises:
        InputError: a file is missing, broken, or of another version; names the file.
        MissingExtraError: an engine is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / DESCRIPTION
        self.digest = digest_of(self.folder)
        self.described = described = read_description(self.folder)
        self.agent, self.places = described.agent, described.places
        self.config = config_from(FeedConfig, described.config, file, "config")
        if described.features != feature_digest(self.config):
            raise InputError(f"{file}: features is not the digest of what a model for this config reads")
        beams = config_from(BeamConfig, described.beams or {}, file, "beams")
        self.sizes = {key: part.shape for key, part in observation_layout(self.config, "joint").items()}
        self.graphs: dict[str, dict[str, DeviceGraph]] = {}
        for name, graph in described.graphs.items():
            network, _, part = name.partition(".")
            path = self.folder / file_name(name, graph.engine)
            content = read_file(path, graph)
            loaded = DeviceGraph(path, graph.engine, content, graph.inputs, graph.outputs)
            self.graphs.setdefault(network, {})[part] = loaded
        for name, recorded in described.files.items():
            read_file(self.folder / name, recorded)
        self.bytes = file.stat().st_size + described.bytes
        self._check_graphs()
        self.search: BeamSearch | None = None
        self.decoder: ListDecoder | None = None
        if EVALUATOR in self.graphs:
            evaluator = self.graphs[EVALUATOR]
            self.search = BeamSearch(evaluator["extend"], evaluator["judge"], self.config.lookahead, beams)
        if GENERATOR in self.graphs:
            self.decoder = ListDecoder(self.graphs[GENERATOR]["step"])

    def check_golden(self) -> None:
        """Raise InputError unless every graph answers the golden inputs as recorded."""
        path = self.folder / GOLDEN
        read_file(path, self.described.golden)
        try:
            calls = golden.from_tensors(read_tensors(path))
        except InputError as error:
            raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
        for network, graphs in self.graphs.items():
            for name, graph in graphs.items():
                key = f"{network}.{name}"
                golden.check_graph(graph, calls.get(key, []), self.described.graphs[key].tolerance)

    def _check_graphs(self) -> None:
        """Raise InputError if graphs are missing, or were made for other sizes than those in device.json."""
        for network, graphs in self.graphs.items():
            for name in SEQUENCES:
                for port in self._events(graphs[name]) if name in graphs else ():
                    graphs[name].fixed(port)
            read = {key for graph in graphs.values() for key in graph.inputs}
            events = (name for name in SEQUENCES if {f"{name}.keys", f"{name}.codes"} & read)
            for name in (*NETWORKS[network], *events):
                if name not in graphs:
                    raise InputError(f"{self.folder / DESCRIPTION} lacks the graph {network}.{name}")
            for name, graph in graphs.items():
                for key, found in self._expected(network, name, graph).items():
                    if graph.inputs.get(key) != found:
                        raise InputError(
                            f"{graph.path}: input {key!r} has the shape {graph.inputs.get(key)}; the sizes "
                            f"in {DESCRIPTION} need {found}"
                        )

    @staticmethod
    def _events(graph: DeviceGraph) -> tuple[str, ...]:
        """Ports of a graph that adds one event."""
        if "codes" not in graph.outputs:
            return (*EVENT_INPUTS, *EVENT_OUTPUTS)
        return ("row", "codes", "hidden", "new_hidden") if "hidden" in graph.inputs else ("row", "codes")

    def _expected(self, network: str, name: str, graph: DeviceGraph) -> dict[str, list[int | str]]:
        """Shapes of inputs that follow from the feed's sizes and from the graphs of events."""
        sizes, expected = self.sizes, dict[str, list[int | str]]()
        if name in SEQUENCES:
            expected["row"] = [1, sizes[name][1]]
            if "codes" in graph.outputs:
                windows = graph.fixed("codes")[0]
                if windows not in (1, sizes[name][0]):
                    raise InputError(
                        f"{graph.path}: 'codes' has {windows} windows; allowed: 1 or {sizes[name][0]}, the "
                        f"rows of {name}"
                    )
                if "hidden" in graph.inputs:
                    states, _, hidden = graph.fixed("hidden")
                    expected["hidden"] = [states, windows, hidden]
            return expected
        if "candidates" in graph.inputs:
            expected["candidates"] = ["n", sizes["pool"][1]]
            for key in ("user", "context"):
                expected[key] = [1, *sizes[key]]
        for key in graph.inputs:
            sequence, _, part = key.partition(".")
            if key in OBSERVED and key in sizes:
                expected[key] = [1, *sizes[key]] if len(sizes[key]) == 1 else [*sizes[key]]
            elif part == "codes":
                width = self.graphs[network][sequence].fixed("codes")[1]
                expected[key] = [sizes[sequence][0], width]
            elif part == "present":
                expected[key] = [sizes[sequence][0]]
            elif part == "rows":
                expected[key] = [*sizes[sequence]]
        return expected
