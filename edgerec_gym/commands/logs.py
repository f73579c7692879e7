"""Commands that write logs: collect, import, items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, Seed, Users, scenarios
from edgerec_gym.config import PRESETS
from edgerec_gym.errors import InputError


def collect(
    out: Annotated[Path, typer.Option(help="Log folder; an interrupted run is resumed.")],
    preset: Annotated[
        str | None, typer.Option(help=f"Synthetic users of a preset: {', '.join(PRESETS)}. Default: default.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Use the users of a scenario instead (edgerec scenarios).", autocompletion=scenarios
        ),
    ] = None,
    users: Annotated[Users, typer.Option(help="Users of the scenario.")] = "synthetic",
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
    """Log sessions of simulated users.

    By default, the logging policy randomises its decisions with known propensities.
    """
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
    text: Annotated[
        Path | None,
        typer.Option(
            help="Side file (.parquet, .csv, .jsonl): column item, and text or a vector for each item."
        ),
    ] = None,
    text_size: Annotated[
        int, typer.Option(min=1, max=50, help="With --text: number of columns that hold its vectors.")
    ] = 8,
    as_json: AsJson = False,
) -> None:
    """Learn from a log how items do: the item table.

    `edgerec fit` and agents read it from the log folder.
    """
    from edgerec_gym.cloud.item_table import ITEM_TABLE
    from edgerec_gym.logs.item_statistics import learn_items
    from edgerec_gym.logs.item_text import with_item_texts
    from edgerec_gym.logs.store import LogReader

    with console.interruptible(f"{logs} is as it was"):
        reader = LogReader(logs)
        if reader.config.item_columns and not (logs / ITEM_TABLE).exists():
            raise InputError(
                f"{logs} ships item columns of its own with every page; name texts in the mapping of its "
                "import ('text_embedding')"
            )
        table = learn_items(reader, folds=folds, co_click_size=co_click_size)
        if text is not None:
            table = with_item_texts(table, text, reader.catalog.names, text_size)
        table.save(logs / ITEM_TABLE)
    if as_json:
        console.print_json({"items": len(table.columns), "columns": list(table.names), "logs": str(logs)})
    else:
        print(f"{logs / ITEM_TABLE}: {len(table.columns):,} items, columns {', '.join(table.names)}")


def import_logs(
    source: Annotated[
        Path,
        typer.Argument(
            help="A table of shown items (Parquet, CSV, JSON lines and others, also compressed, a folder of "
            "parts or a glob), or an EB-NeRD bundle."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Log folder; an interrupted import is resumed. Needed without --guess."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="JSON or TOML file that names the table's columns; an EB-NeRD bundle needs none."),
    ] = None,
    guess: Annotated[
        bool,
        typer.Option(
            "--guess", help="Propose a mapping and show ten rows as understood; with --out, import with it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a table of shown items to a log folder.

    An EB-NeRD bundle is understood as it is. `edgerec fit` learns users from the log folder.
    """
    from edgerec_gym.logs.ebnerd import is_ebnerd

    if guess:
        if mapping is not None:
            raise InputError("--guess proposes a mapping; omit --mapping, or --guess")
        import_guessed(source, out, as_json)
        return
    if out is None:
        raise InputError("--out is missing: the log folder to write")
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
        raise InputError(f"{source} needs --mapping, a file that names its columns; --guess proposes one")
    result = import_with(source, mapping, out)
    if as_json:
        console.print_json(result | {"out": str(out)})
        return
    print_import(result, out)


def import_guessed(source: Path, out: Path | None, as_json: bool) -> None:
    """Propose a mapping; with `out` also import with it, and keep the mapping beside the logs."""
    from edgerec_gym.files import make_folder, write_json
    from edgerec_gym.logs.table_guess import TRIES, guess_mapping, repair
    from edgerec_gym.logs.table_guess import as_json as as_text

    guess, result, said = guess_mapping(source), None, 0
    rows = [] if guess.rows is None else guess.rows.to_dicts()
    while out is not None and result is None:
        path = make_folder(out) / "mapping.json"
        write_json(path, guess.content)
        try:
            result = import_with(source, path, out)
        except InputError as error:  # what the sample did not show
            said += 1
            if said > TRIES:
                raise
            path.unlink()
            repair(guess, error)
    if as_json:
        found = {
            "mapping": guess.content,
            "doubts": guess.doubts,
            "rows": [{k: str(v) for k, v in r.items()} for r in rows],
        }
        console.print_json(found | ({} if result is None else result | {"out": str(out)}))
        return
    for text in guess.doubts:
        console.note(f"check: {text}")
    print(as_text(guess.content))
    if guess.rows is not None:
        names = [
            name for name in guess.rows.columns if not name.startswith(("number:", "user_", "e0", "e1"))
        ][:12]
        body = [[_cell(row[name]) for name in names] for row in rows]
        console.print_table("first rows, as understood", names, body)
    if result is not None and out is not None:
        print_import(result, out)


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def import_with(source: Path, mapping: Path, out: Path) -> dict[str, Any]:
    """Import a table by a mapping file, with a progress bar."""
    from edgerec_gym.logs.table import import_table

    with (
        console.interruptible(f"the complete parts in {out} are kept; the same command resumes"),
        console.progress_bar("import") as progress,
    ):
        return import_table(source, mapping, out, progress=progress)


def print_import(result: dict[str, Any], out: Path) -> None:
    """Print the notes and counts of an import."""
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
