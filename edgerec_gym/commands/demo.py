"""`edgerec demo` and `edgerec scenario`: the path from logs to a scored policy, in resumable stages."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec_gym.commands import console
from edgerec_gym.config import PRESETS, preset
from edgerec_gym.documents import MOST_BYTES, OpenDocument, read_object
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.report import (
    RESULTS,
    read_training_curve,
    require_matplotlib,
    unit_of,
    write_report,
)
from edgerec_gym.files import atomic_path, make_folder, one_writer, remove_folder, write_json
from edgerec_gym.users import USERS

RECORD = "demo.json"
SESSIONS = 24_000  # logged for a shipped scenario
SCENES = ("short-video", "live", "food")  # presets for latency budgets: smaller, to keep the package small
SHIPPED_SESSIONS = dict.fromkeys(PRESETS, SESSIONS) | {"lite-v2": 96_000} | dict.fromkeys(SCENES, 12_000)
SHIPPED_ENSEMBLE = dict.fromkeys(PRESETS, 5) | dict.fromkeys(SCENES, 3)
PRESET, ENV_ID = "lite-v2", "EdgeFeed-v0"
POLICIES = ("keep", "random", "greedy", "device-greedy", "item-greedy")
PAGE, REPLAY = "report.html", "replay.html"  # to open in a browser
CHECKPOINTS = 10  # in the learning curve
REPLAYED = 7  # session of the evaluation
AGENT = "runs/values-pg-0"  # shipped with the package; takes all three decisions
OWN = "distilled-values"  # the agent that the demo trains
SHIPPED_NAME = "values-pg, pretrained"


class Results(OpenDocument):
    """The results of a demo that is finished."""

    results: list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """The amount of work in each stage."""

    collect_sessions: int = 4000
    ensemble: int = 2
    epochs: int = 20
    updates: int = 20
    update_sessions: int = 256  # per update
    evaluate_sessions: int = 2000
    curve_sessions: int = 300  # per checkpoint


QUICK = Sizes(
    collect_sessions=500,
    ensemble=2,
    epochs=2,
    updates=4,
    update_sessions=32,
    evaluate_sessions=200,
    curve_sessions=50,
)


@one_writer("out")
def run_demo(
    out: str | Path, *, quick: bool = False, fresh: bool = False, seed: int = 0
) -> tuple[list[dict[str, Any]], Path]:
    """Collect, fit, train and evaluate on the lite preset; finished stages are skipped.

    Besides the policy it trains, the demo plays the shipped agent, which takes all three decisions.

    Args:
        out: folder in which `logs`, `scenario`, `policy`, `report`, report.html and replay.html are made.
        quick: use tiny sizes.
        fresh: first remove what an earlier demo left in `out`.
        seed: seed of every stage.

    Returns:
        (results, report folder).

    Raises:
        InputError: `out` cannot be written to, or holds a demo with other arguments.
        MissingExtraError: the extra `train` is not installed.
    """
    from edgerec_gym.agents.find_policy import find_policies, find_policy
    from edgerec_gym.agents.values.train import train
    from edgerec_gym.bench.learning_curve import learning_curve
    from edgerec_gym.bench.shipped import shipped_folder
    from edgerec_gym.evaluation.play import REFERENCE, evaluate
    from edgerec_gym.logs.collect import collect
    from edgerec_gym.pages.replay import write_replay
    from edgerec_gym.pages.report import write_report_page
    from edgerec_gym.pages.session import record_session
    from edgerec_gym.simulator.fit import fit

    require_matplotlib()  # fail before the work starts
    out, sizes = make_folder(out), QUICK if quick else Sizes()
    logs, scenario, policy, report = (out / name for name in ("logs", "scenario", "policy", "report"))
    if fresh and (out / RECORD).is_file():
        for folder in (report, policy, scenario, logs):
            remove_folder(folder)
        for page in (PAGE, REPLAY):
            (out / page).unlink(missing_ok=True)
        (out / RECORD).unlink()
    _same_arguments(out, {"seed": seed, **asdict(sizes)})
    if (out / PAGE).is_file():  # written last, so everything is finished
        return read_object(report / RESULTS, Results, most_bytes=MOST_BYTES)["results"], report
    with console.progress_bar("collect") as progress:
        collect(logs, preset_name=PRESET, sessions=sizes.collect_sessions, seed=seed, progress=progress)
    _learn_items(logs)
    with console.progress_bar("fit") as progress:
        fit(logs, scenario, seed=seed, ensemble=sizes.ensemble, epochs=sizes.epochs, progress=progress)
    with console.progress_bar("train") as progress:
        train(
            policy,
            env_id=ENV_ID,
            scenario=str(scenario),
            seed=seed,
            resume=True,
            progress=progress,
            threads=1,
            keep_checkpoints=sizes.updates,
            updates=sizes.updates,
            sessions=sizes.update_sessions,
            select_every=-(-sizes.updates // CHECKPOINTS),
            select_sessions=sizes.curve_sessions,
        )
    policies = find_policies([*POLICIES, str(policy), REFERENCE], ENV_ID, str(scenario), "learned", seed)
    agent = find_policy(str(shipped_folder("joint", PRESET) / AGENT), ENV_ID, str(scenario), "learned", seed)
    agent.name = SHIPPED_NAME
    policies.insert(-1, agent)
    with console.progress_bar("evaluate") as progress:
        results = evaluate(
            policies,
            env_id=ENV_ID,
            scenario=str(scenario),
            users=USERS,
            sessions=sizes.evaluate_sessions,
            seed=seed,
            progress=console.over_all(progress, policies, USERS),
        )
    curve, unit = read_training_curve(policy), unit_of(policy)
    write_report(results, report, training_curve=curve, unit=unit, title="edgerec demo")
    with console.progress_bar("curve") as progress:
        learning_curve(policy, str(scenario), sessions=sizes.curve_sessions, seed=seed, progress=progress)
    recorded = record_session(
        agent,
        env_id=ENV_ID,
        scenario=str(scenario),
        users="synthetic",
        session=REPLAYED,
        seed=seed,
    )
    write_replay(recorded, out / REPLAY)
    write_report_page(out, out / PAGE)
    return results, report


def learned(results: list[dict[str, Any]]) -> str:
    """Return a sentence: what the demo's own policy closes of the gap, and what the best heuristic does."""
    closed = {
        row["policy"]: row["gap_closed"]
        for row in results
        if row["users"] == "synthetic" and "gap_closed" in row
    }
    own, best = closed[OWN], max(POLICIES[1:], key=lambda name: closed[name]["mean"])
    says = "more than" if own["low"] > closed[best]["high"] else "which cannot be told from"
    if own["high"] < closed[best]["low"]:
        says = "less than"
    return (
        f"The policy that you have just trained closes {_share(own)} of the gap from the cloud's order to a "
        f"mind reader, {says} the best heuristic, {best}, with {_share(closed[best])}."
    )


