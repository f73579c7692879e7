"""The command `edgerec`. Torch and the agents are imported inside the commands that need them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgerec_gym import __version__, console
from edgerec_gym.atomic import make_folder
from edgerec_gym.errors import InputError, MissingExtraError

# typer brings its own copy of click since 0.2x; this is the UsageError of whichever it uses.
UsageError: Any = typer.BadParameter.__base__


class OneLineErrors(TyperGroup):
    """Bad input ends in one line on stderr and exit code 2; a bug still shows its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command and exit."""
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except UsageError as error:
            self._fail(error.format_message())
        except (InputError, MissingExtraError) as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(code if isinstance(code, int) else 0)

    @staticmethod
    def _fail(message: str) -> NoReturn:
        console.note("error: " + " ".join(message.split()))
        sys.exit(2)


app = typer.Typer(
    cls=OneLineErrors,
    name="edgerec",
    help="On-device feed recommendation: collect logs, fit users, train and evaluate policies.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable results on stdout.")]
EnvId = Annotated[str, typer.Option("--id", help="EdgeFeed-v0, EdgeFeedRerank-v0, ...")]
ScenarioName = Annotated[
    str, typer.Option("--scenario", help="A shipped scenario (default, lite) or a folder.")
]
NumEnvs = Annotated[int, typer.Option(min=1, help="Environments stepped together.")]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """On-device feed recommendation: collect logs, fit users, train and evaluate policies."""
    if version:
        print(f"edgerec_gym {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
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
            policy=logging_policy,
            progress=progress,
        )
    if as_json:
        console.print_json(result | {"out": str(out)})
    else:
        again = ", complete before" if result["resumed_from"] == result["parts"] else ""
        print(f"{out}: {result['sessions']:,} sessions, {result['slots']:,} slots{again}")


@app.command("import")
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


@app.command()
def fit(
    logs: Annotated[Path, typer.Argument(help="A log folder (of collect or import) or an EB-NeRD bundle.")],
    out: Annotated[Path, typer.Option(help="Scenario folder; an interrupted fit is continued.")],
    ensemble: Annotated[int, typer.Option(min=1, max=100, help="Networks in the ensemble.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="At most; stops early.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Networks trained at a time.")] = 2,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Learn users from logs and write a scenario."""
    from edgerec_gym.logs.ebnerd import convert_ebnerd, is_ebnerd
    from edgerec_gym.logs.reference import ebnerd_reference
    from edgerec_gym.simulator.fit import fit

    real = is_ebnerd(logs)
    reference: dict[str, dict[str, float]] = {}
    with console.interruptible(f"what is finished in {out} is kept; the same command resumes"):
        if real:
            with console.progress_bar("convert") as progress:
                convert_ebnerd(logs, out / "logs", progress=progress)
            reference = ebnerd_reference(out / "logs")
            logs = out / "logs"
        with console.progress_bar("fit") as progress:
            metrics = fit(
                logs, out, seed=seed, ensemble=ensemble, epochs=epochs, threads=threads, progress=progress
            )
    if as_json:
        console.print_json(metrics | ({"reference": reference} if real else {}) | {"out": str(out)})
        return
    if real:
        console.print_table(
            "validation week: click AUC within an impression (mean over impressions) and over all slots",
            ["ranked by", "within", "all"],
            [
                [label, f"{found['impression_auc']:.3f}", f"{found['click_auc']:.3f}"]
                for label, found in (
                    ("item popularity", reference["popularity"]),
                    ("200 boosted trees on 7 streaming features", reference["boosted_trees"]),
                    ("the same, lambdarank objective", reference["lambdarank_trees"]),
                    ("the same, with means over the impression", reference["lambdarank_trees_page"]),
                    ("learned users", metrics),
                )
            ],
        )
    print("fidelity on held-out sessions:")
    console.print_nested(metrics, 1)
    print(f"peak memory: {console.peak_memory():,.0f} MB")
    print(f"scenario: {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    agent: Annotated[
        str, typer.Option(help="maskable-ppo, or crban, dnn, dlcm, prm, setrank, seq2slate with --logs.")
    ] = "maskable-ppo",
    logs: Annotated[Path | None, typer.Option(help="Log folder that a re-ranker learns from.")] = None,
    env_id: EnvId = "EdgeFeed-v0",
    scenario: ScenarioName = "default",
    policy: Annotated[str, typer.Option(help="Network: pointer or flat.")] = "pointer",
    users: Annotated[str, typer.Option(help="learned or synthetic.")] = "learned",
    steps: Annotated[int, typer.Option(min=1, help="Slots to play in all.")] = 200_000,
    num_envs: NumEnvs = 64,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in the folder.")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter, e.g. gamma=0.9."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads; more is rarely faster.")] = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a policy on the learned users of a scenario, or a re-ranker on logs.

    With --logs, the options --id, --scenario, --policy, --users, --steps and --num-envs do not matter.
    """
    from edgerec_gym.agents.registry import train_agent

    with (
        console.interruptible(f"checkpoints in {out} are kept; the same command resumes"),
        console.progress_bar("train") as progress,
    ):
        record = train_agent(
            agent,
            out,
            logs=logs,
            seed=seed,
            resume=resume,
            threads=threads,
            hyper=_assignments(set_ or []),
            progress=progress,
            env_id=env_id,
            policy=policy,
            scenario=scenario,
            users=users,
            steps=steps,
            num_envs=num_envs,
        )
    if as_json:
        console.print_json(record | {"out": str(out)})
    elif logs is None:
        print(f"{out}: {record['steps']:,} slots played")
    else:
        print(f"{out}: {record['steps']} epochs, GAUC {max(record['gauc']):.4f} on the stopping sessions")


@app.command()
def evaluate(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            help="Baselines, oracle, trained runs' folders, module:Class; default: all baselines."
        ),
    ] = None,
    env_id: EnvId = "EdgeFeed-v0",
    scenario: ScenarioName = "default",
    users: Annotated[
        list[str] | None, typer.Option(help="learned, synthetic; default: both where there are both.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions of each policy.")] = 2000,
    num_envs: NumEnvs = 512,
    out: Annotated[Path | None, typer.Option(help="Write a report folder with plots, too.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score policies, paired by common random numbers; keep and the oracle are always among them."""
    from edgerec_gym.agents.baselines import baselines_of
    from edgerec_gym.agents.lookup import find_policies
    from edgerec_gym.evaluate import KEEP, REFERENCE, evaluate
    from edgerec_gym.registration import track_of
    from edgerec_gym.report import require_matplotlib, write_report
    from edgerec_gym.scenario import Scenario

    names, track = list(policies or ()), track_of(env_id)
    loaded = Scenario.load(scenario)
    if not users:
        users = ["learned"] if loaded.synthetic is None else ["learned", "synthetic"]
    names = [KEEP, *(names or baselines_of(track)), *([REFERENCE] if "synthetic" in users else [])]
    if out is not None:  # what stops the report is better known before the work
        require_matplotlib()
        make_folder(out)
    found = find_policies(names, env_id, loaded, users[0], seed)
    with console.interruptible("nothing is kept"), console.progress_bar("evaluate") as progress:
        results = evaluate(
            found,
            env_id=env_id,
            scenario=loaded,
            users=users,
            sessions=sessions,
            seed=seed,
            num_envs=num_envs,
            progress=console.over_all(progress, found, users),
        )
    if out is not None:
        write_report(results, out, title=f"{env_id} on the scenario {scenario}")
    if as_json:
        console.print_json(results)
        return
    console.print_results(results)
    if out is not None:
        print(f"report: {out / 'report.md'}")


