"""Commands that learn from logs without playing: export-logs, off-policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, EnvId, Seed

Logs = Annotated[Path, typer.Argument(help="Log folder.")]


def export_logs(
    logs: Logs,
    out: Annotated[
        Path,
        typer.Option(help="New folder, which names the data set, e.g. runs/minari/edgefeed-request-v0."),
    ],
    env_id: EnvId = "EdgeFeed-v0",
    scenario: Annotated[
        str | None,
        typer.Option(help="Scenario that the data set's environment uses; default: the logged one."),
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of sessions; default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write logs as a Minari data set, for offline RL."""
    from edgerec_gym.agents.data.minari import export_minari

    with console.interruptible("nothing is kept"), console.progress_bar("export") as progress:
        result = export_minari(
            logs, out, env_id=env_id, scenario=scenario, sessions=sessions, progress=progress
        )
    if as_json:
        console.print_json(result | {"out": str(out)})
    else:
        print(f"{out}: {result['episodes']:,} episodes, {result['steps']:,} steps of {result['env_id']}")


def off_policy(
    logs: Logs,
    policy: Annotated[
        list[str],
        typer.Option(help="A baseline, a trained run or module:Class; repeatable."),
    ],
    at_moments: Annotated[
        bool, typer.Option("--at-moments", help="Let policies decide only at the log's random decisions.")
    ] = False,
    scenario: Annotated[
        str | None, typer.Option(help="Scenario whose sizes trained runs must fit; default: the logged one.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate policies' values from a log alone.

    From a log of random requests, policies of EdgeFeedRequest-v0; from an imported log with propensities, of
    EdgeFeedRerank-v0.
    """
    from edgerec_gym.agents.data.daily_items import has_item_propensities
    from edgerec_gym.agents.data.logged_decisions import read_decisions
    from edgerec_gym.agents.data.minari import environment_spec
    from edgerec_gym.agents.find_policy import find_policies
    from edgerec_gym.evaluation.off_policy import off_policy_estimates
    from edgerec_gym.logs.store import LogReader
    from edgerec_gym.registration import IDS
    from edgerec_gym.scenario import Scenario

    reader = LogReader(logs)
    track = "rerank" if has_item_propensities(reader) else "request"
    env_id = next(name for name in IDS if IDS[name] == track)
    if track == "rerank" and scenario is None and not any(Path(name).is_dir() for name in policy):
        sizes = Scenario("log", reader.config, reader.catalog)  # policies without weights need no users
        found = find_policies(policy, env_id, sizes, "learned", seed)
    else:
        place = environment_spec(reader, track, scenario).kwargs
        found = find_policies(policy, env_id, place["scenario"], place["users"], seed)
    rows: list[dict[str, Any]] = []
    with console.interruptible("nothing is kept"), console.progress_bar("estimate") as progress:
        for index, one in enumerate(found):

            def update(done: int, total: int, index: int = index, name: str = one.name) -> None:
                progress(index * total + done, len(found) * total, name)

            decisions = read_decisions(reader, one, at_moments=at_moments, progress=update)
            rows.append({"policy": one.name, **off_policy_estimates(decisions, seed)})
    if as_json:
        console.print_json(rows)
        return
    names = ("ips", "snips", "dr")
    body = [["(the log itself)", *[""] * len(names), _interval(rows[0]["logged"]), ""]] + [
        [row["policy"], *(_interval(row[name]) for name in names), "", f"{row['effective_sessions']:,.0f}"]
        for row in rows
    ]
    title = f"reward per session, 95 % over sessions; {rows[0]['sessions']:,} sessions of {logs}"
    console.print_table(title, ["policy", "IPS", "SNIPS", "DR", "logged", "effective sessions"], body)


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
