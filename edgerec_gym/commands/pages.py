"""Commands that write HTML pages: report, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.bench.track import all_tracks
from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, RunEnvId, RunScenarioName, Seed, Users
from edgerec_gym.errors import InputError
from edgerec_gym.runs import read_record

TRAINED = ("", "policy")  # subfolders that may hold a training run; "policy" is the demo's


def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of bench results, train, evaluate --out, fidelity --out or demo, or one JSON file."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file; default RUN/report.html.")] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Scenario to play a training run's checkpoints on; default: the shipped one of the run."
        ),
    ] = None,
    sessions: Annotated[int, typer.Option(min=2, help="Sessions that each checkpoint plays.")] = 500,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page with all results of a run.

    It holds tables, intervals, curves and fidelity, whatever the folder has.
    The checkpoints of a training run are played once, on learned users and on the ground truth.
    """
    from edgerec_gym.pages.report import write_report_page

    played = False
    with console.interruptible("nothing is written"), console.progress_bar("report") as progress:
        for folder in (run / name for name in TRAINED):
            if _learned_by_playing(folder):
                played |= _play_checkpoints(folder, run, scenario, sessions, seed, progress)
    if scenario is not None and not played:
        raise InputError(f"{run} holds no training run whose checkpoints could be played; omit --scenario")
    path, sections, missing = write_report_page(run, out, tracks=all_tracks())
    if as_json:
        console.print_json({"out": str(path), "sections": sections, "missing": missing})
        return
    for title in sections:
        print(f"  {title}")
    if missing:
        console.note(f"not in this run: {'; '.join(missing)}")
    print(f"report: {path}")


def _learned_by_playing(folder: Path) -> bool:
    file = folder / "policy.json"
    return file.is_file() and "id" in read_record(file) and any(folder.glob("checkpoints/step-*"))


def _play_checkpoints(
    folder: Path, run: Path, scenario: str | None, sessions: int, seed: int, progress: Any
) -> bool:
    """Write the learning curve of a training run; return False if its scenario is unknown."""
    from edgerec_gym.bench.learning_curve import FILE, learning_curve, scenario_of

    if scenario is None and (folder / FILE).is_file():
        return True
    place: Any = scenario or scenario_of(folder)
    if place is None and folder != run and (run / "scenario").is_dir():  # a demo
        place = str(run / "scenario")
    if place is None:
        console.note("the run's scenario is not a shipped one; name it with --scenario for a learning curve")
        return False
    learning_curve(folder, place, sessions=sessions, seed=seed, progress=progress)
    return True


def replay(
    run: Annotated[str, typer.Argument(help="A baseline, oracle, a trained run's folder or module:Class.")],
    out: Annotated[Path, typer.Option(help="HTML file.")],
    session: Annotated[
        int, typer.Option(min=0, max=2**20 - 1, help="Index of the session in the evaluation, from 0.")
    ] = 0,
    env_id: RunEnvId = None,
    scenario: RunScenarioName = None,
    users: Annotated[
        Users | None, typer.Option(help="Users to play; default: synthetic if available.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write a page that steps through one session of a policy."""
    from edgerec_gym.agents.find_policy import find_policy
    from edgerec_gym.agents.run_place import common_place
    from edgerec_gym.pages.html import check_file
    from edgerec_gym.pages.replay import write_replay
    from edgerec_gym.pages.session import record_session
    from edgerec_gym.scenario import Scenario

    env_id, scenario = common_place([run], env_id, scenario)
    loaded = Scenario.load(scenario)
    users = users or ("learned" if loaded.synthetic is None else "synthetic")
    check_file(out)  # fail before the work starts
    with console.interruptible("nothing is written"):
        policy = find_policy(run, env_id, loaded, users, seed)
        recorded = record_session(
            policy, env_id=env_id, scenario=loaded, users=users, session=session, seed=seed
        )
        write_replay(recorded, out)
    about = recorded["about"]
    if as_json:
        console.print_json(about | {"slots": len(recorded["slots"]), "out": str(out)})
        return
    print(
        f"session {session} of {about['policy']}: {len(recorded['slots'])} slots, {about['clicks']} clicks, "
        f"reward {about['reward']:.2f}"
    )
    print(f"replay: {out}")
