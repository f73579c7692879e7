"""One graph of a device model, loaded by its engine; what goes in and comes out is checked here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgerec_gym.device.engines.engine import ENGINES, Arrays, Ports
from edgerec_gym.errors import InputError, shown


class Outputs(dict[str, Any]):
    """What a graph answers, by name; a name that it lacks raises InputError."""

    def __init__(self, path: Path, values: Arrays) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise InputError(f"{self.path} has no output {name!r}; it has {shown(', '.join(self))}")


class DeviceGraph:
    """A function from arrays to arrays, both by name.

    Args:
        path: the graph's file, for messages.
        engine: name of the engine.
        content: content of the file.
        inputs: the graph's inputs by name.
        outputs: its outputs by name.

    Attributes:
        inputs: shapes by name; a text is a size that each call chooses.
        outputs: the same for what it returns.
        run: the engine's function, which checks nothing.

    Raises:
        InputError: the file is broken, or has other inputs or outputs.
        MissingExtraError: the engine is not installed.
    """

    def __init__(self, path: Path, engine: str, content: bytes, inputs: Ports, outputs: Ports) -> None:
        self.path = path
        self.inputs = {name: list(port.shape) for name, port in inputs.items()}
        self.outputs = {name: list(port.shape) for name, port in outputs.items()}
        self.run = ENGINES[engine].load(path, content, inputs, outputs)
        self._ports = [(name, np.dtype(port.dtype), tuple(port.shape)) for name, port in inputs.items()]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the graph; inputs that it does not have are ignored.

        Raises:
            InputError: an input is missing, or has another dtype or shape.
        """
        feeds: Arrays = {}
        sizes: dict[str, int] = {}
        for name, dtype, shape in self._ports:
            value = inputs.get(name)
            if value is None:
                allowed = shown(", ".join(sorted(inputs)))
                raise InputError(f"{self.path} has an input {name!r}; allowed: {allowed}")
            if value.dtype != dtype or value.ndim != len(shape):
                self._refuse(name, value)
            if value.shape != shape:  # some sizes are chosen by the call, or wrong
                for size, wanted in zip(value.shape, shape, strict=True):
                    if size != (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size)):
                        self._refuse(name, value)
            feeds[name] = value
        return Outputs(self.path, self.run(feeds))

    def fixed(self, port: str) -> tuple[int, ...]:
        """Return the shape of an input or output whose sizes no call chooses; InputError if one does."""
        shape = self.inputs.get(port, self.outputs.get(port))
        if shape is None or not all(isinstance(size, int) for size in shape):
            raise InputError(f"{self.path}: {port!r} has the shape {shape}; allowed: fixed sizes")
        return tuple(size for size in shape if isinstance(size, int))

    def _refuse(self, name: str, value: np.ndarray) -> NoReturn:
        dtype = next(dtype for known, dtype, _ in self._ports if known == name)
        raise InputError(
            f"{self.path}: input {name!r} is {value.dtype} {list(value.shape)}; allowed: {dtype} "
            f"{self.inputs[name]}"
        )
