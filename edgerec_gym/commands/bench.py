"""The command `edgerec bench`: a table for each track of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym import console
from edgerec_gym.commands.options import AsJson

bench = typer.Typer(
    help="Train the policies of a track, score them on the ground truth, print and write the table.",
    rich_markup_mode=None,
)

Out = Annotated[
    Path | None,
    typer.Option(help="Folder of logs, runs and sessions played; default runs/bench-TRACK-SCENARIO."),
]
Results = Annotated[
    Path | None, typer.Option(help="JSON file that gets the rows; default benchmarks/results/TRACK.json.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes and one seed on lite, in a few minutes.")]
BenchScenario = Annotated[str, typer.Option("--scenario", help="lite or default.")]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Training seeds.")]
SessionCount = Annotated[int | None, typer.Option("--sessions", min=2, help="Played by each policy.")]
Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="Only this one, or one's own as module:Class; may be given several times."),
]
WorkerCount = Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes.")]


@bench.command("rerank")
def rerank(
    out: Out = None,
    results: Results = None,
    scenario: BenchScenario = "lite",
    quick: Quick = False,
    seeds: Seeds = 3,
    sessions: SessionCount = None,
    policies: Policies = None,
    workers: WorkerCount = 2,
    as_json: AsJson = False,
) -> None:
    """Re-rankers, generators, sequence search and policy gradients on EdgeFeedRerank-v0."""
    from dataclasses import replace

    from edgerec_gym.agents import rerank_track as track
    from edgerec_gym.benchmark import save_rows, table

    if quick:
        scenario, seeds = "lite", 1
    if scenario not in track.FULL:
        raise typer.BadParameter(f"{scenario!r} has no ground truth; allowed: {', '.join(track.FULL)}")
    sizes = track.QUICK if quick else track.FULL[scenario]
    if sessions is not None:
        sizes = replace(sizes, sessions=sessions)
    out = out or Path(f"runs/bench-rerank-{scenario}{'-quick' if quick else ''}")
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("bench") as progress,
    ):
        rows, played = track.run(
            out,
            scenario=scenario,
            sizes=sizes,
            seeds=seeds,
            policies=policies or (),
            workers=workers,
            progress=progress,
        )
    results = results or Path("benchmarks/results/rerank.json")
    about = {
        "track": "rerank",
        "scenario": scenario,
        "quick": quick,
        "seeds": seeds,
        "sessions": sizes.sessions,
    }
    save_rows(results, rows, about, same=("scenario", "quick"))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    header, body = table(rows, track.METRICS)
    console.print_table(
        f"EdgeFeedRerank-v0, {scenario}, ground truth, {sizes.sessions} sessions", header, body
    )
    print(f"rows: {results}")


@bench.command("request")
def request(
    out: Out = None,
    results: Results = None,
    scenario: BenchScenario = "lite",
    quick: Quick = False,
    seeds: Seeds = 3,
    sessions: SessionCount = None,
    workers: WorkerCount = 2,
    as_json: AsJson = False,
) -> None:
    """Uplift planners, rules, DQN and PPO on EdgeFeedRequest-v0 at many budgets."""
    from dataclasses import replace

    from edgerec_gym.agents import request_track as track
    from edgerec_gym.agents.request_rows import tables
    from edgerec_gym.benchmark import save_rows

    if quick:
        scenario, seeds = "lite", 1
    if scenario not in track.FULL:
        raise typer.BadParameter(f"{scenario!r} is no scenario of this track: {', '.join(track.FULL)}")
    sizes = track.QUICK if quick else track.FULL[scenario]
    if sessions is not None:
        sizes = replace(sizes, sessions=sessions, oracle_sessions=min(sessions, sizes.oracle_sessions))
    out = out or Path(f"runs/bench-request-{scenario}{'-quick' if quick else ''}")
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("bench") as progress,
    ):
        rows = track.run(out, scenario=scenario, sizes=sizes, seeds=seeds, workers=workers, progress=progress)
    results = results or Path("benchmarks/results/request.json")
    about = {
        "track": "request",
        "scenario": scenario,
        "quick": quick,
        "seeds": seeds,
        "sessions": sizes.sessions,
    }
    save_rows(results, rows, about, same=("scenario", "quick"))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    for title, chosen in tables(rows).items():
        console.print_table(title, *chosen)
    print(f"rows: {results}")
