"""How much of the gap between keep and the oracle can be known, and is the attainable ceiling right?

    python -m benchmarks.attainable [--scenario lite] [--sessions 2000] [--quick]

Checks the belief of :class:`~edgerec_gym.agents.attainable.policy.AttainablePolicy` against the latent state,
plays it with more and fewer particles, and plays it beside keep, device-greedy and the oracle, on the
scenario's users and on the shifted ones. Prints the tables and writes benchmarks/results/attainable.json.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgerec_gym.agents.attainable.kernels import CODE
from edgerec_gym.agents.attainable.policy import NAMES, AttainablePolicy
from edgerec_gym.bench.rows import Played, difference, gap_closed, mean, values_of
from edgerec_gym.bench.setting import make_policy
from edgerec_gym.config import SHIFTS
from edgerec_gym.evaluation.cache import Entry, Place, Rows, played, row, save_rows, table
from edgerec_gym.evaluation.intervals import ratio_interval
from edgerec_gym.files import make_folder
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import SHIPPED

RESULTS = Path(__file__).parent / "results"
ENV_ID = "EdgeFeedRerank-v0"
PARTICLES = (64, 256, 1024)
POLICIES = ("keep", "device-greedy", *NAMES, "oracle")
LEVEL = 0.9  # of the credible sets and intervals
METRICS = {
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "gap_closed": ".1% 95%",
    "attainable_gap_closed": ".1%",
}
CHECKS = {
    "category_in_set": ".1% 95%",
    "logit_in_interval": ".1% 95%",
    "predicted_clicks": ".4f 95%",
    "true_clicks": ".4f 95%",
}


def make_attainable(_: Place, items: str, particles: int, code: str) -> Policy:
    """Return the ceiling with a number of particles; `code` makes a changed one play anew."""
    return AttainablePolicy(items, particles)


# --- is the belief right? -----------------------------------------------------------------------------


def watch(scenario: str, items: str, sessions: int, particles: int = 256) -> dict[str, np.ndarray]:
    """Play sessions and compare the belief at every slot with the latent state.

    Returns:
        Arrays of one entry per slot: `session`; `in_set`, whether the true category of the intent is in the
        smallest set of probability 0.9; `place`, the belief's distribution function at the true click logit
        of the chosen item; `predicted` and `true` click probability of the card on answer.
    """
    policy = AttainablePolicy(items, particles)
    env = make_feeds(ENV_ID, sessions, scenario=scenario, users="synthetic", split="eval", copy=False)
    observation, _ = env.reset(seed=0)
    policy.bind(env)
    policy.reset(np.ones(sessions, np.bool_))
    batch, users, config = env.batch, env.users, env.config
    rows, done = np.arange(sessions), np.zeros(sessions, np.bool_)
    promised = np.full((sessions, config.max_slots), np.nan)
    found: dict[str, list[np.ndarray]] = {}

    def note(at: np.ndarray, **values: np.ndarray) -> None:
        for name, value in {"session": rows, **values}.items():
            found.setdefault(name, []).append(value[at])

    while not done.all():
        action = policy.act(observation)
        live, arrays = ~done, policy.beliefs.arrays
        slot = batch.arrays.slot.copy()
        promised[rows[live], slot[live]] = arrays.clicks[rows[live], action[live]]
        note(live, in_set=_in_set(policy, users), place=_place(policy, users, batch.arrays, action))
        batch.step(action, done)
        answered = live & batch.arrays.focus_active
        at = np.maximum(slot - config.lookahead, 0)
        note_answers = {"predicted": promised[rows, at], "true": batch.arrays.response[:, 19].astype(float)}
        for name, value in {"answer_session": rows, **note_answers}.items():
            found.setdefault(name, []).append(value[answered])
        observation = batch.observation(copy=False)
        done |= batch.arrays.terminated | batch.arrays.truncated
    env.close()
    return {name: np.concatenate(values) for name, values in found.items()}


def _in_set(policy: AttainablePolicy, users: Any) -> np.ndarray:
    """Return whether the intent's category is in the smallest set of probability LEVEL, (B,) bool."""
    arrays = policy.beliefs.arrays
    centres = arrays.know.centres
    own = np.einsum("cd,bdp->bcp", centres, arrays.intent).argmax(axis=1)
    true = (users.arrays.intent_now @ centres.T).argmax(axis=1)
    probability = np.zeros((len(own), len(centres)))
    for c in range(len(centres)):
        probability[:, c] = np.where(own == c, arrays.weight, 0).sum(axis=1)
    of_true = probability[np.arange(len(own)), true]
    likelier = np.where(probability > of_true[:, None], probability, 0).sum(axis=1)
    return likelier < LEVEL


