"""Pointer generators small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from edgerec_gym.agents.registry import train_agent
from edgerec_gym.logs.collect import collect

COMMON: dict[str, Any] = {"seed": 0, "resume": True, "threads": 1}


def train_start(folder: Path) -> Path:
    """Make a log, an evaluator, and a generator that has learned from clicks; return the folder."""
    collect(folder / "logs", preset_name="lite", sessions=150, seed=1)
    for agent in ("evaluator", "pointer"):
        hyper = {"epochs": 1, "hidden": 8}
        train_agent(agent, folder / agent, logs=folder / "logs", hyper=hyper, **COMMON)
    return folder


def same(a: Path, b: Path) -> bool:
    """Whether two runs have the same parameters."""
    first, second = load_file(a / "policy.safetensors"), load_file(b / "policy.safetensors")
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
