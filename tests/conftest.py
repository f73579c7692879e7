"""Shared fixtures: the lite ground truth without a simulator, and every registered id."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # windows without a display

import pytest

from edgerec_gym.registration import IDS, SLATE
from edgerec_gym.scenario import Scenario


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let slow tests be asked for."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests, unless they are asked for or named one by one."""
    named = any("::" in argument for argument in config.args)
    if config.getoption("--slow") or config.option.markexpr or named:
        return
    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item.get_closest_marker("slow") is None]


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
