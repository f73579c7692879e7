"""Device models for ONNX Runtime, made wrong in one way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from edgerec_gym.tensors import read_tensors


def change(folder: Path, **values: Any) -> None:
    """Change fields of device.json."""
    file = folder / "device.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def spoil(folder: Path, name: str) -> None:
    """Put NaN into the weights of a graph, and record its new sha256."""
    model = onnx.load(folder / name)
    for k, weight in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(weight).copy()
        if values.dtype == np.float32 and values.size > 50:
            values[...] = np.nan
            model.graph.initializer[k].CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / name)
    seal(folder)


def seal(folder: Path) -> None:
    """Record files as they are."""
    described = json.loads((folder / "device.json").read_text())
    for name, file in (*described["graphs"].items(), ("golden", described["golden"])):
        path = folder / (f"{name}.onnx" if "engine" in file else "golden.safetensors")
        content = path.read_bytes()
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(folder, **described)


def of_graph(folder: Path, name: str, **values: Any) -> None:
    """Change what is recorded of a graph."""
    graphs = json.loads((folder / "device.json").read_text())["graphs"]
    change(folder, graphs=graphs | {name: graphs[name] | values})


def shift_golden(folder: Path, name: str) -> None:
    """Let a golden output be another, and record the file."""
    file = folder / "golden.safetensors"
    tensors = read_tensors(file)
    tensors[name] += 1e-3
    save_file(tensors, file)
    seal(folder)


def rename_golden(folder: Path) -> None:
    """Leave a golden output of a call that there is not."""
    file = folder / "golden.safetensors"
    save_file({"evaluator.judge/7/out/value": np.zeros(1, np.float32)}, file)
    seal(folder)


def renamed(folder: Path, name: str) -> None:
    """Record a graph under another name."""
    graphs = json.loads((folder / "device.json").read_text())["graphs"]
    change(folder, graphs={name: graphs["evaluator.judge"]})


def cut(path: Path) -> None:
    """Leave the end of a file out."""
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
