"""Commands about policies: train, evaluate, export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.agents.registry import AGENTS, PLACE, Agent, agent_names, find_agent, train_agent
from edgerec_gym.commands import console
from edgerec_gym.commands.options import (
    AsJson,
    Engine,
    EnvId,
    NumEnvs,
    RunEnvId,
    RunScenarioName,
    ScenarioName,
    Seed,
    Users,
)
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder


def agents(incomplete: str) -> list[str]:
    """Complete the name of an agent."""
    return [name for name in agent_names() if name.startswith(incomplete)]


def _taken_by(argument: str) -> str:
    """Tell from the table which agents take an argument."""
    return f"For {', '.join(name for name, agent in AGENTS.items() if argument in agent.takes)}."


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    agent: Annotated[
        str, typer.Option(help="Name of an agent (edgerec agents), or module:AGENT.", autocompletion=agents)
    ] = "pointer-ppo",
    logs: Annotated[Path | None, typer.Option(help="Log folder that the agent learns from.")] = None,
    based_on: Annotated[
        list[Path] | None,
        typer.Option(help="Run to start from, repeatable; edgerec agents says which an agent takes."),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(help=f"TOML file with rules, e.g. examples/edgerec.toml. {_taken_by('rules')}"),
    ] = None,
    env_id: EnvId = "EdgeFeed-v0",
    scenario: ScenarioName = "default",
    users: Annotated[Users, typer.Option(help=f"Users to play. {_taken_by('users')}")] = "learned",
    steps: Annotated[
        int, typer.Option(min=1, help=f"Total number of slots to play. {_taken_by('steps')}")
    ] = 50_000,
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
    """Train an agent from logs, by playing, or from other runs."""
    found = find_agent(agent)
    _refuse_unread(context, found)
    console.tell_terminal(f"loading {agent}")
    if users == "learned" and "scenario" in found.takes:
        from edgerec_gym.scenario import Scenario

        console.note_weakness(Scenario.load(scenario))
    _note_responses(found, logs, scenario)
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
            hyper=assignments(set_ or []),
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
    if found.load is not None:
        console.note(f"next: edgerec evaluate {shlex.quote(str(out))}")


def _refuse_unread(context: typer.Context, agent: Agent) -> None:
    """Raise InputError for an option that was given but that the agent does not read."""
    reads = {name: agent.reads(name) for name in ("rules", *PLACE, "logs", "based_on")}
    options = {name: "--id" if name == "env_id" else f"--{name.replace('_', '-')}" for name in reads}
    for name, read in reads.items():
        source = context.get_parameter_source(name)
        if not read and source is not None and source.name == "COMMANDLINE":
            others = ", ".join(options[one] for one, does in reads.items() if does) or "none of its kind"
            raise InputError(f"agent {agent.name!r} does not read {options[name]}; it reads {others}")


def _note_responses(agent: Agent, logs: Path | None, scenario: str) -> None:
    """Print one line on stderr if named responses count in the reward, but the agent does not learn them."""
    from edgerec_gym.logs.store import LogReader
    from edgerec_gym.scenario import Scenario

    if not agent.clicks_alone:
        return
    agent.code("train")  # first: it says which extra is missing
    config = Scenario.load(scenario).config if logs is None else LogReader(logs, allow_empty=True).config
    counted = [f"{response} ({weight:g})" for response, weight in config.reward.responses if weight]
    if counted:
        others = ", ".join(other for other, known in AGENTS.items() if not known.clicks_alone)
        console.note(
            f"note: {', '.join(counted)} count in the reward, but {agent.name} learns clicks and purchases "
            f"alone; agents that learn the whole reward: {others}"
        )


def _progress_made(record: dict[str, Any]) -> str:
    """Describe the outcome of a training run."""
    steps = record["steps"]
    if "gauc" in record:
        return f"{steps} epochs, GAUC {max(record['gauc']):.4f} on the stopping sessions"
    if "ndcg" in record:
        return f"{steps} epochs, NDCG@10 {max(record['ndcg']):.4f} on the stopping sessions"
    if record.get("held_out"):
        best = max(figures["value"] for figures in record["held_out"])
        return f"{steps} updates, reward {best:.3f} a session on users held out"
    if "loss" in record and "reward" not in record:
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
            help="Baselines, oracle, attainable, runs' folders or module:Class; default: all baselines."
        ),
    ] = None,
    env_id: RunEnvId = None,
    scenario: RunScenarioName = None,
    users: Annotated[
        list[str] | None, typer.Option(help="learned or synthetic, repeatable; default: all available.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that each policy plays.")] = 2000,
    num_envs: NumEnvs = 512,
    out: Annotated[Path | None, typer.Option(help="Also write a report folder with plots.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score policies side by side, on the same users and luck.

    Sessions are paired by common random numbers. The policy keep and the oracle are always included.
    """
    from edgerec_gym.agents.baselines import baselines_of
    from edgerec_gym.agents.find_policy import find_policies
    from edgerec_gym.agents.run_place import common_place
    from edgerec_gym.evaluation.play import evaluate, kinds_of_users, with_references
    from edgerec_gym.evaluation.report import require_matplotlib, write_report
    from edgerec_gym.registration import track_of
    from edgerec_gym.scenario import Scenario

    names = list(policies or ())
    env_id, scenario = common_place(names, env_id, scenario)
    track, loaded = track_of(env_id), Scenario.load(scenario)
    users = users or kinds_of_users(loaded)
    names = names or list(baselines_of(track, loaded.config.item_columns))
    found = find_policies(with_references(names, users), env_id, loaded, users[0], seed)
    if out is not None:  # fail before the work starts
        require_matplotlib()
        make_folder(out)
    if "learned" in users:
        console.note_weakness(loaded)
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
    run: Annotated[Path, typer.Argument(help="Run of any agent that plays.")],
    out: Annotated[Path, typer.Option(help="Folder of the device model; an existing one is replaced.")],
    scenario: RunScenarioName = None,
    places: Annotated[
        int | None, typer.Option(min=1, help="Maximum cards in a list; default: the scenario's slate_size.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Engine that runs it on the phone.")] = "onnxruntime",
    as_json: AsJson = False,
) -> None:
    """Export a trained agent as graphs for a phone.

    edgerec evaluate and edgerec phone play the folder.
    """
    from edgerec_gym.agents.export.export import export
    from edgerec_gym.agents.run_place import run_place

    scenario = scenario or run_place(run).scenario or "default"

    with console.interruptible("nothing is written"):
        described = export(run, out, scenario=scenario, places=places, engine=engine)
    if as_json:
        console.print_json(described | {"out": str(out)})
        return
    graphs, size = len(described["graphs"]), described["bytes"]
    print(
        f"{out}: {described['agent']} for {engine}, {graphs} graphs, {size / 1e6:.2f} MB, lists of "
        f"{described['places']}"
    )


def assignments(pairs: list[str]) -> dict[str, Any]:
    """Parse ["gamma=0.9", "critic=plain"] into {"gamma": 0.9, "critic": "plain"}."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if not text:
            raise InputError(f"--set {pair!r} must read NAME=VALUE, e.g. gamma=0.9")
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text  # the agent's settings tell which texts are allowed
    return values
