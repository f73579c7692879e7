"""What must hold for every observation and action, whoever made them."""

from __future__ import annotations

from typing import Any

import numpy as np


class Harm(Exception):
    """Something that was accepted has given a value that is wrong."""


def check_observation(observation: dict[str, np.ndarray], space: Any) -> None:
    """Raise Harm unless every row of a batch of observations lies in the Dict space of one environment."""
    if set(observation) != set(space.spaces):
        raise Harm(f"observation has the keys {sorted(observation)}, not {sorted(space.spaces)}")
    for key, values in observation.items():
        box: Any = space.spaces[key]
        if values.shape[1:] != box.shape or values.dtype != box.dtype:
            raise Harm(f"{key} is {values.dtype} {values.shape[1:]}, not {box.dtype} {box.shape}")
        wrong = ~((values >= box.low) & (values <= box.high))  # also NaN
        if wrong.any():
            row, *place = np.argwhere(wrong)[0].tolist()
            raise Harm(f"{key}{place} of row {row} is {values[(row, *place)]}, outside the space")
    if not observation["action_mask"].any(axis=1).all():
        raise Harm("a row has no legal action")


def check_actions(actions: Any, mask: np.ndarray) -> None:
    """Raise Harm unless a policy's actions, (B,) whole numbers, are legal."""
    actions = np.asarray(actions)
    if actions.shape != mask.shape[:1] or actions.dtype.kind not in "iu":
        raise Harm(f"actions are {actions.dtype} {actions.shape}")
    rows = np.arange(len(mask))
    inside = (actions >= 0) & (actions < mask.shape[1])
    if not inside.all() or not mask[rows, actions].all():
        raise Harm(f"illegal actions {actions}")
