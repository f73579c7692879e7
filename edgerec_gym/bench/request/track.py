"""The benchmark's track request: uplift planners, rules, reinforcement learning and the oracle.

Estimators learn from one log with random requests; PPO and DQN learn by playing the learned users. All are
scored on synthetic users that training never saw (EdgeFeedRequest-v0, split `eval`, common random numbers):
curves of earnings against requests, the quality of the estimated effects, the true effects of the requests
made, and a budget that all sessions share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from edgerec_gym.agents.data.decisions import split_decisions
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.requests import dqn
from edgerec_gym.agents.requests.planner import price_of
from edgerec_gym.agents.requests.scores import (
    decision_inputs,
)
from edgerec_gym.agents.requests.train import load_model, uplift
from edgerec_gym.agents.requests.uplift_models import ESTIMATORS
from edgerec_gym.agents.requests.waiting import plan_waiting, replay_pages
from edgerec_gym.bench.comparison import ATTAINABLE
from edgerec_gym.bench.plots import draw_requests
from edgerec_gym.bench.request.curves import curve_rows
from edgerec_gym.bench.request.effects import EffectSample, true_effects
from edgerec_gym.bench.request.policies import (
    ENV_ID,
    HORIZON,
    cool_down,
    learner_score,
    make_baseline,
    make_learner,
    make_learner_at,
    make_oracle,
    make_planner,
    make_waiting,
)
from edgerec_gym.bench.request.rows import audit_rows, fleet_rows, quality_rows
from edgerec_gym.bench.setting import Setting, own_entry, reference_entry
from edgerec_gym.bench.track import is_own
from edgerec_gym.bench.training import collect_logs, every_version, run_folder, train_missing
from edgerec_gym.documents import Document, read_document
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, Progress, Rows, played
from edgerec_gym.files import write_json
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import is_finished, read_run
from edgerec_gym.scenario import Scenario

PPO = "pointer-ppo"
PLANNER = "uplift-x"  # the headline planner, which also plays with the value of waiting
WAITING_PLANS = "waiting.json"  # in the planner's run: rate -> price, and value of going on by page age


@dataclass(frozen=True)
class Sizes:
    """The amount of work in a run of the track.

    Attributes:
        log_sessions: sessions collected for training.
        sessions: sessions that each policy plays.
        oracle_sessions: sessions that the oracle, the slowest policy, plays; the first of the shared ones.
        effect_sessions: sessions whose moments score the estimates.
        audit_sessions: sessions whose requests are played both ways.
        ppo_steps, dqn_steps: slots that PPO and DQN learn from.
        concurrent, ticks: concurrent sessions and ticks of the shared budget.
        rates: budgets, at least two: shares of the moments whose estimate exceeds the price.
        waiting_rates: budgets of planners that wait, at least two: shares of the moments with a request.
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
FULL = every_version({"lite": Sizes()})


def _train_one(out: str, scenario: str, agent: str, seed: int, sizes: Sizes) -> None:
    folder = run_folder(Path(out), agent, seed)
    steps = {PPO: sizes.ppo_steps, dqn.AGENT: sizes.dqn_steps}.get(agent, 0)
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


def train(setting: Setting, names: Sequence[str], workers: int, progress: Progress | None) -> None:
    """Collect the log, train the missing runs of all policies, and plan the waiting of the planners."""
    out, sizes, seeds = setting.runs, setting.sizes, range(setting.seeds)
    collect_logs(
        out / "logs",
        setting.scenario,
        sizes.log_sessions,
        randomise=["request"],
        progress=(lambda done, total: progress(done, total, "log sessions")) if progress else None,
    )
    jobs = [(agent, seed) for seed in seeds for agent in (*ESTIMATORS, PPO, dqn.AGENT)]
    train_missing(_train_one, out, setting.scenario, sizes, [jobs], workers, progress)
    for seed in seeds:
        _plan_waiting(out, setting.scenario, sizes.waiting_rates, seed)


def _plan_waiting(out: Path, scenario: str, rates: Sequence[float], seed: int) -> None:
    """Plan the waiting on the log's early-stopping sessions, which the run was not trained on."""
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


class WaitingPlan(Document):
    """The arguments of a waiting planner."""

    price: float
    later: Annotated[list[Annotated[list[float], Meta(min_length=2, max_length=2)]], Meta(min_length=1)]


