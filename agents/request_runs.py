"""Sizes of the benchmark's track request, its log and its training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec_gym.agents import request_dqn
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.track_runs import run_folder, train_missing
from edgerec_gym.agents.uplift_models import ESTIMATORS
from edgerec_gym.benchmark import Progress
from edgerec_gym.logs.collect import collect

ENV_ID = "EdgeFeedRequest-v0"
PPO = "pointer-ppo"


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
        one_seed: agents that are trained with the first seed only.
        hyper: hyper-parameters of each agent that differ from its defaults.
    """

    log_sessions: int = 100_000
    sessions: int = 3000
    oracle_sessions: int = 1500
    effect_sessions: int = 5000
    audit_sessions: int = 400
    ppo_steps: int = 40_000
    dqn_steps: int = 60_000
    concurrent: int = 10_000
    ticks: int = 40
    rates: tuple[float, ...] = (0.05, 0.12, 0.22, 0.4)
    waiting_rates: tuple[float, ...] = (0.02, 0.04, 0.08, 0.12)
    one_seed: tuple[str, ...] = ("uplift-t", "uplift-class", "uplift-dragon")
    hyper: dict[str, dict[str, Any]] = field(default_factory=dict)

    def agents(self, seed: int) -> tuple[str, ...]:
        """Agents that are trained with a seed."""
        every = (*ESTIMATORS, PPO, request_dqn.AGENT)
        return tuple(agent for agent in every if seed == 0 or agent not in self.one_seed)


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
    """Collect the log and train what is missing."""
    collect(
        out / "logs",
        preset_name=scenario,
        sessions=sizes.log_sessions,
        randomise=["request"],
        progress=(lambda done, total: progress(done, total, "log sessions")) if progress else None,
    )
    jobs = [(agent, seed) for seed in seeds for agent in sizes.agents(seed)]
    train_missing(_train_one, out, scenario, sizes, [jobs], workers, progress)
