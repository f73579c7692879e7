"""Convert observations to tensors, and restore torch threads and global random generators after use."""

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
    """Convert some rows of an observation to float32 tensors, keeping only the keys that models read."""
    return {
        key: torch.from_numpy(np.array(observation[key][rows], np.float32, order="C"))
        for key in MODEL_KEYS
        if key in observation
    }


def to_arrays(observation: TensorObservation) -> Observation:
    """Return the tensors of an observation as arrays, without a copy."""
    return {key: values.detach().numpy() for key, values in observation.items()}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of torch threads inside the block."""
    if threads < 1:
        raise InputError(f"threads = {threads} must be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block: layers draw their first weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def private_randomness() -> Iterator[None]:
    """Restore the global random generators, which stable-baselines3 seeds and uses."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