def waiting_plans(run: Path) -> dict[float, dict[str, Any]]:
    """Return the arguments `price` and `later` of a waiting planner, by rate; empty if not yet planned."""
    file = run / WAITING_PLANS
    if not file.is_file():
        return {}
    plans = read_document(file, dict[str, WaitingPlan])
    try:
        return {float(rate): {"price": plan.price, "later": plan.later} for rate, plan in plans.items()}
    except ValueError as error:
        raise InputError(f"{file}: {error}; its keys are numbers of requests in a session") from None


WAITING = "uplift-waits"  # the same estimator, with the value of waiting
AUDITED = ("one-extra", "chance 0.05", "intent 0.45")  # in addition to planners and one interval
INTERVAL = 0.5  # share of a page between the requests of the interval rule
CHANCE, INTENT, TRUE_EFFECT = 0.05, 0.45, 0.25  # budgets of the other rules and of the oracle
ORACLE = f"true-effect {TRUE_EFFECT:g}"
RATE = 1  # index of the planners' budget in `rates` and `waiting_rates`


def own_entries(names: Sequence[str]) -> list[Entry]:
    """Return the entries of user policies; raise InputError for any other name."""
    for name in names:
        if not is_own(name):
            raise InputError(
                f"unknown policy {name!r}: the track always plays all of its own; yours joins as module:Class"
            )
    return [own_entry(name) for name in dict.fromkeys(names)]


def policies() -> tuple[str, ...]:
    """Return the names of the policies of the whole benchmark: keep first, the oracle last."""
    return (
        "keep",
        "one-extra",
        "interval",
        "chance",
        "intent",
        *ESTIMATORS,
        WAITING,
        PPO,
        dqn.AGENT,
        ATTAINABLE,
        "oracle",
    )


def entries(setting: Setting, names: Sequence[str]) -> list[Entry]:
    """Return the entries of the named policies, each at one budget; the price is None for untrained runs."""
    page, rate = Scenario.load(setting.scenario).config.page_size, setting.sizes.rates[RATE]
    numbers = {"interval": _slots(INTERVAL, page), "chance": CHANCE, "intent": INTENT}
    seeds, found = range(setting.seeds), []
    for name in names:
        if name == "oracle":
            found.append(Entry(ORACLE, make_oracle, {"price": TRUE_EFFECT}))
        elif name == ATTAINABLE:
            found.append(reference_entry(name))
        elif name in ESTIMATORS:
            for seed in seeds:
                run = run_folder(setting.runs, name, seed)
                arguments = {"run": str(run), "price": _price_at(run, rate)}
                found.append(Entry(f"{name} {rate:g}", make_planner, arguments, (run,), seed))
        elif name == WAITING:
            for seed in seeds:
                run = run_folder(setting.runs, PLANNER, seed)
                found += waiting_entries(run, [setting.sizes.waiting_rates[RATE]], seed)
        elif name in (PPO, dqn.AGENT):
            for seed in seeds:
                run = run_folder(setting.runs, name, seed)
                found.append(Entry(name, make_learner, {"run": str(run)}, (run,), seed))
        else:
            number = numbers.get(name)
            arguments = {"kind": name} | ({} if number is None else {"number": number})
            policy = name if number is None else f"{name} {number:g}"
            found.append(Entry(policy, make_baseline, arguments))
    return found


def _slots(share: float, page: int) -> int:
    """Return a share of a page in slots."""
    return max(1, round(share * page))


def _price_at(run: Path, rate: float) -> float | None:
    """Return the price that a share of the estimates exceeds, or None if the run is not finished."""
    if not is_finished(run):
        return None
    return price_of(np.array(read_run(run).record["quantiles"]), rate)


