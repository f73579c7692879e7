"""Learning curves: a run's checkpoints, played on learned users and on the ground truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerec_gym.agents.ppo.train import digest
from edgerec_gym.agents.registry import load_policy
from edgerec_gym.documents import MOST_BYTES, read_object
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.play import play
from edgerec_gym.evaluation.report import read_training_curve, unit_of
from edgerec_gym.files import write_json
from edgerec_gym.pages.sources import LEARNING_CURVE as FILE
from edgerec_gym.pages.sources import LearningCurve
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import checkpoints, read_run
from edgerec_gym.scenario import SHIPPED, Scenario

Progress = Callable[[int, int, str], None]


def scenario_of(run: str | Path) -> Scenario | None:
    """Return the shipped scenario that a run was trained in, or None if it was not a shipped one."""
    record = read_run(run).record
    trained = record.get("scenario")
    for name in SHIPPED:
        scenario = Scenario.load(name)
        if isinstance(trained, dict) and trained.get("sha256") == digest(scenario):
            return scenario
    return None


def learning_curve(
    run: str | Path,
    scenario: str | Scenario,
    *,
    sessions: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Play the checkpoints of a run that learned by playing.

    Checkpoints already played with the same scenario, number of sessions and seed are read from the run's
    file.

    Args:
        run: the run's folder.
        scenario: scenario that the run was trained in.
        sessions: sessions of the split `eval` that each checkpoint plays on each kind of users.
        seed: seed of the sessions.
        progress: called with (checkpoints played, total, text).

    Returns:
        A dict, which is also written into the run. `training` is the reward while training, as
        :func:`~edgerec_gym.evaluation.report.read_training_curve` returns it. `checkpoints` lists for each
        checkpoint its `slots` and the value of a session by kind of users as {mean, low, high}. `unit` tells
        what `slots` counts, slots played or updates.

    Raises:
        InputError: the run does not exist or did not learn by playing, or the scenario has other sizes.
    """
    run = Path(run)
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    record = read_run(run).record
    if record.get("users") is None:
        raise InputError(f"{run} holds the agent {record['agent']!r}, which did not learn by playing")
    env_id, unit = record.get("id") or record["track"], unit_of(run)
    told = {"sessions": sessions, "seed": seed, "scenario": scenario.name}
    earlier = read_object(run / FILE, LearningCurve, most_bytes=MOST_BYTES) if (run / FILE).is_file() else {}
    known = earlier.get("checkpoints", []) if all(earlier.get(k) == v for k, v in told.items()) else []
    done = {point["slots"]: point for point in known}
    kinds = ("learned",) if scenario.synthetic is None else ("learned", "synthetic")
    folders = checkpoints(run)
    for k, folder in enumerate(folders):
        slots = read_run(folder).record["steps"]
        if slots not in done:
            if progress:
                progress(k, len(folders), f"checkpoint at {slots:,} {unit.removesuffix(' played')}")
            policy = load_policy(folder, make_feeds(env_id, 1, scenario=scenario, users=kinds[0]))
            done[slots] = {"slots": slots} | {
                users: mean_interval(
                    play(policy, env_id=env_id, scenario=scenario, users=users, sessions=sessions,
                         seed=seed)["value"], seed
                )
                for users in kinds
            }  # fmt: skip
    points = [done[slots] for slots in sorted(done)]
    curve = {**told, "unit": unit, "training": read_training_curve(run), "checkpoints": points}
    write_json(run / FILE, curve)
    return curve
