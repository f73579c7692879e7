"""The fidelity report of learned users: held-out figures, rollouts, interventions and ranking of policies.

| key | question |
| --- | --- |
| offer | do rollouts show and earn what the log did: click rate, length, items? |
| events | are probabilities of clicks, purchases, leaving, ... right on held-out sessions? |
| distributions | do sessions look the same under the same logging policy? |
| two_sample | can a classifier tell simulated sessions from logged ones? |
| interventions | do decisions have the same effects? |
| ranking | does the simulator order policies as the ground truth does (if there is one)? |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.play import Sessions, evaluate
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario

try:
    import sklearn  # noqa: F401
    import torch  # noqa: F401
except ImportError:
    raise MissingExtraError("judging learned users", "train") from None

from edgerec_gym.fidelity.expected import event_figures
from edgerec_gym.fidelity.interventions import interventions
from edgerec_gym.fidelity.offer import LEAST_ROLLOUTS, offer_figures, weak_offer
from edgerec_gym.fidelity.rollouts import compare, held_out, simulate
from edgerec_gym.fidelity.two_sample import two_sample

MOST_SESSIONS = 4000  # of the log and of the rollouts
LEAST_POLICIES = 10
Report = dict[str, Any]
Progress = Callable[[int, int, str], None]


def fidelity_report(
    scenario: str | Scenario,
    log_folder: str | Path,
    *,
    policies: Sequence[Policy] = (),
    whole_log: bool = False,
    sessions: int = MOST_SESSIONS,
    policy_sessions: int = 2000,
    repeats: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Assess the learned users of a scenario.

    Args:
        scenario: a scenario with learned users.
        log_folder: the log that they were fitted on (its held-out sessions count), or another of that feed.
        policies: at least 10 policies of EdgeFeed-v0 with a wide range of values, including "keep"; used if
            the scenario has a ground truth.
        whole_log: use all sessions, for a log that the users never saw.
        sessions: maximum number of sessions of the log and of the rollouts.
        policy_sessions: sessions of each policy.
        repeats: number of random halves for the two-sample test's floor.
        seed: seed of everything random.
        progress: called with (steps done, total, current step).

    Returns:
        JSON-ready: the keys of the module's table and, for a quick look, `click_ece`, `click_auc`,
        `two_sample_auc`, `kendall_tau`, `policies`, `exploitation_gap` by policy, and `weak`, the names of
        weak parts: errors and distances above twice their floor, and effects with disjoint intervals. null
        where a key does not apply.

    Raises:
        InputError: no learned users, a log that does not match them, or too few sessions or policies.
    """
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    loaded.simulator_files()
    reader = LogReader(log_folder)
    ranked = loaded.synthetic is not None and len(policies) > 0
    if ranked and len({policy.name for policy in policies}) < LEAST_POLICIES:
        raise InputError(f"a ranking needs at least {LEAST_POLICIES} policies with distinct names")
    if ranked and "keep" not in {policy.name for policy in policies}:
        raise InputError("the policies must include 'keep', which the exploitation gap is relative to")
    stages = 5 + 2 * len(policies) * ranked

    def tell(done: int, text: str) -> None:
        if progress:
            progress(done, stages, text)

    log = held_out(reader, loaded, sessions, whole_log)
    tell(0, "expectations on held-out sessions")
    unidentified = frozenset(reader.unidentified) | frozenset(loaded.unidentified)
    events = event_figures(loaded, log.sessions, unidentified, seed)
    tell(1, "rollouts")
    # Logs of other policies have no known propensities; their sessions are compared with those of keep.
    drawn = reader.provenance.get("policy") == "randomised"
    randomise = list(reader.provenance.get("randomise", [])) if drawn else []
    n = len(log.sessions)
    simulated = simulate(loaded, n, randomise, seed)
    enough = randomise or n >= LEAST_ROLLOUTS
    many = simulated if enough else simulate(loaded, LEAST_ROLLOUTS, [], seed)
    tell(2, "distributions")
    offer = offer_figures(log.sessions, many.sessions, seed)
    distributions = compare(log, simulated, loaded, unidentified, seed)
    tell(3, "two-sample test")
    told_apart = two_sample(
        log.sessions,
        simulated.sessions,
        unidentified,
        responses=loaded.config.responses,
        repeats=repeats,
        seed=seed,
    )
    tell(4, "interventions")
    effects = interventions(log, simulated, loaded.config, randomise, seed) if randomise else None
    tell(5, "")
    ranking = None
    if ranked:
        ranking = rank_policies(
            policies, loaded, policy_sessions, seed, lambda done, text: tell(5 + done, text)
        )
    return {
        "scenario": loaded.name,
        "log": str(log_folder),
        "log_policy": reader.provenance.get("policy", "unknown"),
        "simulated_policy": f"randomised: {', '.join(randomise)}" if randomise else "keep",
        "sessions": len(log.sessions),
        "click_ece": events["click"]["ece"] if "click" in events else None,
        "click_auc": events["click"]["auc"] if "click" in events else None,
        "two_sample_auc": told_apart["auc"],
        "kendall_tau": ranking["kendall_tau"] if ranking else None,
        "exploitation_gap": ranking["exploitation_gap"] if ranking else None,
        "policies": ranking["policies"] if ranking else None,
        "weak": _weak_names(events, distributions, told_apart, effects) + weak_offer(offer),
        "events": events,
        "offer": offer,
        "distributions": distributions,
        "two_sample": told_apart,
        "interventions": effects,
        "ranking": None if ranking is None else {k: v for k, v in ranking.items() if k != "policies"},
    }


