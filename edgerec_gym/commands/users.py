"""Commands about learned users and their scenarios: fit, info, fidelity, scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.logs import import_ebnerd, print_reference
from edgerec_gym.commands.options import AsJson, ScenarioPlace, Seed
from edgerec_gym.files import make_folder


def fit(
    logs: Annotated[Path, typer.Argument(help="A log folder (of collect or import) or an EB-NeRD bundle.")],
    out: Annotated[Path, typer.Option(help="Scenario folder; an interrupted fit is resumed.")],
    ensemble: Annotated[int, typer.Option(min=1, max=100, help="Networks in the ensemble.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum number of epochs; stops early.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Networks trained at a time.")] = 2,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Learn users from logs and write a scenario."""
    from edgerec_gym.fidelity.offer import check_offer
    from edgerec_gym.logs.ebnerd import is_ebnerd
    from edgerec_gym.simulator.fit import fit

    reference: dict[str, dict[str, float]] | None = None
    if is_ebnerd(logs):  # a bundle is imported first
        bundle, logs = logs, out / "logs"
        reference = import_ebnerd(bundle, logs)
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("fit") as progress,
    ):
        metrics = fit(
            logs,
            out,
            seed=seed,
            ensemble=ensemble,
            epochs=epochs,
            threads=threads,
            check=check_offer,
            progress=progress,
        )
    if as_json:
        console.print_json(metrics | ({"reference": reference} if reference else {}) | {"out": str(out)})
        return
    if reference is not None:
        print_reference(reference, metrics)
    print("fidelity on held-out sessions:")
    console.print_nested(metrics, 1)
    print(f"peak memory: {console.peak_memory():,.0f} MB")
    print(f"scenario: {out}")


def info(
    scenario: ScenarioPlace,
    as_json: AsJson = False,
) -> None:
    """Describe a scenario.

    It tells how the feed differs from the preset default, where the logs come from, and how well the users
    fit.
    """
    from edgerec_gym.config import FeedConfig
    from edgerec_gym.scenario import Scenario

    loaded = Scenario.load(scenario)
    content = {
        "name": loaded.name,
        "items": len(loaded.catalog),
        "config": loaded.config.to_dict(),
        "unidentified": list(loaded.unidentified),
        "provenance": loaded.provenance,
        "fidelity": loaded.fidelity,
    }
    if as_json:
        console.print_json(content)
        return
    usual = FeedConfig().to_dict()
    unusual = {name: value for name, value in loaded.config.to_dict().items() if value != usual.get(name)}
    console.print_nested(content | {"config": unusual or "as the preset default"})


def fidelity(
    scenario: ScenarioPlace,
    logs: Annotated[Path, typer.Argument(help="The log folder that its users were fitted on, or another.")],
    out: Annotated[Path | None, typer.Option(help="Also write fidelity.json and plots.")] = None,
    whole_log: Annotated[
        bool, typer.Option("--whole-log", help="Use all sessions, for a log that the users never saw.")
    ] = False,
    sessions: Annotated[
        int, typer.Option(min=20, help="Maximum number of sessions of the log and of the rollouts.")
    ] = 4000,
    policy_sessions: Annotated[
        int, typer.Option(min=2, help="Sessions per policy, to compare with the ground truth.")
    ] = 2000,
    quick: Annotated[bool, typer.Option("--quick", help="Run every part on few sessions.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how true learned users are.

    They are compared with held-out sessions, in rollouts, by the effects of single actions, and by how they
    rank policies.
    """
    from edgerec_gym.bench.weak_to_strong import weak_to_strong
    from edgerec_gym.evaluation.report import require_matplotlib
    from edgerec_gym.fidelity.plots import write_fidelity
    from edgerec_gym.fidelity.report import fidelity_report, fidelity_tables
    from edgerec_gym.scenario import Scenario

    loaded = Scenario.load(scenario)
    if out is not None:  # fail before the work starts
        require_matplotlib()
        make_folder(out)
    with console.interruptible("nothing is kept"), console.progress_bar("fidelity") as progress:
        report = fidelity_report(
            loaded,
            logs,
            policies=weak_to_strong(loaded.config, seed) if loaded.synthetic is not None else (),
            whole_log=whole_log,
            sessions=min(sessions, 300) if quick else sessions,
            policy_sessions=min(policy_sessions, 100) if quick else policy_sessions,
            repeats=3 if quick else 10,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        write_fidelity(report, out)
    if as_json:
        console.print_json(report)
        return
    for title, (header, body) in fidelity_tables(report).items():
        console.print_table(title, header, body)
    print(f"weak: {', '.join(report['weak']) or 'nothing'}")
    if out is not None:
        print(f"report: {out / 'fidelity.json'}")


def refit(
    name: Annotated[
        list[str] | None, typer.Option(help="Name of a preset; repeatable; default: all.")
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option(min=10, help="Sessions to collect for each; default: as for the shipped ones."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: the scenarios inside the package.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder of logs and unfinished fits.")] = Path("runs/scenario"),
    ensemble: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Networks in each ensemble; default: as for the shipped ones."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum number of epochs; stops early.")] = 20,
    item_table: Annotated[
        bool,
        typer.Option("--item-table/--no-item-table", help="Ship what logs tell of items (edgerec items)."),
    ] = True,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Refit the shipped scenarios from freshly collected logs."""
    from edgerec_gym.commands.demo import refit_shipped

    with console.interruptible(f"logs and finished epochs in {work} are kept; the same command resumes"):
        done = refit_shipped(
            name,
            sessions=sessions,
            out=out,
            work=work,
            ensemble=ensemble,
            epochs=epochs,
            seed=seed,
            item_table=item_table,
        )
    if as_json:
        console.print_json(done)
        return
    for scenario, metrics in done.items():
        print(f"{scenario}, on held-out sessions:")
        console.print_nested(metrics, 1)
