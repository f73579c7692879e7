"""Observations as tensors, and torch as a good guest: its threads and its generators are put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import MODEL_KEYS

TensorObservation = dict[str, Tensor]


PLAY_BATCH = 128  # sessions scored at once, to bound the memory of attention


def to_tensors(observation: Observation, rows: slice = slice(None)) -> TensorObservation:
    """Turn some rows of an observation into tensors, float32; other keys are left out."""
    return {
        key: torch.from_numpy(np.ascontiguousarray(observation[key][rows], np.float32))
        for key in MODEL_KEYS
        if key in observation
    }


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Use so many torch threads inside the block."""
    if threads < 1:
        raise InputError(f"threads = {threads} must be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def private_randomness() -> Iterator[None]:
    """Put back the global generators, which stable-baselines3 seeds and uses."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
