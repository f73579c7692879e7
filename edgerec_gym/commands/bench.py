"""The command `edgerec bench`: the whole benchmark, or one track."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.bench.track import TRACKS, find_track, track_names
from edgerec_gym.commands import compress, console
from edgerec_gym.commands.options import AsJson
from edgerec_gym.errors import InputError

RUNS, RESULTS = Path("runs"), Path("benchmarks/results")

bench = typer.Typer(rich_markup_mode=None)

Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of logs, runs and sessions played; default runs/bench-TRACK-SCENARIO. For the whole "
        "benchmark, the folder that holds these folders; default runs."
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(
        help="JSON file for the rows; default benchmarks/results/TRACK.json. For the whole benchmark, a "
        "folder; default benchmarks/results, or --out for a run with --quick or --policy."
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Run on lite with one seed in a few minutes: a track trains small policies; the whole benchmark "
        "plays the runs shipped with the package.",
    ),
]
BenchScenarios = Annotated[
    list[str] | None,
    typer.Option(
        "--scenario",
        help="lite, default, lite-v2 or default-v2; default: lite. Repeatable for the whole benchmark.",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Number of training seeds.")]
SessionCount = Annotated[
    int | None, typer.Option("--sessions", min=2, help="Sessions that each policy plays.")
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="Play only this policy, besides keep and the oracle; repeatable. Your own policy, given as "
        "module:Class or a run's folder, joins the others.",
    ),
]
WorkerCount = Annotated[int, typer.Option("--workers", min=1, max=64, help="Number of processes.")]
Tracks = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME", help=f"{', '.join(track_names())}; repeatable. Default: all."),
]
Shifts = Annotated[
    list[str] | None,
    typer.Option(
        "--shift", help="Only these shifted users, e.g. impatient, or none; repeatable. Default: all."
    ),
]


@bench.callback(invoke_without_command=True)
def whole(
    context: typer.Context,
    tracks: Tracks = None,
    out: Out = None,
    results: Results = None,
    scenarios: BenchScenarios = None,
    shifts: Shifts = None,
    quick: Quick = False,
    seeds: Seeds = 3,
    sessions: SessionCount = None,
    policies: Policies = None,
    workers: WorkerCount = 2,
    as_json: AsJson = False,
) -> None:
    """Run the benchmark: train, score and compare policies.

    The policies of all tracks are scored on the ground truth, unshifted and shifted.
    For EB-NeRD, which has no ground truth, use python -m benchmarks.cross_simulator BUNDLE.
    """
    if context.invoked_subcommand is not None:
        for name in context.params:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise InputError(f"options of {context.invoked_subcommand!r} must follow it, not precede it")
        return
    from edgerec_gym.bench import run as benchmark
    from edgerec_gym.bench.leaderboard import leaderboards
    from edgerec_gym.evaluation.cache import saved_rows
    from edgerec_gym.evaluation.report import require_matplotlib

    order = benchmark.Order(
        tracks=tuple(dict.fromkeys(tracks or ())),
        scenarios=tuple(dict.fromkeys(scenarios or ("lite",))),
        policies=tuple(dict.fromkeys(policies or ())),
        shifts=None if shifts is None else tuple(dict.fromkeys(s for s in shifts if s != "none")),
        seeds=seeds,
        sessions=sessions,
        quick=quick,
    )
    base = out or RUNS
    target = results or (RESULTS if order.complete else base)
    if order.complete:
        require_matplotlib()  # fail before the work starts
    lines = benchmark.plan(order, base)
    saved_rows(target / f"{benchmark.NAME}.json")
    for line in lines:
        console.note(line)
    with (
        console.interruptible(f"what is finished in {base} is kept; the same command resumes"),
        console.progress_bar("bench") as progress,
    ):
        rows = benchmark.run(order, base, target, workers=workers, progress=progress, tell=console.note)
    if as_json:
        console.print_json({"rows": rows})
        return
    for title, (header, body) in leaderboards(rows).items():
        console.print_table(title, header, body)
    print(f"rows: {target / f'{benchmark.NAME}.json'}")


def track(
    context: typer.Context,
    out: Out = None,
    results: Results = None,
    scenarios: BenchScenarios = None,
    quick: Quick = False,
    seeds: Seeds = 3,
    sessions: SessionCount = None,
    policies: Policies = None,
    workers: WorkerCount = 2,
    as_json: AsJson = False,
) -> None:
    """Run one track, write its rows and its picture, and print its tables."""
    from edgerec_gym.bench.training import run_track
    from edgerec_gym.evaluation.cache import save_rows, saved_rows
    from edgerec_gym.evaluation.report import require_matplotlib

    found = find_track(str(context.info_name))
    scenario, *others = ["lite"] if quick else scenarios or ["lite"]
    if others:
        raise InputError("a track plays one scenario at a time; give --scenario once")
    full = found.full_sizes(scenario)
    if found.picture is not None:
        require_matplotlib()  # fail before the work starts
    sizes = found.code("quick") if quick else full
    if sessions is not None:
        sizes = replace(sizes, sessions=sessions)
    suffix = f"{scenario}{'-quick' if quick else ''}"
    out, results = out or RUNS / f"bench-{found.name}-{suffix}", results or RESULTS / f"{found.name}.json"
    saved_rows(results)  # likewise for a file that holds no rows
    seeds = 1 if quick else seeds
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("bench") as progress,
    ):
        rows = run_track(
            found.name,
            out,
            scenario=scenario,
            sizes=sizes,
            seeds=seeds,
            policies=tuple(policies or ()),
            workers=workers,
            progress=progress,
        )
    about = {
        "track": found.name,
        "scenario": scenario,
        "quick": quick,
        "seeds": seeds,
        "sessions": sizes.sessions,
    }
    save_rows(results, rows, about, same=("scenario", "quick"))
    if found.picture is not None:
        found.code("picture")(rows, results.with_name(f"{results.stem}-{suffix}.png"))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    for title, (header, body) in found.code("tables")(rows).items():
        console.print_table(title, header, body)
    print(f"{scenario}, ground truth, {sizes.sessions} sessions; rows: {results}")


for _name in track_names():
    _known = TRACKS.get(_name)
    bench.command(_name, help="A track of an installed package." if _known is None else _known.summary)(track)
bench.command("compress")(compress.bench_compress)
