"""Train, evaluate and plot, one call each: `train`, `evaluate` and `plot` of `edgerec_gym`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgerec_gym.agents.find_policy import find_policies
from edgerec_gym.agents.registry import PLACE, Progress, find_agent, train_agent
from edgerec_gym.agents.run_place import common_place
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation import play
from edgerec_gym.evaluation.report import require_matplotlib, save_figure, tables, value_figure
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario


class Results(list[dict[str, Any]]):
    """Rows of :func:`~edgerec_gym.evaluation.play.evaluate`, which print as tables."""

    def __repr__(self) -> str:
        """Return the tables of the command `edgerec evaluate`."""
        parts = []
        for title, (header, body) in tables(list(self), brief=True).items():
            header = [name.replace("\n", " ") for name in header]
            rows = [header, *body]
            widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
            lines = [
                "  ".join(cell.rjust(widths[k]) if k else cell.ljust(widths[k]) for k, cell in enumerate(row))
                for row in rows
            ]
            parts += [title, *lines, ""]
        return "\n".join(parts)


def train(
    agent: str,
    out: str | Path,
    *,
    logs: str | Path | None = None,
    based_on: Sequence[str | Path] | str | Path = (),
    seed: int = 0,
    resume: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train an agent as `edgerec train` does.

    Args:
        agent: name of an agent (`edgerec agents` lists them), or "module:AGENT".
        out: the run's folder; a run in it is resumed.
        logs: log folder that the agent learns from.
        based_on: run or runs to start from.
        seed: seed of everything random.
        resume: False refuses a folder that holds a run.
        threads: torch threads.
        progress: called with (done, total, text).
        **options: where agents that learn by playing play (`env_id`, `scenario`, `users`, `steps`,
            `num_envs`, `rules`), and hyper-parameters of the agent.

    Returns:
        The run's record, the content of its policy.json.

    Raises:
        InputError: the agent is unknown, does not read an option, or lacks what it learns from.
        MissingExtraError: torch is not installed.
    """
    found = find_agent(agent)
    for name in (*PLACE, "rules"):
        if name in options and not found.reads(name):
            raise InputError(f"agent {agent!r} does not read {name!r}; leave it out")
    place = {name: options.pop(name, usual) for name, usual in PLACE.items()}
    sources = [based_on] if isinstance(based_on, str | Path) else list(based_on)
    return train_agent(
        agent,
        out,
        logs=logs,
        based_on=sources,
        rules=options.pop("rules", None),
        seed=seed,
        resume=resume,
        threads=threads,
        hyper=options,
        progress=progress,
        **place,
    )


def evaluate(
    policies: str | Policy | Sequence[str | Policy],
    *,
    env_id: str | None = None,
    scenario: str | Scenario | None = None,
    users: Sequence[str] | None = None,
    sessions: int = 2000,
    seed: int = 0,
    num_envs: int = 512,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Score policies as `edgerec evaluate` does: side by side, on the same users and luck.

    Args:
        policies: names of baselines, folders of runs or of exported models, "module:Class", or objects.
        env_id: the id to play; None: that of the runs, else "EdgeFeed-v0".
        scenario: the scenario to play; None: that of the runs, else "default".
        users: kinds of users; None: "learned", and "synthetic" if the scenario has them.
        sessions: sessions that each policy plays.
        seed: seed of the sessions.
        num_envs: sessions played at a time.
        progress: called with (policy, done, sessions).

    Returns:
        The rows of :func:`edgerec_gym.evaluation.play.evaluate`, which print as tables. *Keep*, and the
        oracle if synthetic users play, are always included.

    Raises:
        InputError: a policy, id or scenario is unknown, or does not fit.
    """
    given = [policies] if isinstance(policies, str) or not isinstance(policies, Sequence) else list(policies)
    names = [str(one) for one in given if isinstance(one, str | Path)]
    place = common_place(names, env_id, "" if scenario is not None else None)
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario or place[1])
    kinds = list(users or play.kinds_of_users(loaded))
    found = find_policies(play.with_references(names, kinds), place[0], loaded, kinds[0], seed)
    found += [one for one in given if not isinstance(one, str | Path)]
    rows = play.evaluate(
        found,
        env_id=place[0],
        scenario=loaded,
        users=kinds,
        sessions=sessions,
        seed=seed,
        num_envs=num_envs,
        progress=progress,
    )
    return Results(rows)


def plot(results: Sequence[dict[str, Any]], out: str | Path | None = None) -> Any:
    """Draw the value of each policy with its interval.

    Args:
        results: what :func:`evaluate` returns.
        out: PNG file to write; None: only return the figure.

    Returns:
        The :class:`matplotlib.figure.Figure`, which notebooks show.

    Raises:
        InputError: there are no results.
        MissingExtraError: matplotlib is not installed.
    """
    if not results:
        raise InputError("no results to plot")
    require_matplotlib()
    figure = value_figure(list(results))
    if out is not None:
        save_figure(figure, Path(out))
    return figure
