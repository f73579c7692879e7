"""How numbers are written into messages: actions as levels, item features in one of three codings.

Actions are durations in buckets, counts, speeds and flags: a share b / (n - 1) with n of 2, 3, 4, 5 or 8. All
of these are multiples of 1/84, so a byte holds them without loss, and phone, cloud and training log see the
same numbers. Users of one's own may answer with other numbers; the phone rounds these when they are made,
before anything reads them.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import Coding

LEVELS = 84  # least common multiple of 1, 2, 3, 4 and 7
CODINGS = ("float32", "float16", "uint8")
BYTES = {"float32": 4, "float16": 2, "uint8": 1}
UINT8 = 127  # steps from 0 to 1: features lie in -1..1

_VALUES = np.minimum(np.arange(256) / LEVELS, 1.0).astype(np.float32)


def to_levels(actions: np.ndarray) -> bytes:
    """Write actions in 0..1, each rounded to the next of 85 levels."""
    return np.rint(np.asarray(actions, np.float64) * LEVELS).astype(np.uint8).tobytes()


def from_levels(data: bytes) -> np.ndarray:
    """Read actions, (n,) float32; InputError if one is beyond the last level."""
    levels = np.frombuffer(data, np.uint8)
    if levels.size and levels.max() > LEVELS:
        raise InputError(f"an action has the level {levels.max()}; allowed: 0 to {LEVELS}")
    return _VALUES[levels]


def rounded(actions: np.ndarray) -> np.ndarray:
    """Return actions as they arrive, float32; those of the package's own users come back bit for bit."""
    return _VALUES[np.rint(np.asarray(actions, np.float64) * LEVELS).astype(np.uint8)]


def write_features(features: np.ndarray, coding: Coding) -> bytes:
    """Write item features, which lie in -1..1."""
    if coding == "uint8":
        steps = np.rint(np.clip(features, -1, 1) * UINT8) + UINT8 + 1
        return steps.astype(np.uint8).tobytes()
    return np.ascontiguousarray(features, coding).tobytes()


def read_features(data: bytes, shape: tuple[int, int], coding: Coding) -> np.ndarray:
    """Read item features of a shape, float32.

    Raises:
        InputError: another number of bytes, or numbers that are not finite or not in -1..1.
    """
    if len(data) != shape[0] * shape[1] * BYTES[coding]:
        raise InputError(
            f"features of {len(data)} bytes; {shape[0]} x {shape[1]} in {coding} have "
            f"{shape[0] * shape[1] * BYTES[coding]}"
        )
    if coding == "uint8":
        values = ((np.frombuffer(data, np.uint8).astype(np.float64) - UINT8 - 1) / UINT8).astype(np.float32)
    else:
        values = np.frombuffer(data, coding).astype(np.float32)
    if not (np.abs(values) <= 1 + 1e-3).all():  # false for NaN
        raise InputError("features must lie in -1..1")
    return values.reshape(shape)
