"""Write fitted networks for the run time: one ONNX graph, and one safetensors file with every member's weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from edgerec_gym.atomic import atomic_path
from edgerec_gym.errors import MissingExtraError
from edgerec_gym.simulator.model import UserNetwork

INPUTS = ("slot", "state")
OUTPUTS = ("response", "new_state")
OPSET = 20


def export(networks: list[UserNetwork], features: np.ndarray, hours: np.ndarray, folder: Path) -> None:
    """Write simulator.onnx (one step, dynamic batch) and simulator.safetensors.

    The graph holds the weights of the first member under their names; the others take their place at run
    time. Files are the same, byte for byte, for the same weights and package versions.

    Args:
        networks: the members.
        features: (S, U) float32 user features of session starts.
        hours: (S,) int32 their hours.
        folder: where to write; it must exist.
    """
    graph = _step_graph(networks[0])
    with atomic_path(folder / "simulator.onnx") as temporary:
        temporary.write_bytes(graph)
    tensors = {
        f"member{k}.{name}": np.ascontiguousarray(value.numpy())
        for k, network in enumerate(networks)
        for name, value in network.state_dict().items()
    }
    tensors["answer"] = np.array([networks[0].answer.start, networks[0].answer.stop], np.int32)
    tensors |= {"starts.features": features.astype(np.float32), "starts.hour": hours.astype(np.int32)}
    with atomic_path(folder / "simulator.safetensors") as temporary:
        save_file(tensors, temporary)


def _step_graph(network: UserNetwork) -> bytes:
    """Export one step, without the traces and paths that exporters leave in it."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtraError("exporting users", "train") from None
    example = (torch.rand(3, sum(network.slot_sizes)), torch.zeros(3, network.state_size))
    batch = torch.export.Dim("batch", min=1)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                example,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_shapes={name: {0: batch} for name in INPUTS},
                dynamo=True,
                opset_version=OPSET,
                optimize=False,  # folding would bake the first member's weights into constants
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    model = program.model_proto
    model.doc_string = model.producer_name = model.producer_version = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "simulator", ""
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
