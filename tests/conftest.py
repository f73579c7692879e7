"""Shared fixtures: the lite ground truth without a simulator, and every registered id."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # windows without a display

import pytest

from edgerec_gym.registration import IDS, SLATE
from edgerec_gym.scenario import Scenario


@pytest.fixture(scope="session")
def lite() -> Scenario:
    """The shipped lite scenario."""
    return Scenario.load("lite")


@pytest.fixture(params=sorted(IDS))
def env_id(request: pytest.FixtureRequest) -> str:
    """Every registered id in turn."""
    return request.param


@pytest.fixture(params=sorted(env_id for env_id, track in IDS.items() if track != SLATE))
def slot_id(request: pytest.FixtureRequest) -> str:
    """Every id whose steps are slots, in turn."""
    return request.param


@pytest.fixture(params=["synthetic", "learned"])
def users(request: pytest.FixtureRequest) -> str:
    """Both kinds of users in turn."""
    return request.param
