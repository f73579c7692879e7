"""What a phone keeps of a sequence of events for networks that read codes of the last events.

A network that remembers the session from its first event (the whole agent) takes one step per event. One that
encodes the observation's history anew at every decision, always from its first row, would take a step per
row. Its codes are kept as well, exactly: the history that will be read when event n has happened begins at
event n - L + 1, so L *windows* go on side by side, each with the state of a network that has read from the
window's first event on. An event is one step of all of them, a product with L rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerec_gym.device.engines.engine import Arrays
from edgerec_gym.device.graph import DeviceGraph


@dataclass
class EventCodes:
    """Codes of the last L events of a sequence.

    Attributes:
        hidden: (states, windows, H) float32 state of the GRUs; of size 0 without any.
        codes: (windows, L, C) float32. With one window, event n is at n mod L. With L windows, window w began
            at the last event s with s mod L = w, and holds event n at n - s.
        count: number of events so far.
    """

    hidden: np.ndarray
    codes: np.ndarray
    count: int = 0

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.codes)

    @classmethod
    def of(cls, graph: DeviceGraph, length: int) -> EventCodes:
        """Nothing has happened yet; the graph gives the sizes."""
        windows, width = graph.fixed("codes")
        hidden = graph.fixed("hidden") if "hidden" in graph.inputs else [0, windows, 0]
        return cls(np.zeros(hidden, np.float32), np.zeros((windows, length, width), np.float32))

    def append(self, graph: DeviceGraph, row: np.ndarray) -> None:
        """Add one event (W,) float32."""
        windows, length, _ = self.codes.shape
        if windows > 1:
            self.hidden[:, self.count % windows] = 0  # a window begins
        out = graph({"row": row[None], "hidden": self.hidden})
        each = np.arange(windows)
        at = (self.count - each) % length
        self.codes[each, at] = out["codes"]
        if self.hidden.size:
            self.hidden = np.array(out["new_hidden"])  # its own: the next event may change it
        self.count += 1

    def read(self) -> Arrays:
        """`codes` (L, C) of the last events, the oldest first, then zeros; `present` (L,), 1 for an event."""
        windows, length, _ = self.codes.shape
        kept = min(self.count, length)
        first = self.count - kept
        if windows > 1:
            codes = self.codes[first % windows]
        else:
            codes = np.roll(self.codes[0], -(first % length), axis=0)
        return {"codes": codes, "present": (np.arange(length) < kept).astype(np.float32)}