@app.command()
def info(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario (default, lite) or a folder.")],
    as_json: AsJson = False,
) -> None:
    """Show what a scenario is: what is unlike the default, where it comes from, how well its users fit."""
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
    unusual = {name: value for name, value in loaded.config.to_dict().items() if value != usual[name]}
    console.print_nested(content | {"config": unusual or "as the preset default"})


@app.command()
def fidelity(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario (default, lite) or a folder.")],
    logs: Annotated[Path, typer.Argument(help="The log folder that its users were fitted on, or another.")],
    out: Annotated[Path | None, typer.Option(help="Write fidelity.json and plots, too.")] = None,
    whole_log: Annotated[
        bool, typer.Option("--whole-log", help="Use all sessions: the users never saw this log.")
    ] = False,
    sessions: Annotated[int, typer.Option(min=20, help="Of the log and of rollouts, at most.")] = 4000,
    policy_sessions: Annotated[
        int, typer.Option(min=2, help="Of each policy, to compare with the ground truth.")
    ] = 2000,
    quick: Annotated[bool, typer.Option("--quick", help="Few sessions, to see every part.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Show how true learned users are: held-out sessions, rollouts, effects, and how they rank policies."""
    from edgerec_gym.agents.zoo import policy_zoo
    from edgerec_gym.fidelity_plots import write_fidelity
    from edgerec_gym.fidelity_report import fidelity_report, fidelity_tables
    from edgerec_gym.report import require_matplotlib
    from edgerec_gym.scenario import Scenario

    loaded = Scenario.load(scenario)
    if out is not None:  # what stops the report is better known before the work
        require_matplotlib()
        make_folder(out)
    with console.interruptible("nothing is kept"), console.progress_bar("fidelity") as progress:
        report = fidelity_report(
            loaded,
            logs,
            policies=policy_zoo(loaded.config.page_size, seed) if loaded.synthetic is not None else (),
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


@app.command("scenario")
def refit(
    name: Annotated[list[str] | None, typer.Option(help="default, lite; default: both.")] = None,
    sessions: Annotated[
        int | None, typer.Option(min=10, help="To collect for each; default: as in those that ship.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: the scenarios inside the package.")] = None,
    work: Annotated[Path, typer.Option(help="Logs and unfinished fits.")] = Path("runs/scenario"),
    ensemble: Annotated[int, typer.Option(min=1, max=100, help="Networks in the ensemble.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="At most; stops early.")] = 20,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the shipped scenarios again, from freshly collected logs."""
    from edgerec_gym.demo import refit_shipped

    with console.interruptible(f"logs and finished epochs in {work} are kept; the same command resumes"):
        done = refit_shipped(
            name, sessions=sessions, out=out, work=work, ensemble=ensemble, epochs=epochs, seed=seed
        )
    if as_json:
        console.print_json(done)
        return
    for scenario, metrics in done.items():
        print(f"{scenario}, on held-out sessions:")
        console.print_nested(metrics, 1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder; finished stages in it are skipped.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see every stage run.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Collect logs, fit users, train a policy and score it on the ground truth, in a few minutes."""
    from edgerec_gym.demo import run_demo

    with console.interruptible(
        f"finished stages and checkpoints in {out} are kept; the same command resumes"
    ):
        results, report = run_demo(out, quick=quick, fresh=fresh, seed=seed)
    if as_json:
        console.print_json({"results": results, "report": str(report)})
        return
    console.print_results(results)
    print(f"report: {report / 'report.md'}")


@app.command("bench-env")
def bench_env(
    out: Annotated[
        Path, typer.Option(help="JSON file; figures in it, of this version and machine, are kept.")
    ] = Path("runs/throughput.json"),
    quick: Annotated[bool, typer.Option("--quick", help="EdgeFeed-v0 on the default preset only.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Spent on each configuration.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Measure steps per second beside plain copies, memory, import and first-make times."""
    from edgerec_gym.throughput import bench, throughput_tables

    make_folder(out.parent)
    with (
        console.interruptible(f"the figures in {out} are kept; the same command goes on"),
        console.progress_bar("bench-env") as update,
    ):
        results = bench(out, quick=quick, fresh=fresh, seconds=seconds, progress=update)
    if as_json:
        console.print_json(results)
        return
    for title, (header, body) in throughput_tables(results).items():
        console.print_table(title, header, body)


def _assignments(pairs: list[str]) -> dict[str, Any]:
    """["gamma=0.9"] -> {"gamma": 0.9}."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            raise InputError(f"--set {pair!r} must read NAME=NUMBER, e.g. gamma=0.9") from None
    return values


def main() -> None:
    """Entry point of the command `edgerec`."""
    app()


if __name__ == "__main__":
    main()
