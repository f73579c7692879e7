"""Sizes of the benchmark's track request, its log, its training runs, and their plans for waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec_gym.agents import request_dqn
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.request_waiting import plan_waiting, replay_pages
from edgerec_gym.agents.track_runs import run_folder, train_missing
from edgerec_gym.agents.uplift_data import split_decisions
from edgerec_gym.agents.uplift_models import ESTIMATORS
from edgerec_gym.agents.uplift_training import load_model
from edgerec_gym.atomic import read_json, write_json
from edgerec_gym.benchmark import Progress
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario

ENV_ID = "EdgeFeedRequest-v0"
PPO = "pointer-ppo"
PLANNER = "uplift-x"  # that the headline is about, and that also plays with the value of waiting
HORIZON = 15  # slots, of effects that policies and figures are about
WAITING_PLANS = "waiting.json"  # in the planner's run: rate -> price, value of going on by age of the page


@dataclass(frozen=True)
class Sizes:
    """How much work a run of the track is.

    Attributes:
        log_sessions: collected to train on.
        sessions: that each policy plays.
        oracle_sessions: that the oracle plays, the first ones of the same; its moments cost most.
        effect_sessions: whose moments measure the estimates.
        audit_sessions: whose requests are played both ways.
        ppo_steps, dqn_steps: slots that these learn from.
        concurrent, ticks: of the shared budget.
        rates: two or more shares of the moments whose estimate exceeds the price.
        waiting_rates: two or more shares of the moments with a request, of planners that wait.
        hyper: hyper-parameters of each agent that differ from its defaults.
    """

    log_sessions: int = 100_000
    sessions: int = 10_000
    oracle_sessions: int = 1500
    effect_sessions: int = 5000
    audit_sessions: int = 400
    ppo_steps: int = 40_000
    dqn_steps: int = 60_000
    concurrent: int = 10_000
    ticks: int = 40
    rates: tuple[float, ...] = (0.05, 0.12, 0.22, 0.4)
    waiting_rates: tuple[float, ...] = (0.02, 0.04, 0.08, 0.12)
    hyper: dict[str, dict[str, Any]] = field(default_factory=dict)


QUICK = Sizes(
    log_sessions=10_000,
    sessions=1000,
    oracle_sessions=300,
    effect_sessions=800,
    audit_sessions=200,
    ppo_steps=8192,
    dqn_steps=8000,
    concurrent=1000,
    ticks=60,
    rates=(0.05, 0.2),
    waiting_rates=(0.02, 0.04),
    hyper={agent: {"behaviour": 4, "epochs": 2} for agent in ESTIMATORS},
)
FULL = {"lite": Sizes()}


def _train_one(out: str, scenario: str, agent: str, seed: int, sizes: Sizes) -> None:
    folder = run_folder(Path(out), agent, seed)
    steps = {PPO: sizes.ppo_steps, request_dqn.AGENT: sizes.dqn_steps}.get(agent, 0)
    train_agent(
        agent,
        folder,
        logs=Path(out) / "logs" if agent in ESTIMATORS else None,
        seed=seed,
        resume=True,
        threads=1,
        hyper=sizes.hyper.get(agent, {}),
        env_id=ENV_ID,
        scenario=scenario,
        steps=steps,
    )


def train_all(
    out: Path, scenario: str, sizes: Sizes, seeds: Sequence[int], workers: int, progress: Progress | None
) -> None:
    """Collect the log, train what is missing, and plan the waiting of the planners."""
    collect(
        out / "logs",
        preset_name=scenario,
        sessions=sizes.log_sessions,
        randomise=["request"],
        progress=(lambda done, total: progress(done, total, "log sessions")) if progress else None,
    )
    jobs = [(agent, seed) for seed in seeds for agent in (*ESTIMATORS, PPO, request_dqn.AGENT)]
    train_missing(_train_one, out, scenario, sizes, [jobs], workers, progress)
    for seed in seeds:
        _plan_waiting(out, scenario, sizes.waiting_rates, seed)


def _plan_waiting(out: Path, scenario: str, rates: Sequence[float], seed: int) -> None:
    """Plan on the log's sessions that decided when training stopped, which the run was not trained on."""
    run = run_folder(out, PLANNER, seed)
    if set(rates) <= set(waiting_plans(run)):
        return
    network = load_model(run, Scenario.load(scenario).config)
    _, stopping, _ = split_decisions(
        LogReader(out / "logs"), horizon=HORIZON, controls=1.0, surrogate=False, seed=seed
    )
    pages = replay_pages(network, stopping)
    plans = {str(rate): plan_waiting(pages, rate) for rate in rates}
    told = {rate: {"price": plan.price, "later": plan.later.tolist()} for rate, plan in plans.items()}
    write_json(run / WAITING_PLANS, told)


def waiting_plans(run: Path) -> dict[float, dict[str, Any]]:
    """Arguments `price` and `later` of a planner that waits, by rate; empty where nothing is planned yet."""
    file = run / WAITING_PLANS
    return {float(rate): plan for rate, plan in read_json(file).items()} if file.is_file() else {}
