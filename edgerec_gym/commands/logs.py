"""Commands that write logs: collect, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym import console
from edgerec_gym.commands.options import AsJson, Seed


def collect(
    out: Annotated[Path, typer.Option(help="Log folder; one that a killed run left is continued.")],
    preset: Annotated[str | None, typer.Option(help="Synthetic users of a preset: default or lite.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Or the users of a scenario.")] = None,
    users: Annotated[str, typer.Option(help="Of the scenario: synthetic or learned.")] = "synthetic",
    sessions: Annotated[int, typer.Option(min=1, help="How many to log.")] = 5000,
    policy: Annotated[
        str | None, typer.Option(help="Log a baseline, a trained run or module:Class instead.")
    ] = None,
    randomise: Annotated[
        str, typer.Option(help="What is drawn at random; session: its own habits.")
    ] = "order,insert,request,session",
    moments: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many random request decisions a session, at half a page."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Log sessions; by default of a policy that randomises with known propensities."""
    from edgerec_gym.logs.collect import collect

    preset = "default" if preset is None and scenario is None else preset
    logging_policy = None
    if policy is not None:
        from edgerec_gym.agents.lookup import find_policy

        # The shipped scenario of a preset's name has the preset's sizes.
        logging_policy = find_policy(policy, "EdgeFeed-v0", scenario or str(preset), users, seed)
    with (
        console.interruptible(f"the complete parts in {out} are kept; the same command resumes"),
        console.progress_bar("collect") as progress,
    ):
        result = collect(
            out,
            preset_name=preset,
            scenario=scenario,
            users=users,
            sessions=sessions,
            seed=seed,
            randomise=[name.strip() for name in randomise.split(",") if name.strip()],
            moments=moments,
            policy=logging_policy,
            progress=progress,
        )
    if as_json:
        console.print_json(result | {"out": str(out)})
    else:
        again = ", complete before" if result["resumed_from"] == result["parts"] else ""
        print(f"{out}: {result['sessions']:,} sessions, {result['slots']:,} slots{again}")


def import_logs(
    table: Annotated[Path, typer.Argument(help="A .parquet or .csv file, a row for each item shown.")],
    mapping: Annotated[Path, typer.Option(help="JSON file that names the table's columns; see the README.")],
    out: Annotated[Path, typer.Option(help="Log folder; one that a killed import left is continued.")],
    as_json: AsJson = False,
) -> None:
    """Turn a table of shown items into a log folder, for `edgerec fit`."""
    from edgerec_gym.logs.table import import_table

    with (
        console.interruptible(f"the complete parts in {out} are kept; the same command resumes"),
        console.progress_bar("import") as progress,
    ):
        result = import_table(table, mapping, out, progress=progress)
    if as_json:
        console.print_json(result | {"out": str(out)})
        return
    for text in result["notes"]:
        console.note(f"note: {text}")
    console.print_nested(result["counts"])
    print(f"cannot tell: {', '.join(result['unidentified']) or 'nothing'}")
    print(f"logs: {out}")
