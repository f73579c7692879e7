"""The command `edgerec bench load`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.bench import RESULTS
from edgerec_gym.commands.options import AsJson, Seed, Sync, Users
from edgerec_gym.errors import InputError


def bench_load(
    phones: Annotated[
        list[int] | None,
        typer.Option(min=1, max=20_000, help="Phones at people's pace; repeatable. Default: 100, 500, 2000."),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=64, help="Processes that serve; repeatable. Default: 1 and 2."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=3600, help="Seconds of each measurement; default 60.")
    ] = None,
    stampede: Annotated[
        int | None, typer.Option(min=1, max=20_000, help="Phones that come back at once; default 1000.")
    ] = None,
    closed: Annotated[
        int | None, typer.Option(min=1, max=20_000, help="Phones of the closed loop; default 200.")
    ] = None,
    light_from: Annotated[
        int | None,
        typer.Option(min=1, help="Phones from which a fleet has no features and policy; default 1000."),
    ] = None,
    scenario: Annotated[str, typer.Option("--scenario", help="The scenario that is served.")] = "lite-v2",
    users: Annotated[Users, typer.Option(help="Users who hold the phones.")] = "synthetic",
    policy: Annotated[
        str, typer.Option(help="Of the phones: a baseline such as keep, or an exported agent's folder.")
    ] = "keep",
    sync: Annotated[Sync, typer.Option(help="When phones tell the cloud.")] = "incremental",
    stages: Annotated[
        list[str] | None,
        typer.Option(
            "--stage", metavar="NAME", help="pace, capacity, overload, stampede; repeatable. Default: all."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A service that runs already; pace and capacity only.")
    ] = None,
    secret: Annotated[Path | None, typer.Option(help="File with the secret of that service.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="State folder of that service, to compare the answers.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="JSON file for the rows; default benchmarks/results/load.json.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small fleets and one worker, below 5 minutes.")] = (
        False
    ),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the service under load.

    Pages a second and latency, twice the load that it carries, and 1,000 reconnects at once.
    """
    if url is not None and secret is None:
        raise InputError("--url needs --secret, the file with the secret of that service")
    if url is None and (secret is not None or state is not None):
        raise InputError("--secret and --state are those of a service that runs already: they need --url")
    from edgerec_gym.bench.edge import load
    from edgerec_gym.evaluation.cache import save_rows, saved_rows
    from edgerec_gym.evaluation.latency import measured_on

    settings = load.LoadSettings(
        phones=tuple(phones or ((50,) if quick else (100, 500, 2000))),
        workers=tuple(workers or ((1,) if quick else (1, 2))),
        seconds=seconds or (12.0 if quick else 60.0),
        scenario=scenario,
        users=users,
        policy=policy,
        sync=sync,
        light_from=light_from or 1000,
        closed=closed or (50 if quick else 200),
        stampede=stampede or (100 if quick else 1000),
        seed=seed,
        url=url,
        secret=secret,
        state=state,
        stages=tuple(stages or load.STAGES),
    )
    results = results or (Path("runs/bench-load-quick.json") if quick else RESULTS / "load.json")
    saved_rows(results)  # fail before the work starts
    with console.interruptible("nothing is kept; the same command begins anew"):
        rows = load.run(settings, console.note)
    about = {
        "study": "load",
        "scenario": scenario,
        "quick": quick,
        "sync": sync,
        "seconds": settings.seconds,
        "seed": seed,
        "measured_on": measured_on("uvicorn", "websockets", "fastapi"),
    }
    save_rows(results, rows, about, same=("scenario", "quick", "sync"))
    if as_json:
        console.print_json({"rows": rows, "about": about})
    else:
        for title, (header, body) in load.tables(rows).items():
            console.print_table(title, header, body)
        print(f"rows: {results}")
    lost = [row["stage"] for row in rows if not row.get("exactly_once", True)]
    if lost:
        console.note(f"answers differ between phones and service: {', '.join(lost)}")
        raise typer.Exit(1)
