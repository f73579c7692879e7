"""MNN, the engine that EdgeRec ran on (Alibaba; https://github.com/alibaba/MNN).

A graph runs in sessions of MNN's interpreter, not in its module API: a session with tensors of known shapes
runs an event in .02 instead of .05 ms, and resizing it costs less than what the module does for other shapes.
Sessions know no loops, and the package's graphs have none.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.device.engines.engine import Arrays, Graph, Ports
from edgerec_gym.errors import InputError

MOST_SESSIONS = 4  # of a graph; a beam search needs three
CONFIG = {"backend": "CPU", "numThread": 1, "precision": "high"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MNN prints from C++ off the standard output, which commands print JSON to."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


with _quiet():
    import MNN

Shapes = tuple[tuple[int, ...], ...]
_LAYOUT: Any = MNN.Tensor_DimensionType_Caffe
_KINDS: dict[np.dtype, Any] = {
    np.dtype(np.float32): MNN.Halide_Type_Float,
    np.dtype(np.int32): MNN.Halide_Type_Int,
}


def load(path: Path, content: bytes, inputs: Ports, outputs: Ports) -> Graph:
    """Load an MNN file; see :meth:`~edgerec_gym.device.engines.engine.Engine.load`."""
    return _Graph(path, content, inputs, outputs)


class _Session(NamedTuple):
    """A session of the interpreter, and its input tensors by name."""

    session: Any
    inputs: dict[str, Any]


class _Graph:
    """A graph with a session for each of the last combinations of sizes, since resizing takes .4 ms."""

    def __init__(self, path: Path, content: bytes, inputs: Ports, outputs: Ports) -> None:
        self.path, self.inputs = path, list(inputs)
        self.outputs = {name: np.dtype(port.dtype) for name, port in outputs.items()}
        self.sessions: dict[Shapes, _Session] = {}  # the last used one at the end
        with tempfile.NamedTemporaryFile(suffix=".mnn") as file, _quiet():  # MNN reads nothing but files
            file.write(content)
            file.flush()
            try:
                self.interpreter = MNN.Interpreter(file.name)
                first = self._session()
                found = self.interpreter.getSessionOutputAll(first.session)
            except Exception as error:  # MNN raises plain Exception
                raise InputError(f"{path} cannot be loaded: {_one_line(error)}") from None
        for what, wanted, known in (("input", inputs, first.inputs), ("output", outputs, found)):
            for name in sorted(wanted.keys() - known.keys()):
                raise InputError(f"{path}: {what} {name!r} is missing; it has {', '.join(sorted(known))}")
        self.sessions[()] = first

    def __call__(self, arrays: Arrays) -> Arrays:
        shapes = tuple([arrays[name].shape for name in self.inputs])
        try:
            held = self.sessions.pop(shapes, None) or self._resized(shapes)
            self.sessions[shapes] = held
            for name in self.inputs:
                value = arrays[name]
                if value.dtype != np.float32:
                    value = value.astype(np.int32)
                host = MNN.Tensor(value.shape, _KINDS[value.dtype], np.ascontiguousarray(value), _LAYOUT)
                held.inputs[name].copyFrom(host)
            self.interpreter.runSession(held.session)
            return {name: self._output(held, name, dtype) for name, dtype in self.outputs.items()}
        except Exception as error:
            self.sessions.pop(shapes, None)
            raise InputError(f"{self.path} does not run: {_one_line(error)}") from None

    def _session(self) -> _Session:
        session = self.interpreter.createSession(CONFIG)
        return _Session(session, self.interpreter.getSessionInputAll(session))

    def _resized(self, shapes: Shapes) -> _Session:
        """A session for other sizes: a new one, or the one that has not been used for longest."""
        if () in self.sessions or len(self.sessions) >= MOST_SESSIONS:
            held = self.sessions.pop(next(iter(self.sessions)))
        else:
            with _quiet():
                held = self._session()
        for name, shape in zip(self.inputs, shapes, strict=True):
            self.interpreter.resizeTensor(held.inputs[name], shape)
        self.interpreter.resizeSession(held.session)
        return held

    def _output(self, held: _Session, name: str, dtype: np.dtype) -> np.ndarray:
        tensor = self.interpreter.getSessionOutput(held.session, name)
        kind = np.float32 if dtype == np.float32 else np.int32
        values = np.empty(tensor.getShape(), kind)
        host = MNN.Tensor(values.shape, _KINDS[values.dtype], values, _LAYOUT)
        tensor.copyToHostTensor(host)
        return np.array(host.getNumpyData(), dtype).reshape(values.shape)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
