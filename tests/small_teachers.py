"""A small log, and teachers and students trained on it in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.registry import AGENTS, TEACHER, family, train_agent
from edgerec_gym.agents.teachers.networks import PageTeacher, TeacherConfig
from edgerec_gym.agents.teachers.train import build
from edgerec_gym.config import FeedConfig
from edgerec_gym.logs.collect import collect

TEACHERS = family(TEACHER)
TINY: dict[str, Any] = {"dim": 8, "hidden": 8, "layers": 1, "epochs": 2, "batch_size": 32, "earlier": 4}
SMALL_STUDENT: dict[str, Any] = {"hidden": 4, "epochs": 2, "per_session": 2, "batch_size": 64}


def small_log(folder: Path, sessions: int = 240) -> Path:
    collect(folder, preset_name="lite", sessions=sessions, seed=1, synthetic={"n_users": 60})
    return folder


def teacher(name: str, config: FeedConfig, n_items: int, seed: int = 0, **hyper: Any) -> PageTeacher:
    kind = AGENTS[name].code("network")
    settings = TeacherConfig.from_dict(TINY | hyper)
    return build(kind, config, settings, n_items, seed)


def trained(out: Path, logs: Path, name: str = "deepfm", seed: int = 0, **options: Any) -> Path:
    train_agent(name, out, logs=logs, seed=seed, hyper=TINY | options)
    return out
