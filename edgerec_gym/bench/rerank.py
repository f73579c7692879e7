"""The benchmark's track rerank: re-rankers, generators, sequence search, policy gradients, distilled values.

All agents are trained on one log or by playing the learned users of the scenario. They are scored on
synthetic users that training never saw (EdgeFeedRerank-v0, split `eval`, common random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec_gym.agents.diversity import DeterminantalPointProcess, MaximalMarginalRelevance
from edgerec_gym.agents.registry import RERANKER, family, train_agent
from edgerec_gym.agents.rerank.reranker import RerankPolicy
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.bench.comparison import ATTAINABLE
from edgerec_gym.bench.plots import draw_positions
from edgerec_gym.bench.rows import (
    Played,
    attainable_gap_closed,
    difference,
    exploitation_gap,
    gap_closed,
    mean,
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
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario

ENV_ID = "EdgeFeedRerank-v0"
BASELINES = ("keep", "greedy", "device-greedy", "item-greedy", ATTAINABLE, "oracle")
RERANKERS = family(RERANKER)
POINTER, EVALUATOR, SEARCH, PPO = "pointer", "evaluator", "sequence-search", "pointer-ppo"
DIVERSIFIERS = {"mmr": MaximalMarginalRelevance, "dpp": DeterminantalPointProcess}
BASED_ON: dict[str, tuple[str, ...]] = {  # agent -> runs that it starts from
    "pointer-evaluator": (EVALUATOR, POINTER),
    "pointer-users": (POINTER,),
    SEARCH: (EVALUATOR, "pointer-evaluator"),
    GRADIENT: (VALUES,),
}
STAGES = (
    (*RERANKERS, POINTER, EVALUATOR, VALUES, PPO),
    ("pointer-evaluator", "pointer-users", GRADIENT),
    (SEARCH,),
)
PLAYS = (PPO, VALUES, GRADIENT, "pointer-users", SEARCH)  # agents that need a scenario, not a log
POLICIES = (*BASELINES, *DIVERSIFIERS, *RERANKERS, POINTER, *BASED_ON, VALUES, PPO)
PLOTTED = (  # with a click rate by position
    "keep", "device-greedy", "crban", SEARCH, VALUES, GRADIENT, PPO, "oracle",
)  # fmt: skip
LEARNED = (
    "keep",
    "greedy",
    "device-greedy",
    "item-greedy",
    "dnn",
    "crban",
    POINTER,
    *BASED_ON,
    VALUES,
    PPO,
)  # policies that also play learned users
METRICS = {
    "clicks": ".3f",
    "purchases": ".4f",
    "length": ".1f",
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "attainable_gap_closed": ".0%",
    "gap_closed": ".0%",
    "exploitation_gap": "+.1%",
}


@dataclass(frozen=True)
class Sizes:
    """The amount of work in a run of the track.

    Attributes:
        log_sessions: sessions collected for training.
        sessions: sessions that each policy plays on the ground truth.
        learned_sessions: maximum number of sessions that each policy plays on learned users.
        steps: slots that MaskablePPO plays.
        hyper: hyper-parameters of each agent that differ from its defaults.
    """

    log_sessions: int
    sessions: int
    learned_sessions: int
    steps: int
    hyper: dict[str, dict[str, Any]] = field(default_factory=dict)


def _epochs(epochs: int, **more: Any) -> dict[str, dict[str, Any]]:
    return {agent: {"epochs": epochs, **more} for agent in (*RERANKERS, POINTER, EVALUATOR)}


QUICK = Sizes(
    log_sessions=1500,
    sessions=500,
    learned_sessions=500,
    steps=16_384,
    hyper={
        **_epochs(2),
        "pointer-evaluator": {"updates": 20},
        "pointer-users": {"updates": 4, "batch_size": 16},
        VALUES: QUICK_VALUES,
        GRADIENT: QUICK_GRADIENT,
    },
)
SHORT: dict[str, Any] = {
    "epochs": 1,
    "per_session": 4,
    "misses": 0.25,
    "batch_size": 256,
    "learning_rate": 0.003,
}
BRIEFLY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(RERANKERS, SHORT),
    "crban": {**SHORT, "match": 1},
    # After one epoch, policy gradients would only make up for the missing ones.
    POINTER: {**SHORT, "match": 1, "epochs": 3},
    EVALUATOR: {"epochs": 2, "per_session": 4, "match": 1},
}
REWARDED: dict[str, dict[str, Any]] = {  # generators that learn from rewards
    "pointer-evaluator": {"updates": 100, "demonstrations": 0.0},
    "pointer-users": {
        "updates": 40,
        "batch_size": 16,
        "ppo_epochs": 3,
        "discount": 0.9,
        "entropy": 0.0,
        "checkpoint_every": 10,
    },
}
FULL = {
    "lite": Sizes(
        log_sessions=12_000,
        sessions=10_000,
        learned_sessions=2000,
        steps=100_000,
        hyper={**_epochs(6, batch_size=256, learning_rate=0.003), **REWARDED},
    ),
    "default": Sizes(
        log_sessions=16_000,
        sessions=10_000,
        learned_sessions=500,
        steps=50_000,
        hyper={**BRIEFLY, **REWARDED},
    ),
}
FULL = every_version(FULL)


def needed(names: Sequence[str]) -> set[str]:
    """Return the agents that must be trained before the named policies can play."""
    found: set[str] = set()
    waiting = ["dnn" if name in DIVERSIFIERS else name for name in names]
    while waiting:
        name = waiting.pop()
        if any(name in stage for stage in STAGES):
            found.add(name)
            waiting += BASED_ON.get(name, ())
    return found


def train(setting: Setting, names: Sequence[str], workers: int, progress: Progress | None) -> None:
    """Collect the log and train the missing runs that the named policies need, in parallel."""
    out, scenario, sizes, agents = setting.runs, setting.scenario, setting.sizes, needed(names)
    collect_logs(out / "logs", scenario, sizes.log_sessions)
    stages = [
        [(agent, seed) for seed in range(setting.seeds) for agent in stage if agent in agents]
        for stage in STAGES
    ]
    train_missing(_train_one, out, scenario, sizes, stages, workers, progress)


def _train_one(out: str, scenario: str, agent: str, seed: int, sizes: Sizes) -> None:
    train_agent(
        agent,
        run_folder(Path(out), agent, seed),
        logs=None if agent in PLAYS else Path(out) / "logs",
        based_on=[run_folder(Path(out), name, seed) for name in BASED_ON.get(agent, ())],
        seed=seed,
        resume=True,
        threads=1,
        hyper=sizes.hyper.get(agent, {}),
        env_id=ENV_ID,
        scenario=scenario,
        steps=sizes.steps,
    )


def make_diverse(place: Place, kind: str, run: str) -> Policy:
    """Return a diversity policy over the scores of a trained pointwise re-ranker."""
    config = Scenario.load(place.scenario).config
    scorer = RerankPolicy("dnn", load_reranker(run, config))
    return DIVERSIFIERS[kind](scorer=scorer.scores, item_columns=config.item_columns)


def policies() -> tuple[str, ...]:
    """Return the names of the policies: keep first, the oracle last."""
    return ("keep", *(name for name in POLICIES if name not in ("keep", "oracle")), "oracle")


def entries(setting: Setting, names: Sequence[str]) -> list[Entry]:
    """Return the entries of policies of :data:`POLICIES` or of user policies."""
    found = []
    for name in setting.playable(names):
        if is_own(name):
            found.append(own_entry(name))
        elif name == ATTAINABLE:
            found.append(reference_entry(name))
        elif name in BASELINES:
            found.append(Entry(name, make_policy, {"name": name}))
        elif name not in POLICIES:
            raise InputError(f"unknown policy {name!r}{closest(name, [*POLICIES, 'or module:Class'])}")
        else:
            found += [_trained(setting.runs, name, seed) for seed in range(setting.seeds)]
    return found


def _trained(out: Path, name: str, seed: int) -> Entry:
    if name in DIVERSIFIERS:
        run = run_folder(out, "dnn", seed)
        return Entry(f"{name} on dnn", make_diverse, {"kind": name, "run": str(run)}, (run,), seed)
    run = run_folder(out, name, seed)
    return Entry(name, make_policy, {"name": str(run)}, (run,), seed)


def make_rows(true: Played, learned: Played) -> Rows:
    """Return the rows of all policies, with an exploitation gap for those that also played learned users."""
    found: Rows = []
    for policy in dict.fromkeys(name for name, _ in true):
        per_seed = values_of(true, policy)
        n_seeds, n_sessions = per_seed("value").shape
        more = {"by_seed": per_seed("value").mean(axis=1).round(4).tolist()}
        for metric, interval in _figures(policy, true, learned).items():
            found.append(
                row(policy, metric, interval, n_seeds, n_sessions, **(more if metric == "value" else {}))
            )
        if policy in PLOTTED:
            shown, clicks = (per_seed(f"{name}_by_position") for name in ("exposures", "expected_clicks"))
            for position in range(shown.shape[2]):
                rate = seeds_interval(
                    [clicks[..., position], shown[..., position]], lambda m: m[..., 0] / m[..., 1]
                )
                found.append(
                    row(policy, "click_rate_by_position", rate, n_seeds, n_sessions, position=position)
                )
    return found


def _figures(policy: str, true: Played, learned: Played) -> dict[str, Interval]:
    own, keep, oracle = values_of(true, policy), values_of(true, "keep"), values_of(true, "oracle")
    names = {
        "clicks": "expected_clicks",
        "purchases": "expected_purchases",
        "length": "exposures",
        "value": "value",
    }
    figures = {metric: mean(own(name)) for metric, name in names.items()}
    if policy == "keep":
        return figures
    figures["gain_over_keep"] = difference(own("value"), keep("value"))
    figures["gap_closed"] = gap_closed(own("value"), keep("value"), oracle("value"))
    figures |= attainable_gap_closed(true, own("value"), keep("value"))
    if any(name == policy for name, _ in learned):
        mine, kept = values_of(learned, policy)("value"), values_of(learned, "keep")("value")
        figures["exploitation_gap"] = exploitation_gap(mine, own("value"), kept, keep("value"))
    return figures


def rows(setting: Setting, workers: int, progress: Progress | None) -> Rows:
    """Collect, train, play and score; see :attr:`Track.rows <edgerec_gym.bench.track.Track.rows>`."""
    names = asked(setting.track, setting.policies, POLICIES)
    scenario, sizes = setting.scenario, setting.sizes
    wanted = entries(setting, names)
    train(setting, names, workers, progress)
    cache = setting.cache / "played"
    options: dict[str, Any] = {"workers": workers, "progress": progress}
    true_place = Place(ENV_ID, scenario, "synthetic", sizes.sessions, by_position=True)
    true = played(wanted, true_place, cache, **options)
    simulated = [entry for entry in wanted if entry.policy in LEARNED]
    learned_place = Place(ENV_ID, scenario, "learned", min(sizes.sessions, sizes.learned_sessions))
    return make_rows(true, played(simulated, learned_place, cache, **options))


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of the table, by title."""
    return {ENV_ID: table(rows, METRICS)}


def picture(rows: Rows, path: str | Path) -> None:
    """Draw the click rate at every place of a page."""
    draw_positions(rows, path)