def _place(policy: AttainablePolicy, users: Any, feed: Any, chosen: np.ndarray) -> np.ndarray:
    """Return the belief's distribution function at the true click logit of the chosen item, (B,)."""
    arrays = policy.beliefs.arrays
    rows, know = np.arange(len(chosen)), arrays.know
    interest = policy.beliefs.interests(chosen)
    p = users.true_values(feed)[rows, chosen, 0].clip(1e-12, 1 - 1e-12)
    true = np.log(p / (1 - p)) - know.click_bias
    weights = know.smooth_next
    steps = np.arange(len(weights)) - len(weights) // 2
    deviation = math.sqrt(float((weights * steps**2).sum())) * 0.125
    normal = np.vectorize(math.erf)((true[:, None] - interest) / (deviation * math.sqrt(2)))
    return ((0.5 + 0.5 * normal) * arrays.weight).sum(axis=1)


def calibration(watched: dict[str, np.ndarray], policy: str) -> Rows:
    """Return the rows of a belief's checks, with intervals over sessions, and reliability by decile."""
    n = int(watched["session"].max()) + 1

    def share(of: np.ndarray, session: np.ndarray, only: np.ndarray | None = None) -> dict[str, float]:
        some = np.ones(len(of)) if only is None else only
        return ratio_interval(np.bincount(session, of * some, n), np.bincount(session, some.astype(float), n))

    outside = (1 - LEVEL) / 2
    inside = (watched["place"] > outside) & (watched["place"] < 1 - outside)
    session, answer = watched["session"], watched["answer_session"]
    figures = {
        "category_in_set": share(watched["in_set"].astype(float), session),
        "logit_in_interval": share(inside.astype(float), session),
        "predicted_clicks": share(watched["predicted"], answer),
        "true_clicks": share(watched["true"], answer),
    }
    found = [row(policy, name, interval, 1, n) for name, interval in figures.items()]
    edges = np.quantile(watched["predicted"], np.linspace(0, 1, 11))
    decile = np.searchsorted(edges[1:-1], watched["predicted"], side="right")
    for k in range(10):
        for name in ("predicted", "true"):
            interval = share(watched[name], answer, decile == k)
            found.append(row(policy, f"{name}_by_decile", interval, 1, n, decile=k + 1))
    return found


# --- what can be earned -------------------------------------------------------------------------------


def entry_of(name: str, particles: int = 256) -> Entry:
    """Return the entry of a policy of the comparison."""
    if name in NAMES:
        return Entry(name, make_attainable, {"items": NAMES[name], "particles": particles, "code": CODE})
    return Entry(name, make_policy, {"name": name})


def figures(true: Played) -> Rows:
    """Return value, gain over keep and shares of both gaps of every policy."""
    keep, oracle, known = (values_of(true, name)("value") for name in ("keep", "oracle", "attainable"))
    found = []
    for name in dict.fromkeys(policy for policy, _ in true):
        own = values_of(true, name)("value")
        intervals = {"value": mean(own)}
        if name != "keep":
            intervals["gain_over_keep"] = difference(own, keep)
            intervals["gap_closed"] = gap_closed(own, keep, oracle)
            intervals["attainable_gap_closed"] = gap_closed(own, keep, known)
        if name in NAMES:
            intervals["below_oracle"] = difference(oracle, own)
        found += [row(name, metric, interval, *own.shape) for metric, interval in intervals.items()]
    return found