def every_entry(
    out: Path, scenario: Scenario, sizes: Sizes, seeds: Sequence[int], sample: EffectSample
) -> list[Entry]:
    """Return the entries of a full run; a family of budgets shares the first word of its names."""
    page = scenario.config.page_size
    found = [
        Entry("keep", make_baseline, {"kind": "keep"}),
        Entry("one-extra", make_baseline, {"kind": "one-extra"}),
        reference_entry(ATTAINABLE),
    ]
    for share in (0.3, 0.5, 0.7):
        every = _slots(share, page)
        found.append(Entry(f"interval {every}", make_baseline, {"kind": "interval", "number": every}))
    for kind, numbers in (("chance", (0.02, 0.05, 0.1, 0.2)), ("intent", (0.6, 0.45, 0.3))):
        found += [Entry(f"{kind} {x:g}", make_baseline, {"kind": kind, "number": x}) for x in numbers]
    observation = decision_inputs(sample.observation)
    for seed in seeds:
        for agent in ESTIMATORS:
            run = run_folder(out, agent, seed)
            quantiles = np.array(read_run(run).record["quantiles"])
            for rate in sizes.rates:
                arguments = {"run": str(run), "price": price_of(quantiles, rate)}
                found.append(Entry(f"{agent} {rate:g}", make_planner, arguments, (run,), seed))
        for agent in (PPO, dqn.AGENT):
            run = run_folder(out, agent, seed)
            found.append(Entry(agent, make_learner, {"run": str(run)}, (run,), seed))
            scores = learner_score(run, scenario)(sample.observation)
            for rate in sizes.rates:
                arguments = {"run": str(run), "price": float(np.quantile(scores, 1 - rate))}
                found.append(Entry(f"{agent} {rate:g}", make_learner_at, arguments, (run,), seed))
        found += waiting_entries(run_folder(out, PLANNER, seed), sizes.waiting_rates, seed)
    for seed in seeds[:1]:
        run = run_folder(out, "uplift-t", seed)
        outcome = uplift(load_model(run, scenario.config), observation).mu1.double().numpy()
        for rate in sizes.rates:
            arguments = {"run": str(run), "price": float(np.quantile(outcome, 1 - rate)), "outcome": True}
            found.append(Entry(f"outcome {rate:g}", make_planner, arguments, (run,), seed))
    return found


def waiting_entries(run: Path, rates: Sequence[float], seed: int) -> list[Entry]:
    """Return the planners that wait, at several budgets; the price is None where not yet planned."""
    plans, none = waiting_plans(run), {"price": None, "later": None}
    return [
        Entry(f"{WAITING} {rate:g}", make_waiting, {"run": str(run), **plans.get(rate, none)}, (run,), seed)
        for rate in rates
    ]


def rows(setting: Setting, workers: int, progress: Progress | None) -> Rows:
    """Collect, train, play and score; policies of the user's own join.

    Raises:
        InputError: a policy that is not the user's own; the track always plays all of its policies.
    """
    out, sizes, scenario, seeds = setting.runs, setting.sizes, setting.scenario, range(setting.seeds)
    seed, loaded = setting.track.seed, Scenario.load(scenario)
    place = Place(ENV_ID, scenario, "synthetic", sizes.sessions, seed=seed)
    own = own_entries(setting.policies)
    for entry in own:
        entry.make(place, **entry.arguments)  # fail before the work starts
    train(setting, setting.names(), workers, progress)
    if progress:
        progress(0, sizes.effect_sessions, "true effects of requests, by session")
    sample = true_effects(scenario, sizes.effect_sessions, seed=seed, share=0.12)
    wanted = [*every_entry(out, loaded, sizes, seeds, sample), *own]
    scored = played(wanted, place, out / "played", workers=workers, progress=progress)
    oracle = [Entry(f"true-effect {x:g}", make_oracle, {"price": x}) for x in (0.4, TRUE_EFFECT, 0.1)]
    short = Place(ENV_ID, scenario, "synthetic", min(sizes.sessions, sizes.oracle_sessions), seed=seed)
    best = played(oracle, short, out / "played", workers=workers, progress=progress)
    models = {
        agent: [load_model(run_folder(out, agent, k), loaded.config) for k in seeds] for agent in ESTIMATORS
    }
    found = curve_rows(scored, best, ORACLE, loaded.config.reward)
    found += quality_rows(models, sample, HORIZON, loaded.config.reward)
    names = {
        *AUDITED,
        f"interval {_slots(INTERVAL, loaded.config.page_size)}",
        *(entry.policy for entry in own),
        *(f"{agent} {sizes.rates[1]:g}" for agent in (*ESTIMATORS, "outcome", PPO, dqn.AGENT)),
        f"{WAITING} {sizes.waiting_rates[1]:g}",
    }
    audited = [entry for entry in wanted if entry.policy in names and entry.seed in (None, 0)] + oracle[1:2]
    found += audit_rows(
        audited, sample, Place(ENV_ID, scenario, "synthetic", sizes.audit_sessions, seed=seed), out, HORIZON
    )
    return found + fleet_rows(
        {k: run_folder(out, PLANNER, k) for k in seeds},
        scenario,
        concurrent=sizes.concurrent,
        ticks=sizes.ticks,
        cool_down=cool_down(loaded),
    )


def picture(rows: Rows, path: str | Path) -> None:
    """Draw the gain over keep against the requests per session."""
    draw_requests(rows, path)
