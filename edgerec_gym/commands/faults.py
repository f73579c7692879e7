"""The command bench faults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.bench import RESULTS, RUNS
from edgerec_gym.commands.options import AsJson, Seed
from edgerec_gym.files import remove_folder

QUICK = 40


def bench_faults(
    schedules: Annotated[int, typer.Option(min=1, help="Schedules of faults, a session each.")] = 1000,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK} schedules, in a minute or two.")] = False,
    phones: Annotated[int, typer.Option(min=1, max=256, help="Phones at once.")] = 16,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of phones and services; removed first. Default runs/bench-faults."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="JSON file for the rows; default benchmarks/results/faults.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cut connections, kill phones and the service.

    No acknowledged answer may be lost, and play goes on.
    """
    from edgerec_gym.bench.edge import faults
    from edgerec_gym.evaluation.cache import save_rows, saved_rows

    folder = (out or RUNS / "bench-faults") / "work"  # so that nothing else is removed
    results = results or (folder.parent / "faults.json" if quick else RESULTS / "faults.json")
    saved_rows(results)  # fail before the work starts
    if folder.exists():
        remove_folder(folder)
    count = QUICK if quick else schedules
    with (
        console.interruptible("nothing is kept of an unfinished run"),
        console.progress_bar("bench faults") as progress,
    ):
        rows, about = faults.run(folder, count, seed, phones, progress)
    about = {"scenario": faults.SCENARIO, "quick": quick, "schedules": count, "seed": seed, **about}
    save_rows(results, rows, about, same=("quick",))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    for title, (header, body) in faults.tables(rows).items():
        console.print_table(title, header, body)
    print(f"rows: {results}")