def _share(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.0%} [{interval['low']:.0%}, {interval['high']:.0%}]"


def _same_arguments(out: Path, arguments: dict[str, Any]) -> None:
    """Record the arguments of a new demo; raise InputError if the folder holds one with other arguments."""
    if not (out / RECORD).is_file():
        write_json(out / RECORD, arguments)
    elif read_object(out / RECORD, dict[str, int]) != arguments:
        raise InputError(
            f"{out} holds a demo with other arguments: add --fresh to start over, or choose another --out"
        )


def _learn_items(logs: Path) -> None:
    """Learn the item table of a log unless it is there."""
    from edgerec_gym.cloud.item_table import ITEM_TABLE
    from edgerec_gym.logs.item_statistics import learn_items
    from edgerec_gym.logs.store import LogReader

    if not (logs / ITEM_TABLE).exists():
        learn_items(LogReader(logs)).save(logs / ITEM_TABLE)


def refit_shipped(
    names: list[str] | None,
    *,
    sessions: int | None,
    out: str | Path | None,
    work: str | Path,
    ensemble: int | None,
    epochs: int,
    seed: int,
    item_table: bool = True,
) -> dict[str, dict[str, Any]]:
    """Refit the shipped scenarios from freshly collected logs, and record the command and seed in them.

    Args:
        names: names of presets; None for all.
        sessions: sessions to collect for each; None for as many as the shipped scenarios used.
        out: folder that receives one folder per name; None for the scenarios inside the package.
        work: folder of logs and unfinished fits, from which an interrupted call resumes.
        ensemble: number of networks in each ensemble; None for as many as the shipped scenarios have.
        epochs: maximum number of epochs for each network.
        seed: seed of logs and fits.
        item_table: learn the item table from the logs first, and ship its columns with the pages.

    Returns:
        name -> fidelity figures on held-out sessions.
    """
    from edgerec_gym.logs.collect import collect
    from edgerec_gym.scenario import SHIPPED_FOLDER, SIMULATOR_FILES, Scenario
    from edgerec_gym.simulator.fit import fit

    names = list(PRESETS) if names is None else names
    for name in names:
        preset(name)  # reject an unknown name before the work starts
    fidelity = {}
    for name in names:
        logs, fitted = Path(work) / name / "logs", Path(work) / name / "scenario"
        target = make_folder(Path(out or SHIPPED_FOLDER) / name)
        n, members = sessions or SHIPPED_SESSIONS[name], ensemble or SHIPPED_ENSEMBLE[name]
        with console.progress_bar(f"{name}: collect") as progress:
            collect(logs, preset_name=name, sessions=n, seed=seed, progress=progress)
        if item_table:
            _learn_items(logs)
        with console.progress_bar(f"{name}: fit") as progress:
            fidelity[name] = fit(logs, fitted, seed=seed, ensemble=members, epochs=epochs, progress=progress)
        for file in SIMULATOR_FILES:
            with atomic_path(target / file) as temporary:
                shutil.copyfile(fitted / file, temporary)
        scenario = Scenario.load(fitted)
        options = {"name": name, "sessions": n, "ensemble": members, "epochs": epochs, "seed": seed}
        command = " ".join(
            [
                "edgerec scenario",
                *(f"--{option} {value}" for option, value in options.items()),
                *([] if item_table else ["--no-item-table"]),
            ]
        )
        provenance = {**scenario.provenance, "command": command, "seed": seed}
        replace(scenario, name=name, provenance=provenance).save(target)
        remove_folder(Path(work) / name)  # the next call then starts afresh
    return fidelity
