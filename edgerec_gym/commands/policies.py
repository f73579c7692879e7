"""Commands about policies: train, evaluate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, EnvId, NumEnvs, ScenarioName, Seed
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    agent: Annotated[
        str,
        typer.Option(
            help="By playing: pointer-ppo, flat-ppo. With --logs: crban, dnn, dlcm, prm, setrank, seq2slate, "
            "pointer, evaluator, esan. With --based-on runs of these: pointer-evaluator, pointer-users, "
            "pointer-distilled, sequence-search, esan-pg, edgerec. With logs of --randomise request: "
            "uplift-t, uplift-x, uplift-class, uplift-dragon. By playing EdgeFeedRequest-v0: request-dqn."
        ),
    ] = "pointer-ppo",
    logs: Annotated[Path | None, typer.Option(help="Log folder that the agent learns from.")] = None,
    based_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run to start from, such as an evaluator, a generator or esan; repeatable. edgerec starts "
            "from a scoring re-ranker, esan and an uplift model."
        ),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="TOML file with the rules of edgerec, e.g. examples/edgerec.toml.")
    ] = None,
    env_id: EnvId = "EdgeFeed-v0",
    scenario: ScenarioName = "default",
    users: Annotated[str, typer.Option(help="learned or synthetic.")] = "learned",
    steps: Annotated[int, typer.Option(min=1, help="Total number of slots to play.")] = 50_000,
    num_envs: NumEnvs = 128,
    resume: Annotated[bool, typer.Option(help="Resume from the last checkpoint in the folder.")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter, e.g. gamma=0.9."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads; more is rarely faster.")] = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a policy on the learned users of a scenario, or an agent on logs.

    pointer-ppo (MaskablePPO with the pointer policy) and flat-ppo (with a plain network) take --id,
    --scenario, --users, --steps and --num-envs. request-dqn takes --scenario, --users and --steps.
    pointer-users, esan-pg and edgerec take --scenario and --users.
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
            based_on=based_on or (),
            seed=seed,
            resume=resume,
            threads=threads,
            hyper=_assignments(set_ or []),
            progress=progress,
            rules=rules,
            env_id=env_id,
            scenario=scenario,
            users=users,
            steps=steps,
            num_envs=num_envs,
        )
    if as_json:
        console.print_json(record | {"out": str(out)})
        return
    print(f"{out}: {_progress_made(record)}")


def _progress_made(record: dict[str, Any]) -> str:
    """Describe the outcome of a training run."""
    steps = record["steps"]
    if "gauc" in record:
        return f"{steps} epochs, GAUC {max(record['gauc']):.4f} on the stopping sessions"
    if "loss" in record:
        return f"{steps} epochs, loss {min(record['loss']):.4f} per card on the stopping sessions"
    if "residual_loss" in record:
        return f"{steps} epochs, residual loss {min(record['residual_loss']):.4f} on the stopping sessions"
    if "reward" not in record:
        return f"{steps:,} slots played"
    last = record["reward"][-20:]
    if not last:
        return "evaluator and generator joined"
    return f"{steps} updates, reward {sum(last) / len(last):.3f} in the last {len(last)}"


def evaluate(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            help="Baselines, oracle, trained runs' folders or module:Class; default: all baselines."
        ),
    ] = None,
    env_id: EnvId = "EdgeFeed-v0",
    scenario: ScenarioName = "default",
    users: Annotated[
        list[str] | None, typer.Option(help="learned or synthetic; repeatable; default: all available.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that each policy plays.")] = 2000,
    num_envs: NumEnvs = 512,
    out: Annotated[Path | None, typer.Option(help="Also write a report folder with plots.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score policies, paired by common random numbers; keep and the oracle are always included."""
    from edgerec_gym.agents.baselines import baselines_of
    from edgerec_gym.agents.find_policy import find_policies
    from edgerec_gym.evaluation.play import KEEP, REFERENCE, evaluate
    from edgerec_gym.evaluation.report import require_matplotlib, write_report
    from edgerec_gym.registration import track_of
    from edgerec_gym.scenario import Scenario

    names, track = list(policies or ()), track_of(env_id)
    loaded = Scenario.load(scenario)
    if not users:
        users = ["learned"] if loaded.synthetic is None else ["learned", "synthetic"]
    names = [KEEP, *(names or baselines_of(track)), *([REFERENCE] if "synthetic" in users else [])]
    if out is not None:  # fail before the work starts
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


def export(
    run: Annotated[Path, typer.Argument(help="Run of crban, pointer, pointer-... or sequence-search.")],
    out: Annotated[Path, typer.Option(help="Folder of the device model; an existing one is replaced.")],
    scenario: ScenarioName = "default",
    places: Annotated[
        int | None, typer.Option(min=1, help="Maximum cards in a list; default: the scenario's slate_size.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained re-ranker as ONNX graphs for a phone; edgerec evaluate can play the folder."""
    from edgerec_gym.agents.export.export import export

    described = export(run, out, scenario=scenario, places=places)
    if as_json:
        console.print_json(described | {"out": str(out)})
        return
    graphs, size = len(described["sha256"]), described["bytes"]
    print(
        f"{out}: {described['agent']}, {graphs} graphs, {size / 1e6:.2f} MB, lists of {described['places']}"
    )


def _assignments(pairs: list[str]) -> dict[str, Any]:
    """Parse ["gamma=0.9"] into {"gamma": 0.9}."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            raise InputError(f"--set {pair!r} must read NAME=NUMBER, e.g. gamma=0.9") from None
    return values
