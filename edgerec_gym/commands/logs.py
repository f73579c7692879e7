"""Commands that write logs: collect, import, items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, Seed
from edgerec_gym.errors import InputError


def collect(
    out: Annotated[Path, typer.Option(help="Log folder; an interrupted run is resumed.")],
    preset: Annotated[str | None, typer.Option(help="Synthetic users of a preset: default or lite.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Use the users of a scenario instead.")] = None,
    users: Annotated[str, typer.Option(help="Users of the scenario: synthetic or learned.")] = "synthetic",
    sessions: Annotated[int, typer.Option(min=1, help="Number of sessions to log.")] = 5000,
    policy: Annotated[
        str | None,
        typer.Option(help="Log this policy instead: a baseline, a trained run or module:Class."),
    ] = None,
    randomise: Annotated[
        str, typer.Option(help="Decisions drawn at random; session: habits drawn per session.")
    ] = "order,insert,request,session",
    moments: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of random request decisions per session, at half a page."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Log sessions, by default of a policy that randomises with known propensities."""
    from edgerec_gym.logs.collect import collect

    preset = "default" if preset is None and scenario is None else preset
    logging_policy = None
    if policy is not None:
        from edgerec_gym.agents.find_policy import find_policy

        # The shipped scenario named like a preset has the preset's sizes.
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


def items(
    logs: Annotated[Path, typer.Argument(help="Log folder, which receives the table.")],
    co_click_size: Annotated[
        int, typer.Option(min=0, help="Size of item vectors learned from clicks in the same sessions.")
    ] = 0,
    folds: Annotated[
        int, typer.Option(min=0, help="Parts of the log that the table is also learned without.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Learn from a log how items do, for `edgerec fit` and agents: the item table."""
    from edgerec_gym.cloud.item_table import ITEM_TABLE
    from edgerec_gym.logs.item_statistics import learn_items
    from edgerec_gym.logs.store import LogReader

    with console.interruptible(f"{logs} is as it was"):
        table = learn_items(LogReader(logs), folds=folds, co_click_size=co_click_size)
        table.save(logs / ITEM_TABLE)
    if as_json:
        console.print_json({"items": len(table.columns), "columns": list(table.names), "logs": str(logs)})
    else:
        print(f"{logs / ITEM_TABLE}: {len(table.columns):,} items, columns {', '.join(table.names)}")


def import_logs(
    source: Annotated[
        Path,
        typer.Argument(help="A .parquet or .csv file with one row per item shown, or an EB-NeRD bundle."),
    ],
    out: Annotated[Path, typer.Option(help="Log folder; an interrupted import is resumed.")],
    mapping: Annotated[
        Path | None,
        typer.Option(help="JSON file that names the table's columns; an EB-NeRD bundle needs none."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a table of shown items, or an EB-NeRD bundle, to a log folder for `edgerec fit`."""
    from edgerec_gym.logs.ebnerd import is_ebnerd
    from edgerec_gym.logs.table import import_table

    if is_ebnerd(source):
        if mapping is not None:
            raise InputError(f"{source} is an EB-NeRD bundle, whose columns are known; omit --mapping")
        reference = import_ebnerd(source, out)
        if as_json:
            console.print_json({"reference": reference, "out": str(out)})
            return
        print_reference(reference)
        print(f"logs: {out}")
        return
    if mapping is None:
        raise InputError(f"{source} needs --mapping, a JSON file that names its columns")
    with (
        console.interruptible(f"the complete parts in {out} are kept; the same command resumes"),
        console.progress_bar("import") as progress,
    ):
        result = import_table(source, mapping, out, progress=progress)
    if as_json:
        console.print_json(result | {"out": str(out)})
        return
    for text in result["notes"]:
        console.note(f"note: {text}")
    console.print_nested(result["counts"])
    print(f"not identified: {', '.join(result['unidentified']) or 'nothing'}")
    print(f"logs: {out}")


def import_ebnerd(bundle: Path, out: Path) -> dict[str, dict[str, float]]:
    """Convert an EB-NeRD bundle to a log folder; return the figures of simple rankers on its last week."""
    from edgerec_gym.logs.ebnerd import convert_ebnerd
    from edgerec_gym.logs.ebnerd_reference import ebnerd_reference

    with (
        console.interruptible(f"the complete parts in {out} are kept; the same command resumes"),
        console.progress_bar("import") as progress,
    ):
        convert_ebnerd(bundle, out, progress=progress)
        return ebnerd_reference(out)


def print_reference(reference: dict[str, dict[str, float]], learned: dict[str, float] | None = None) -> None:
    """Print how well simple rankers, and learned users if given, rank the validation week."""
    rankers = {
        "item popularity": reference["popularity"],
        "200 boosted trees on 7 streaming features": reference["boosted_trees"],
        "the same, lambdarank objective": reference["lambdarank_trees"],
        "the same, with means over the impression": reference["lambdarank_trees_page"],
        **({} if learned is None else {"learned users": learned}),
    }
    console.print_table(
        "validation week: click AUC within an impression (mean over impressions) and over all slots",
        ["ranked by", "within", "all"],
        [[label, f"{f['impression_auc']:.3f}", f"{f['click_auc']:.3f}"] for label, f in rankers.items()],
    )