def _weak_names(
    events: Report, distributions: Report, told_apart: Report, effects: Report | None
) -> list[str]:
    names = [f"calibration of {name}" for name, figures in events.items() if figures["weak"]]
    names += [name for name, figures in distributions.items() if figures["weak"]]
    names += ["two_sample"] if told_apart["weak"] else []
    for decision, outcomes in (effects or {}).items():
        names += [f"effect of {decision} on {name}" for name, found in outcomes.items() if found["weak"]]
    return names


def rank_policies(
    policies: Sequence[Policy],
    scenario: Scenario,
    sessions: int,
    seed: int = 0,
    progress: Callable[[int, str], None] | None = None,
) -> Report:
    """Score policies on learned and on synthetic users, and compare the two orders.

    Returns:
        `policies`, with the `value` on learned users, `true_value`, `bias` and `exploitation_gap` of each;
        `exploitation_gap` by policy; `kendall_tau` over those `certain_pairs` of `pairs` whose true values
        differ (the 95 % interval of the paired difference excludes 0); `kendall_tau_all` over all pairs; and
        `span`, (best - worst) / keep of the true values.
    """
    played: dict[tuple[str, str], Sessions] = {}

    def tell(label: str, done: int, of: int) -> None:
        if progress:
            progress(len(played), label)

    rows = evaluate(
        policies,
        scenario=scenario,
        users=("learned", "synthetic"),
        sessions=sessions,
        seed=seed,
        progress=tell,
        keep_sessions=played,
    )
    by = {(row["policy"], row["users"]): row for row in rows}
    names = [name for name, users in by if users == "learned"]
    scored = [
        {
            "policy": name,
            "value": by[name, "learned"]["value"],
            "true_value": by[name, "synthetic"]["value"],
            "bias": by[name, "learned"]["bias"],
            "exploitation_gap": by[name, "learned"]["exploitation_gap"],
        }
        for name in names
    ]
    signs, certain = [], []
    for a, b in combinations(names, 2):
        true = mean_interval(played[a, "synthetic"]["value"] - played[b, "synthetic"]["value"], seed)
        learned = played[a, "learned"]["value"].mean() - played[b, "learned"]["value"].mean()
        signs.append(float(np.sign(true["mean"]) * np.sign(learned)))
        certain.append(true["low"] > 0 or true["high"] < 0)
    agreement, sure = np.array(signs), np.array(certain)
    values = {row["policy"]: row["true_value"]["mean"] for row in scored}
    return {
        "policies": scored,
        "exploitation_gap": {row["policy"]: row["exploitation_gap"] for row in scored},
        "kendall_tau": float(agreement[sure].mean()) if sure.any() else None,
        "kendall_tau_all": float(agreement.mean()),
        "certain_pairs": int(sure.sum()),
        "pairs": len(sure),
        "span": (max(values.values()) - min(values.values())) / values["keep"],
    }