def by_particles(place: Place, cache: Path, workers: int) -> Rows:
    """Return the gain of each number of particles over the next smaller one, paired."""
    entries = [replace(entry_of("attainable", n), policy=f"attainable, {n} particles") for n in PARTICLES]
    true, found = played(entries, place, cache, workers=workers), []
    for entry, smaller in zip(entries, [None, *entries[:-1]], strict=True):
        own = values_of(true, entry.policy)("value")
        intervals = {"value": mean(own)}
        if smaller is not None:
            intervals["gain_over_fewer"] = difference(own, values_of(true, smaller.policy)("value"))
        found += [row(entry.policy, metric, interval, *own.shape) for metric, interval in intervals.items()]
    return found


def show(console: Console, title: str, rows: Rows, metrics: dict[str, str]) -> None:
    """Print rows as a table."""
    header, body = table(rows, metrics)
    shown = Table(*header, title=title)
    for line in body:
        shown.add_row(*line)
    console.print(shown)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", choices=SHIPPED, action="append", help="default: both")
    parser.add_argument("--sessions", type=int, default=2000, help="sessions that each policy plays")
    parser.add_argument("--watched", type=int, default=500, help="sessions whose beliefs are checked")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-shifts", action="store_true", help="only the scenarios' own users")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sessions")
    parser.add_argument("--out", type=Path, default=RESULTS / "attainable.json")
    parser.add_argument("--cache", type=Path, default=Path("runs/attainable"))
    arguments = parser.parse_args()
    sessions = arguments.sessions // (10 if arguments.quick else 1)
    watched = arguments.watched // (10 if arguments.quick else 1)
    console, cache = Console(width=160), make_folder(arguments.cache)
    for scenario in arguments.scenario or SHIPPED:
        place = Place(ENV_ID, scenario, "synthetic", sessions)
        checks = [r for name, how in NAMES.items() for r in calibration(watch(scenario, how, watched), name)]
        show(console, f"{scenario}: the belief against the latent state, {watched} sessions", checks, CHECKS)
        decile = [r for r in checks if "decile" in r]
        for name in NAMES:
            pairs = {(r["metric"], r["decile"]): r["mean"] for r in decile if r["policy"] == name}
            told = ", ".join(
                f"{pairs['predicted_by_decile', k]:.3f}/{pairs['true_by_decile', k]:.3f}"
                for k in range(1, 11)
            )
            console.print(f"{name}, click probability by decile, predicted/true: {told}")
        _save(arguments.out, checks, scenario, "belief", watched)
        found = by_particles(place, cache, arguments.workers)
        columns = {"value": ".3f", "gain_over_fewer": "+.3f 95%"}
        show(console, f"{scenario}: number of particles, {sessions} sessions", found, columns)
        _save(arguments.out, found, scenario, "particles", sessions)
        for shift in (None, *(() if arguments.no_shifts else SHIFTS)):
            entries = [entry_of(name) for name in POLICIES]
            shifted = replace(place, shift=shift)
            found = figures(played(entries, shifted, cache, workers=arguments.workers))
            columns = METRICS | {"below_oracle": "+.3f 95%"}
            show(console, f"{scenario}, {shift or 'own users'}, {sessions} sessions", found, columns)
            _save(arguments.out, found, scenario, shift or "own users", sessions)


def _save(path: Path, rows: Rows, scenario: str, part: str, sessions: int) -> None:
    about = {"scenario": scenario, "part": part, "sessions": sessions, "seed": 0, "env_id": ENV_ID}
    save_rows(path, rows, about, same=("scenario", "part"))


if __name__ == "__main__":
    main()
