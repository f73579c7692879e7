"""The command `edgerec bench`: a table for each track of the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym import console
from edgerec_gym.commands.options import AsJson
from edgerec_gym.errors import InputError

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
OwnPolicies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="One's own that plays, too: module:Class or a run's folder; may be given several times.",
    ),
]
WorkerCount = Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes.")]


Options = dict[str, Any]


@bench.command("mix")
def mix(
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
    """Insertion policies at equal share of the page views on EdgeFeedMix-v0, and what ESAN predicts."""
    from edgerec_gym.agents import mix_track
    from edgerec_gym.agents.track_plots import draw_frontier

    options = {"seeds": seeds, "workers": workers, "policies": policies or ()}
    _run("mix", mix_track, scenario, quick, sessions, out, results, as_json, options, draw_frontier)


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
    from edgerec_gym.agents import rerank_track
    from edgerec_gym.agents.track_plots import draw_positions

    options = {"seeds": seeds, "workers": workers, "policies": policies or ()}
    _run("rerank", rerank_track, scenario, quick, sessions, out, results, as_json, options, draw_positions)


@bench.command("request")
def request(
    out: Out = None,
    results: Results = None,
    scenario: BenchScenario = "lite",
    quick: Quick = False,
    seeds: Seeds = 3,
    sessions: SessionCount = None,
    policies: OwnPolicies = None,
    workers: WorkerCount = 2,
    as_json: AsJson = False,
) -> None:
    """Uplift planners, rules, DQN and PPO on EdgeFeedRequest-v0 at many budgets."""
    from edgerec_gym.agents import request_track
    from edgerec_gym.agents.track_plots import draw_requests

    options = {"seeds": seeds, "workers": workers, "policies": policies or ()}
    _run("request", request_track, scenario, quick, sessions, out, results, as_json, options, draw_requests)


def _run(
    name: str,
    track: Any,
    scenario: str,
    quick: bool,
    sessions: int | None,
    out: Path | None,
    results: Path | None,
    as_json: bool,
    options: Options,
    draw: Callable[[list[dict[str, Any]], Path], None],
) -> None:
    """Run a track, write its rows and its picture, print its tables."""
    from edgerec_gym.benchmark import save_rows, saved_rows
    from edgerec_gym.report import require_matplotlib

    if quick:
        scenario, options = "lite", {**options, "seeds": 1}
    if scenario not in track.FULL:
        raise InputError(f"the track {name} runs on {', '.join(track.FULL)}; got the scenario {scenario!r}")
    require_matplotlib()  # better known before the work
    sizes = track.QUICK if quick else track.FULL[scenario]
    if sessions is not None:
        sizes = replace(sizes, sessions=sessions)
    suffix = f"{scenario}{'-quick' if quick else ''}"
    out, results = (
        out or Path(f"runs/bench-{name}-{suffix}"),
        results or Path(f"benchmarks/results/{name}.json"),
    )
    saved_rows(results)  # a file that is none is better known before the work, too
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("bench") as progress,
    ):
        rows = track.run(out, scenario=scenario, sizes=sizes, progress=progress, **options)
    about = {
        "track": name,
        "scenario": scenario,
        "quick": quick,
        "seeds": options["seeds"],
        "sessions": sizes.sessions,
    }
    save_rows(results, rows, about, same=("scenario", "quick"))
    draw(rows, results.with_name(f"{results.stem}-{suffix}.png"))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    for title, (header, body) in track.tables(rows).items():
        console.print_table(title, header, body)
    print(f"{scenario}, ground truth, {sizes.sessions} sessions; rows: {results}")
