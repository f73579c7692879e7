"""What an agent becomes on a device, agent by agent: graphs, and what else decides there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Parts:
    """The parts of a device model.

    Attributes:
        graphs: ONNX models by network and name.
        beams: settings of a sequence search's beams.
        settings: what else the agent decides by, by network (:mod:`edgerec_gym.agents.device.settings`).
        files: further files by name.
    """

    graphs: dict[str, dict[str, bytes]]
    beams: dict[str, Any] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def by_name(self) -> dict[str, bytes]:
        """The graphs by `<network>.<graph>`."""
        return {
            f"{network}.{name}": content
            for network, graphs in self.graphs.items()
            for name, content in graphs.items()
        }
