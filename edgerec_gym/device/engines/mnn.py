"""MNN, the engine that EdgeRec ran on (Alibaba; https://github.com/alibaba/MNN).

A graph runs in a session of MNN's interpreter, not in its module API: a session with tensors of known shapes
runs an event in .02 instead of .05 ms, and when sizes change, resizing its tensors costs less than what the
module does. Sessions know no loops, and the package's graphs have none.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.device.engines.engine import Arrays, Graph, Ports
from edgerec_gym.errors import InputError

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

_LAYOUT: Any = MNN.Tensor_DimensionType_Caffe
_KINDS: dict[np.dtype, Any] = {
    np.dtype(np.float32): MNN.Halide_Type_Float,
    np.dtype(np.int32): MNN.Halide_Type_Int,
}


def load(path: Path, content: bytes, inputs: Ports, outputs: Ports) -> Graph:
    """Load an MNN file; see :meth:`~edgerec_gym.device.engines.engine.Engine.load`."""
    with _quiet():
        return _Session(path, content, inputs, outputs)


class _Session:
    """A graph in a session; tensors are resized when the sizes of a call differ from those before."""

    def __init__(self, path: Path, content: bytes, inputs: Ports, outputs: Ports) -> None:
        self.path = path
        with tempfile.NamedTemporaryFile(suffix=".mnn") as file:  # MNN reads files only, and checks nothing
            file.write(content)
            file.flush()
            try:
                self.interpreter = MNN.Interpreter(file.name)
                self.session = self.interpreter.createSession(CONFIG)
                found = self.interpreter.getSessionInputAll(self.session)
                outs = self.interpreter.getSessionOutputAll(self.session)
            except Exception as error:  # MNN raises plain Exception
                raise InputError(f"{path} cannot be loaded: {_one_line(error)}") from None
        for what, wanted, known in (("input", inputs, found), ("output", outputs, outs)):
            for name in sorted(wanted.keys() - known.keys()):
                raise InputError(f"{path}: {what} {name!r} is missing; it has {', '.join(sorted(known))}")
        self.tensors: dict[str, Any] = {name: found[name] for name in inputs}
        self.outputs = {name: np.dtype(port.dtype) for name, port in outputs.items()}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, arrays: Arrays) -> Arrays:
        shapes = {name: arrays[name].shape for name in self.tensors}
        try:
            if shapes != self.shapes:
                self._resize(shapes)
            for name, tensor in self.tensors.items():
                value = arrays[name]
                if value.dtype != np.float32:
                    value = value.astype(np.int32)
                host = MNN.Tensor(value.shape, _KINDS[value.dtype], np.ascontiguousarray(value), _LAYOUT)
                tensor.copyFrom(host)
            self.interpreter.runSession(self.session)
            return {name: self._output(name, dtype) for name, dtype in self.outputs.items()}
        except Exception as error:
            raise InputError(f"{self.path} does not run: {_one_line(error)}") from None

    def _resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = {}
        for name, shape in shapes.items():
            self.interpreter.resizeTensor(self.tensors[name], shape)
        self.interpreter.resizeSession(self.session)
        self.shapes = shapes

    def _output(self, name: str, dtype: np.dtype) -> np.ndarray:
        tensor = self.interpreter.getSessionOutput(self.session, name)
        kind = np.float32 if dtype == np.float32 else np.int32
        values = np.empty(tensor.getShape(), kind)
        host = MNN.Tensor(values.shape, _KINDS[values.dtype], values, _LAYOUT)
        tensor.copyToHostTensor(host)
        return np.array(host.getNumpyData(), dtype).reshape(values.shape)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
