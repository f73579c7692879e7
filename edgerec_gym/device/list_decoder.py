"""The list generator as a phone runs it: one card after the other, for all lists at once.

The loop stands here and not in a graph: MNN runs ONNX loops wrongly, and a step keeps every size fixed.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.device.engines.engine import Arrays, Graph

TAKEN = -1e9  # added to the logit of a card that a list has


class ListDecoder:
    """Decode lists from encoded candidates; see :mod:`edgerec_gym.agents.export.graphs`.

    Args:
        step: graph that weighs the cards for the next place.
    """

    def __init__(self, step: Graph) -> None:
        self.step = step

    def __call__(self, encoded: Arrays, length: int) -> np.ndarray:
        """Decode the most probable list and, if the generator samples, further ones.

        Args:
            encoded: outputs of the generator's graph `encode`, n cards.
            length: at most n.

        Returns:
            (S, length) int64 candidates; the first list is the most probable one.
        """
        noise = encoded.get("noise")
        n_lists, n = 1 if noise is None else noise.shape[1], len(encoded["codes"])
        lists, every = np.zeros((n_lists, length), np.int64), np.arange(n_lists)
        state, read = (np.repeat(encoded[name], n_lists, axis=0) for name in ("start", "first"))
        taken, added = np.zeros((n_lists, n), np.float32), np.repeat(encoded["prior"], n_lists, axis=0)
        fixed = {name: encoded[name] for name in ("codes", "glimpse", "pointer") if name in encoded}
        for place in range(length):
            more = added if noise is None else added + noise[place]
            out = self.step(fixed | {"state": state, "read": read, "taken": taken, "added": more})
            card = out["logits"].argmax(axis=1)
            state, read = out["new_state"], encoded["codes"][card]
            taken[every, card] = TAKEN
            lists[:, place] = card
        return lists
