"""Convert ONNX models for MNN, in a process that can neither reach a network nor start another one.

MNN's own scripts `mnnconvert` and `mnnquant` must never run: they install a logging package by pip and send
facts of the machine and the model to a server. Only their C++ extension is called.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from edgerec_gym.errors import InputError

MOST_SECONDS = 120.0
# A graph over a free number of candidates keeps its GRU as one node.
OPTIONS = ("-f", "ONNX", "--bizCode", "edgerec_gym", "--useOriginRNNImpl")
QUANTISED: dict[int, tuple[str, ...]] = {
    32: (),
    8: ("--weightQuantBits", "8"),
    4: ("--weightQuantBits", "4", "--weightQuantBlock", "32"),
}
OUTPUT = "graph.mnn"
ID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def to_mnn(graph: bytes, name: str, bits: int = 32) -> bytes:
    """Return an ONNX model as an MNN model; InputError names the graph if that fails.

    The same model gives the same bytes.

    Args:
        graph: the ONNX model.
        name: name of the graph, for messages.
        bits: of the weights: 8 with a scale for each output, 4 with one for each block of inputs, or 32.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "graph.onnx").write_bytes(graph)
        command = [
            "MNNConvert",
            *OPTIONS,
            *QUANTISED[bits],
            "--modelFile",
            "graph.onnx",
            "--MNNModel",
            OUTPUT,
        ]
        # -I: only what is installed is imported, nothing from this folder or PYTHONPATH.
        process = [sys.executable, "-I", str(Path(__file__).with_name("mnn_process.py")), *command]
        try:
            done = subprocess.run(
                process, cwd=folder, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{name} cannot be converted for MNN: no answer in {MOST_SECONDS:.0f} s"
            ) from None
        if done.returncode or not Path(folder, OUTPUT).is_file():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise InputError(f"{name} cannot be converted for MNN: {(lines or ['it says nothing'])[-1]}")
        converted = Path(folder, OUTPUT).read_bytes()
    # MNN draws an id for each conversion.
    own = str(uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(graph).hexdigest())).encode()
    return re.sub(ID, own, converted, count=1)
