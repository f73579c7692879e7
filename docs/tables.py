"""Tables that are generated from the code: what every id takes and gives, and the help of every command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
from typer.main import get_command

import edgerec_gym  # noqa: F401  registers the ids
from edgerec_gym.config import RewardConfig
from edgerec_gym.registration import IDS
from edgerec_gym.scenario import SHIPPED

WIDTH = "100"  # characters of a help text
FOLDER_NOTE = "% Written by docs/tables.py when the site is built.\n\n"


def write_all(folder: Path) -> None:
    """Write every generated page into a folder that the pages include from."""
    folder.mkdir(exist_ok=True)
    (folder / "ids.md").write_text(FOLDER_NOTE + ids(), encoding="utf-8")
    (folder / "commands.md").write_text(FOLDER_NOTE + commands(), encoding="utf-8")


def ids() -> str:
    """Action space, observation space and reward weights of every id under every shipped scenario."""
    parts = []
    for env_id in IDS:
        version = env_id.rsplit("-v", 1)[1]
        envs = {name: gym.make(env_id, scenario=name, disable_env_checker=True) for name in SHIPPED}
        actions = {name: _describe(env.action_space) for name, env in envs.items()}
        observations = {name: env.observation_space for name, env in envs.items()}
        header = ["key", *(f"shape in `{name}`" for name in SHIPPED), "dtype", "range"]
        first = next(iter(observations.values()))
        rows = [
            [
                f"`{key}`",
                *(str(tuple(space[key].shape)) for space in observations.values()),
                str(box.dtype),
                _range(box),
            ]
            for key, box in first.spaces.items()
        ]
        parts += [
            f"### {env_id}\n",
            f"Version {version}; entry points: `gym.make`, `gym.make_vec`.\n",
            *(f"- action in `{name}`: {action}" for name, action in actions.items()),
            "\nObservation, one session:\n",
            _table(header, rows),
        ]
        for env in envs.values():
            env.close()
    weights = RewardConfig()
    terms = [[f"`{name}`", f"{value:g}"] for name, value in vars(weights).items() if isinstance(value, float)]
    parts += ["### Reward weights\n", "The same for every id; options of `RewardConfig`.\n"]
    parts += [_table(["term", "weight"], terms)]
    return "\n".join(parts)


def _describe(space: gym.Space[Any]) -> str:
    if isinstance(space, gym.spaces.Dict):
        return ", ".join(f"`{key}`: {_describe(part)}" for key, part in space.spaces.items())
    if isinstance(space, gym.spaces.Box):
        return f"`Box({space.low.min():g}, {space.high.max():g}, {space.shape}, {space.dtype})`"
    if isinstance(space, gym.spaces.MultiDiscrete):
        return f"`MultiDiscrete([{space.nvec[0]}] * {len(space.nvec)})`"
    return f"`{space}`"


def _range(space: gym.Space[Any]) -> str:
    if isinstance(space, gym.spaces.Box):
        return f"{space.low.min():g} .. {space.high.max():g}"
    return "0 or 1"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The help of `edgerec` and of each of its commands."""
    os.environ["TERMINAL_WIDTH"] = os.environ["COLUMNS"] = WIDTH
    from edgerec_gym.cli import app

    parts: list[str] = []
    _help(get_command(app), "edgerec", None, parts)
    return "\n".join(parts)


def _help(command: Any, name: str, parent: Any, parts: list[str]) -> None:
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    parts.append(f"## {name}\n\n```text\n{command.get_help(context).strip()}\n```\n")
    for child in getattr(command, "commands", {}).values():
        _help(child, f"{name} {child.name}", context, parts)