def fidelity_tables(report: Report) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Format a report as tables for a terminal of 80 characters: title -> (header, rows)."""

    def flag(weak: bool) -> str:
        return "weak" if weak else ""

    def number(value: float | None, style: str = ".3f") -> str:
        return "" if value is None else format(value, style)

    def interval(value: dict[str, float], style: str = "+.3f") -> str:
        return f"{value['mean']:{style}} [{value['low']:{style}}, {value['high']:{style}}]"

    tables = {
        f"Predictions on {report['sessions']:,} sessions not used in the fit": (
            ["event", "rate", "expected", "AUC", "log-loss", "constant", "ECE", "floor", ""],
            [
                [name, f"{f['rate']:.4f}", f"{f['rate_predicted']:.4f}", number(f["auc"]),
                 f"{f['log_loss']:.4f}", f"{f['log_loss_constant']:.4f}", f"{f['ece']:.4f}",
                 f"{f['ece_floor']:.4f}", flag(f["weak"])]
                for name, f in report["events"].items()
            ],
        ),
        f"Rollouts against logs (policy: {report['simulated_policy']})": (
            ["distribution", "log", "simulated", "KS", "floor", "Wasserst.", "floor", ""],
            [
                [name, f"{f['log']['mean']:.3f}", f"{f['simulated']['mean']:.3f}", f"{f['ks']:.3f}",
                 f"{f['ks_floor']:.3f}", f"{f['wasserstein']:.3f}", f"{f['wasserstein_floor']:.3f}",
                 flag(f["weak"])]
                for name, f in report["distributions"].items()
            ] + [
                ["two-sample AUC", "", "", f"{report['two_sample']['auc']:.3f}",
                 f"{report['two_sample']['floor']:.3f}", "", "", flag(report["two_sample"]["weak"])]
            ],
        ),
    }  # fmt: skip
    offer = report["offer"]
    tables["The logging policy's rollouts against the log"] = (
        ["per", "log", "simulated", "difference", ""],
        [
            [what, number(f["log"], ".4f"), number(f["simulated"], ".4f"),
             f"{f['difference']:+.1%} [{f['low']:+.1%}, {f['high']:+.1%}]", flag(f["weak"])]
            for what, f in (("slot: clicks", offer["click_rate"]), ("session: slots", offer["length"]))
        ] + [["items shown", "", "",
              f"{offer['items']['distance']:.3f} (chance {offer['items']['floor']:.3f})",
              flag(offer["items"]["weak"])]],
    )  # fmt: skip
    if report["interventions"]:
        tables["Effect against keep on the next 10 slots, with 95 % interval"] = (
            ["decision", "on", "log", "simulated", ""],
            [
                [decision, outcome, interval(f["log"]), interval(f["simulated"]), flag(f["weak"])]
                for decision, outcomes in report["interventions"].items()
                for outcome, f in outcomes.items()
            ],
        )
    if report["ranking"]:
        r = report["ranking"]
        title = (
            f"Ranking: Kendall tau {number(r['kendall_tau'])} over {r['certain_pairs']} certain of "
            f"{r['pairs']} pairs; span {r['span']:.0%}"
        )
        ordered = sorted(report["policies"], key=lambda row: row["true_value"]["mean"])
        tables[title] = (
            ["policy", "true value", "simulator", "bias", "exploitation gap"],
            [
                [row["policy"], f"{row['true_value']['mean']:.2f}", f"{row['value']['mean']:.2f}",
                 f"{row['bias']['mean']:+.0%}", interval(row["exploitation_gap"], "+.0%")]
                for row in ordered
            ],
        )  # fmt: skip
    return tables
