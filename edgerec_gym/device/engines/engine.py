"""The interface of the engines, and their table.

An engine turns the bytes of a graph's file into a function from arrays to arrays. It runs on one thread, and
neither checks what it is given nor what it returns: :class:`~edgerec_gym.device.graph.DeviceGraph` does, once
for all engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from edgerec_gym.documents import Document
from edgerec_gym.errors import MissingExtraError

MOST_SIZE = 100_000  # of a dimension

Arrays = dict[str, np.ndarray]
Graph = Callable[[Arrays], Arrays]
Size = Annotated[int, Meta(ge=1, le=MOST_SIZE)] | Annotated[str, Meta(min_length=1, max_length=80)]


class Port(Document):
    """One input or output of a graph.

    Attributes:
        shape: sizes; a name stands for one that each call chooses, the same wherever a graph has the name.
        dtype: of the elements.
    """

    shape: list[Size]
    dtype: Literal["float32", "int64"] = "float32"


Ports = Mapping[str, Port]


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        name: its name in device.json, and for `edgerec export --engine`.
        suffix: suffix of its files.
        package: its Python package.
        extra: the extra that installs it, "" if it is always there.
        loader: "module:function", called as `function(path, content, inputs, outputs)`; it returns the
            graph, or raises InputError that names `path`.
        trusting: whether a broken file may end the process or hang, so that it is tried out in another one.
    """

    name: str
    suffix: str
    package: str
    extra: str
    loader: str
    trusting: bool = False

    def check_installed(self) -> None:
        """Raise MissingExtraError if the engine is not installed."""
        if find_spec(self.package) is None:
            raise MissingExtraError(f"a model for the engine {self.name!r}", self.extra)

    def load(self, path: Path, content: bytes, inputs: Ports, outputs: Ports) -> Graph:
        """Load a graph.

        Args:
            path: the file, for messages.
            content: what the file contains.
            inputs: the graph's inputs by name.
            outputs: those of its outputs that are wanted.

        Raises:
            InputError: the file is broken, or has other inputs or outputs.
            MissingExtraError: the engine is not installed.
        """
        self.check_installed()
        graph: Graph = resolve_name(self.loader)(path, content, inputs, outputs)
        return graph


_ALL = (
    Engine("onnxruntime", "onnx", "onnxruntime", "", f"{__package__}.onnx_runtime:load"),
    Engine("mnn", "mnn", "MNN", "mnn", f"{__package__}.mnn:load", trusting=True),
)
ENGINES = {engine.name: engine for engine in _ALL}
REFERENCE = ENGINES["onnxruntime"]
