"""The benchmark's track joint: all three decisions on EdgeFeed-v0, together and alone, and ablations.

A re-ranker, ESAN and an uplift model learn from logs. MaskablePPO, distilled values with the requests of the
uplift model, their policy gradient, and the EdgeRec agent learn by playing the learned users of the scenario.
All are scored on synthetic users that training never saw (split `eval`, common random numbers). The ablations
change a rule of the jointly trained agent, train it without page views, or delay the behaviour that the cloud
sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.judges import load_parts
from edgerec_gym.agents.edgerec.load import load_policy
from edgerec_gym.agents.edgerec.rules import rules_from
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.bench.comparison import ATTAINABLE
from edgerec_gym.bench.request.policies import make_planner
from edgerec_gym.bench.rerank import BRIEFLY, make_diverse
from edgerec_gym.bench.rows import (
    Played,
    Values,
    attainable_gap_closed,
    difference,
    exploitation_gap,
    gap_closed,
    mean,
    ratio,
    values_of,
)
from edgerec_gym.bench.setting import Setting, make_policy, own_entry, reference_entry
from edgerec_gym.bench.track import is_own
from edgerec_gym.bench.training import (
    GRADIENT,
    QUICK_GRADIENT,
    QUICK_VALUES,
    VALUES,
    asked,
    collect_logs,
    every_version,
    run_folder,
    train_missing,
)
from edgerec_gym.errors import InputError, closest
from edgerec_gym.evaluation.cache import Entry, Place, Progress, Rows, played, row, table
from edgerec_gym.evaluation.intervals import Interval
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario

ENV_ID = "EdgeFeed-v0"
KEEP, ORACLE = "keep", "oracle"
RERANKERS, ESAN, UPLIFT, PPO = ("dnn", "crban"), "esan", "uplift-x", "pointer-ppo"
PARTS = {  # of the agent, by scenario; the first is the re-ranker that ranks held-out days best
    "lite": ("dnn", ESAN, UPLIFT),
    "default": ("crban", ESAN, UPLIFT),
}
PARTS = every_version(PARTS)
JOINT, BLIND = "edgerec", "edgerec-no-page-views"
SINGLE = (
    "greedy", "device-greedy", "item-greedy", "fixed-slot", "fixed-interval", *RERANKERS, "dpp on dnn",
)  # fmt: skip
INSERT_ONLY, REQUEST_ONLY = "esan + exact, cards only", "uplift-x, requests only"
TOGETHER, JOINT_PLANS = "parts together", "edgerec, whole plans"
LEARNED = (  # policies that also play learned users
    KEEP, "greedy", "device-greedy", "item-greedy", *RERANKERS, PPO, VALUES, GRADIENT, TOGETHER,
    JOINT, JOINT_PLANS,
)  # fmt: skip
ABLATIONS: dict[str, dict[str, Any]] = {  # name -> rules that differ from the jointly trained agent's
    "edgerec, no re-rank": {"decide": {"order": False}},
    "edgerec, no insertion": {"decide": {"insert": False}},
    "edgerec, no request": {"decide": {"request": False}},
    "edgerec, plans every slot": {"triggers": {"every_slot": True}},
    "edgerec, plans at page ends": {
        "triggers": {"click": False, "deletion": False, "quiet_exposures": False}
    },
}
NO_PAGE_VIEWS = "edgerec, no page views"
ONLY_TRUE = (*ABLATIONS, NO_PAGE_VIEWS)  # play only the unshifted ground truth
STALE = ", stale cloud"  # the cloud sees behaviour every 20 slots, not with every request for a page
STALE_POLICIES = (KEEP, JOINT)
METRICS = {
    "clicks": ".3f",
    "purchases": ".4f",
    "requests": ".2f",
    "cards": ".1%",
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "attainable_gap_closed": ".0%",
    "gap_closed": ".0%",
    "gain_over_best_single": "+.3f 95%",
    "exploitation_gap": "+.1%",
    "violations": ".0f",
}
ABLATION_METRICS = {"value": ".3f", "cost": "+.3f 95%"}


def make_rows(true: Played, learned: Played, stale: Played) -> Rows:
    """Return the rows of all policies, the costs of the ablations, and the rows of the stale cloud."""
    names = list(dict.fromkeys(name for name, _ in true))
    single = [name for name in names if name in (*SINGLE, INSERT_ONLY, REQUEST_ONLY)]
    best = max(single, key=lambda name: values_of(true, name)("value").mean(), default=None)
    found: Rows = []
    for name in names:
        figures = _figures(name, true, learned)
        if best is not None and name in (TOGETHER, JOINT, JOINT_PLANS, PPO, VALUES, GRADIENT):
            figures["gain_over_best_single"] = _difference(true, name, true, best)
        if name in (*ABLATIONS, NO_PAGE_VIEWS, JOINT_PLANS, TOGETHER) and JOINT in names:
            figures["cost"] = _difference(true, JOINT, true, name)
        found += _rows(name, figures, values_of(true, name), {"gain_over_best_single": {"single": best}})
    for name in dict.fromkeys(name for name, _ in stale):
        figures = {"value": mean(values_of(stale, name)("value"))}
        if name in names:
            figures["cost"] = _difference(true, name, stale, name)
        found += _rows(name + STALE, figures, values_of(stale, name), {})
    return found


def _rows(name: str, figures: dict[str, Interval], own: Values, more: dict[str, dict[str, Any]]) -> Rows:
    n_seeds, n_sessions = own("value").shape
    more = {"value": {"by_seed": own("value").mean(axis=1).round(4).tolist()}, **more}
    return [
        row(name, metric, interval, n_seeds, n_sessions, **more.get(metric, {}))
        for metric, interval in figures.items()
    ]


def _difference(one: Played, name: str, other: Played, other_name: str) -> Interval:
    return difference(values_of(one, name)("value"), values_of(other, other_name)("value"))


def _figures(name: str, true: Played, learned: Played) -> dict[str, Interval]:
    own, keep, oracle = values_of(true, name), values_of(true, KEEP), values_of(true, ORACLE)
    names = {"clicks": "expected_clicks", "purchases": "expected_purchases", "length": "exposures"}
    figures = {metric: mean(own(key)) for metric, key in (names | {"requests": "requests"}).items()}
    figures["cards"] = ratio(own("cards"), own("exposures"))
    figures["value"] = mean(own("value"))
    total = float(own("violations").sum())
    figures["violations"] = {"mean": total, "low": total, "high": total}
    if name == KEEP:
        return figures
    figures["gain_over_keep"] = difference(own("value"), keep("value"))
    figures["gap_closed"] = gap_closed(own("value"), keep("value"), oracle("value"))
    figures |= attainable_gap_closed(true, own("value"), keep("value"))
    if any(known == name for known, _ in learned):
        mine, kept = values_of(learned, name)("value"), values_of(learned, KEEP)("value")
        figures["exploitation_gap"] = exploitation_gap(mine, own("value"), kept, keep("value"))
    return figures


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of the tables, by title."""
    costly = {item["policy"] for item in rows if item["metric"] == "cost"} | {JOINT}
    apart = {*ABLATIONS, NO_PAGE_VIEWS}
    whole = [r for r in rows if r["policy"] not in apart and not r["policy"].endswith(STALE)]
    return {
        ENV_ID: table(whole, METRICS),
        "ablations; cost: what the agent earns beyond each": table(
            [r for r in rows if r["policy"] in costly], ABLATION_METRICS
        ),
    }


