"""Exports fitted networks for run time: one ONNX graph, and every member's weights as safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from edgerec_gym.files import atomic_path
from edgerec_gym.simulator.graph import step_graph
from edgerec_gym.simulator.model import UserNetwork
from edgerec_gym.simulator.pack import pack


def export(networks: list[UserNetwork], features: np.ndarray, hours: np.ndarray, folder: Path) -> None:
    """Write simulator.onnx (one step, any batch size) and simulator.safetensors.

    The graph holds the weights of the first member by name. At run time, a member's weights replace them; the
    safetensors file holds these as "member0.<name>" and so on, with the weights that the kernels around the
    graph need. The same weights give the same bytes.

    Args:
        networks: the members, all of the same shape.
        features: (S, U) float32 user features of session starts.
        hours: (S,) int32 hours of session starts.
        folder: existing folder to write to.
    """
    weights = [pack(network) for network in networks]
    with atomic_path(folder / "simulator.onnx") as temporary:
        temporary.write_bytes(step_graph(networks[0], weights[0]))
    tensors = {
        f"member{k}.{name}": values for k, member in enumerate(weights) for name, values in member.items()
    }
    tensors |= {
        "starts.features": np.ascontiguousarray(features, np.float32),
        "starts.hour": hours.astype(np.int32),
    }
    with atomic_path(folder / "simulator.safetensors") as temporary:
        temporary.write_bytes(save(tensors))