POLICIES = (
    KEEP, *SINGLE, INSERT_ONLY, REQUEST_ONLY, PPO, VALUES, GRADIENT, TOGETHER, JOINT, JOINT_PLANS, ATTAINABLE,
    ORACLE, *ABLATIONS, NO_PAGE_VIEWS,
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """The amount of work in a run of the track.

    Attributes:
        log_sessions: sessions collected to train the re-rankers and ESAN.
        request_sessions: sessions collected with random requests to train the uplift model.
        sessions: sessions that each policy plays on the ground truth.
        learned_sessions: maximum number of sessions that each policy plays on learned users.
        steps: slots that MaskablePPO plays.
        hyper: hyper-parameters of each agent that differ from its defaults.
    """

    log_sessions: int
    request_sessions: int
    sessions: int
    learned_sessions: int
    steps: int
    hyper: dict[str, dict[str, Any]] = field(default_factory=dict)


_FITTED = {"epochs": 6, "batch_size": 256, "learning_rate": 0.003}
QUICK = Sizes(
    log_sessions=1200,
    request_sessions=2000,
    sessions=400,
    learned_sessions=200,
    steps=8192,
    hyper={
        **{agent: {"epochs": 1} for agent in (*RERANKERS, ESAN)},
        UPLIFT: {"behaviour": 4, "epochs": 2},
        VALUES: QUICK_VALUES,
        GRADIENT: QUICK_GRADIENT,
        **{
            agent: {
                "teach_sessions": 64, "teach_epochs": 6, "updates": 4, "batch_size": 16, "select_every": 2,
                "select_sessions": 128, "compare_sessions": 64,
            }
            for agent in (JOINT, BLIND)
        },
    },
)  # fmt: skip
FULL = {
    "lite": Sizes(
        log_sessions=12_000,
        request_sessions=30_000,
        sessions=10_000,
        learned_sessions=2000,
        steps=100_000,
        hyper={**{agent: _FITTED for agent in RERANKERS}, ESAN: {"epochs": 5}},
    ),
    "default": Sizes(
        log_sessions=16_000,
        request_sessions=20_000,
        sessions=2000,
        learned_sessions=1000,
        steps=50_000,
        hyper={
            **{agent: BRIEFLY[agent] for agent in RERANKERS},
            ESAN: {"epochs": 6, "per_session": 4},
            **{
                agent: {
                    "match": 1.0, "teach_sessions": 192, "batch_size": 32, "select_sessions": 512,
                    "compare_sessions": 256,
                }
                for agent in (JOINT, BLIND)
            },
        },
    ),
}  # fmt: skip
FULL = every_version(FULL)


# --- training -----------------------------------------------------------------------------------------


def train(setting: Setting, names: Sequence[str], workers: int, progress: Progress | None) -> None:
    """Collect the missing logs and train the missing runs that the named policies need, in parallel."""
    out, scenario, sizes = setting.runs, setting.scenario, setting.sizes
    agents = needed(names, scenario)
    collect_logs(out / "logs", scenario, sizes.log_sessions)
    collect_logs(out / "request-logs", scenario, sizes.request_sessions, randomise=["request"])
    stages = [
        [
            (agent, seed)
            for seed in range(setting.seeds)
            for agent in agents
            if _stage(agent, scenario) == stage
        ]
        for stage in range(1 + max((_stage(agent, scenario) for agent in agents), default=0))
    ]
    train_missing(_train_one, out, scenario, sizes, stages, workers, progress)


def _train_one(out: str, scenario: str, agent: str, seed: int, sizes: Sizes) -> None:
    hyper, based_on = sizes.hyper.get(agent, {}), _starts_from(agent, scenario)
    plays = agent == PPO or based_on
    logs = None if plays else Path(out) / ("request-logs" if agent == UPLIFT else "logs")
    train_agent(
        JOINT if agent == BLIND else agent,
        run_folder(Path(out), agent, seed),
        logs=logs,
        based_on=[run_folder(Path(out), part, seed) for part in based_on],
        seed=seed,
        resume=True,
        threads=1,
        hyper=hyper | ({"page_views": 0} if agent == BLIND else {}),
        env_id=ENV_ID,
        scenario=scenario,
        steps=sizes.steps,
    )


# --- policies, created in worker processes ------------------------------------------------------------


def make_parts(place: Place, runs: list[str], rules: dict[str, Any]) -> Policy:
    """Return the separately trained parts under the agent's rules."""
    config = Scenario.load(place.scenario).config.replace(**place.config)
    return EdgeRec(load_parts([Path(run) for run in runs], config), config, rules_from(rules), TOGETHER)


def make_agent(place: Place, run: str, rules: dict[str, Any]) -> Policy:
    """Return the jointly trained agent with the given rules."""
    env = make_feeds(place.env_id, 1, scenario=place.scenario, users=place.users, **place.config)
    return load_policy(run, env, rules=rules_from(rules))


def make_requests(place: Place, run: str) -> Policy:
    """Return an uplift model's planner that requests a page where the gain exceeds the cost."""
    return make_planner(place, run, -float(Scenario.load(place.scenario).config.reward.request))


def _starts_from(agent: str, scenario: str) -> tuple[str, ...]:
    """Return the runs that a run starts from."""
    starts = {JOINT: PARTS[scenario], BLIND: PARTS[scenario], VALUES: (UPLIFT,), GRADIENT: (VALUES,)}
    return starts.get(agent, ())


def _stage(agent: str, scenario: str) -> int:
    """Return the number of stages of training that must be over before a run can start."""
    return max((1 + _stage(part, scenario) for part in _starts_from(agent, scenario)), default=0)


def _with_starts(agent: str, scenario: str) -> tuple[str, ...]:
    """Return the runs that a run needs, those that others start from first, itself last."""
    parts = [run for part in _starts_from(agent, scenario) for run in _with_starts(part, scenario)]
    return (*parts, agent)


def _agents_of(name: str, scenario: str) -> tuple[str, ...]:
    """Return the runs that a policy needs, its own run last."""
    if name in (TOGETHER, INSERT_ONLY):
        return PARTS[scenario]
    special = {REQUEST_ONLY: UPLIFT, "dpp on dnn": "dnn", NO_PAGE_VIEWS: BLIND}
    special |= dict.fromkeys((JOINT, JOINT_PLANS, *ABLATIONS), JOINT)
    agent = special.get(name, name if name in (*RERANKERS, PPO, VALUES, GRADIENT) else None)
    return () if agent is None else _with_starts(agent, scenario)


def needed(names: Sequence[str], scenario: str) -> tuple[str, ...]:
    """Return the runs that the named policies need, including the runs those start from."""
    return tuple(dict.fromkeys(agent for name in names for agent in _agents_of(name, scenario)))


def entry(out: Path, name: str, seed: int | None, scenario: str) -> Entry:
    """Return the entry of a policy of :data:`POLICIES`, or of a user's policy as module:Class (seed None)."""
    if name == ATTAINABLE:
        return reference_entry(name)
    if seed is None:
        return Entry(name, make_policy, {"name": name})
    runs = tuple(run_folder(out, agent, seed) for agent in _agents_of(name, scenario))
    last = str(runs[-1])
    if name in (TOGETHER, INSERT_ONLY):
        rules = {} if name == TOGETHER else {"decide": {"order": False, "request": False}}
        return Entry(name, make_parts, {"runs": [str(r) for r in runs], "rules": rules}, runs, seed)
    if name in (JOINT, JOINT_PLANS, NO_PAGE_VIEWS, *ABLATIONS):
        rules = {"decide": {"joint": True}} if name == JOINT_PLANS else ABLATIONS.get(name, {})
        return Entry(name, make_agent, {"run": last, "rules": rules}, runs[-1:], seed)
    if name == REQUEST_ONLY:
        return Entry(name, make_requests, {"run": last}, runs, seed)
    if name == "dpp on dnn":
        return Entry(name, make_diverse, {"kind": "dpp", "run": last}, runs, seed)
    return Entry(name, make_policy, {"name": last}, runs[-1:], seed)


def policies() -> tuple[str, ...]:
    """Return the names of the policies: keep first, the oracle last."""
    return (KEEP, *(name for name in POLICIES if name not in (KEEP, ORACLE)), ORACLE)


def entries(setting: Setting, names: Sequence[str]) -> list[Entry]:
    """Return the entries of the named policies, one per training seed for policies that are trained."""
    for name in names:
        if name not in POLICIES and not is_own(name):
            raise InputError(f"unknown policy {name!r}{closest(name, [*POLICIES, 'or module:Class'])}")
    return [
        own_entry(name) if is_own(name) else entry(setting.runs, name, seed, setting.scenario)
        for name in setting.playable(names)
        for seed in (range(setting.seeds) if _agents_of(name, setting.scenario) else (None,))
    ]


def rows(setting: Setting, workers: int, progress: Progress | None) -> Rows:
    """Collect, train, play and score; see :attr:`Track.rows <edgerec_gym.bench.track.Track.rows>`."""
    names = asked(setting.track, setting.policies, POLICIES)
    scenario, sizes, cache = setting.scenario, setting.sizes, setting.cache / "played"
    wanted = entries(setting, names)
    train(setting, names, workers, progress)
    options: dict[str, Any] = {"workers": workers, "progress": progress}
    true = played(wanted, Place(ENV_ID, scenario, "synthetic", sizes.sessions), cache, **options)
    place = Place(ENV_ID, scenario, "learned", min(sizes.sessions, sizes.learned_sessions))
    learned = played([e for e in wanted if e.policy in LEARNED], place, cache, **options)
    late = Scenario.load(scenario).config.cloud.replace(sync="periodic", sync_period=20).to_dict()
    place = Place(ENV_ID, scenario, "synthetic", sizes.sessions, config={"cloud": late})
    stale = played([e for e in wanted if e.policy in STALE_POLICIES], place, cache, **options)
    return make_rows(true, learned, stale if JOINT in names else {})
