"""The benchmark's track mix: insertion policies at an equal share of cards, trained, priced and played.

ESAN is trained on a log with random insertions and fine-tuned by playing the learned users of the scenario.
All policies are scored on synthetic users that training never saw (EdgeFeedMix-v0, split `eval`, common
random numbers), each at the price at which it shows as many cards as fixed slots do. Prices are found on
other sessions (split `train`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgerec_gym.agents.attainable.kernels import CODE
from edgerec_gym.agents.attainable.policy import AttainablePolicy
from edgerec_gym.agents.baselines import FixedSlot, Keep
from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.policies import REPLAN_AFTER, InsertionPlan, policy_of
from edgerec_gym.agents.insertion.train import load_network
from edgerec_gym.agents.insertion.values import TrueValues, ValueModel
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.bench.comparison import ATTAINABLE, make_comparison
from edgerec_gym.bench.mix.predictions import score
from edgerec_gym.bench.mix.prices import at_price, find_prices, share_of
from edgerec_gym.bench.plots import draw_frontier
from edgerec_gym.bench.rows import (
    Played,
    attainable_gap_closed,
    difference,
    gap_closed,
    mean,
    ratio,
    values_of,
)
from edgerec_gym.bench.setting import Setting
from edgerec_gym.bench.training import collect_logs, every_version, run_folder, train_missing
from edgerec_gym.config import FeedConfig
from edgerec_gym.documents import read_document
from edgerec_gym.errors import InputError, closest
from edgerec_gym.evaluation.cache import Entry, Place, Progress, Rows, played, row, table
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.files import write_json
from edgerec_gym.policy import Policy
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario

ENV_ID = "EdgeFeedMix-v0"
KEEP, FIXED = "keep", "fixed-slot"
EVERY = 5  # slots between cards of the fixed slots, whose share all other policies match
ABLATIONS: dict[str, dict[str, int]] = {
    "esan": {},
    "esan, no surroundings": {"surroundings": 0},
    "esan, no behaviour": {"behaviour": 0},
    "esan, neither": {"surroundings": 0, "behaviour": 0},
}
TUNED = "esan-pg"
PRICES = "prices.json"  # shipped with the runs: policy -> price of equal share
PLANNERS: dict[str, tuple[str | None, str]] = {  # policy -> run that values cards (None: the truth), solver
    "greedy": ("esan", "greedy"),
    "dual threshold": ("esan", "dual"),
    "esan + beam": ("esan", "beam"),
    "esan + exact": ("esan", "exact"),
    "esan + exact, fine-tuned": (TUNED, "exact"),
    "oracle + exact": (None, "exact"),
}
METRICS = {
    "share": ".2%",
    "card_click_rate": ".2%",
    "card_click_rate_gain": "+.1% 95%",
    "value": ".3f",
    "gain_over_fixed": "+.3f 95%",
    "attainable_gap_closed": ".0%",
    "gap_closed": ".0%",
    "violations": ".0f",
}
PREDICTION = {
    "auc": ".4f 95%",
    "auc_minus_full": "+.4f 95%",
    "log_loss": ".4f",
    "calibration_error": ".4f 95%",
}


@dataclass(frozen=True)
class Sizes:
    """The amount of work in a run of the track.

    Attributes:
        log_sessions: sessions collected for training.
        held_sessions: sessions of a second log, whose held-out days score the predictions.
        sessions: sessions that each policy plays on the ground truth.
        price_sessions: sessions that determine a price.
        frontier_sessions: sessions that each point of the frontier plays.
        hyper: hyper-parameters of each agent that differ from its defaults.
    """

    log_sessions: int
    held_sessions: int
    sessions: int
    price_sessions: int
    frontier_sessions: int
    hyper: dict[str, dict[str, Any]] = field(default_factory=dict)


QUICK = Sizes(
    log_sessions=2000,
    held_sessions=2000,
    sessions=400,
    price_sessions=300,
    frontier_sessions=100,
    hyper={"esan": {"epochs": 2}, TUNED: {"updates": 3, "batch_size": 16}},
)
FULL = {
    "lite": Sizes(12_000, 24_000, 10_000, 2000, 1000, {"esan": {"epochs": 6}, TUNED: {"updates": 60}}),
    "default": Sizes(16_000, 32_000, 10_000, 2000, 1000, {"esan": {"epochs": 6, "per_session": 4}}),
}
FULL = every_version(FULL)


def train(setting: Setting, names: Sequence[str], workers: int, progress: Progress | None) -> None:
    """Collect the missing logs and train the missing runs, in parallel.

    All runs are trained, whichever policies are named, because the rows of predictions need every ablation
    of ESAN.
    """
    out, scenario, sizes = setting.runs, setting.scenario, setting.sizes
    collect_logs(out / "logs", scenario, sizes.log_sessions)
    collect_logs(out / "held-logs", scenario, sizes.held_sessions, seed=1, randomise=["insert"])
    stages = [
        [(name, seed) for seed in range(setting.seeds) for name in stage]
        for stage in (tuple(ABLATIONS), (TUNED,))
    ]
    train_missing(_train_one, out, scenario, sizes, stages, workers, progress)


def _train_one(out: str, scenario: str, name: str, seed: int, sizes: Sizes) -> None:
    agent = TUNED if name == TUNED else "esan"
    train_agent(
        agent,
        run_folder(Path(out), name, seed),
        logs=None if agent == TUNED else Path(out) / "logs",
        based_on=[run_folder(Path(out), "esan", seed)] if agent == TUNED else (),
        seed=seed,
        resume=True,
        threads=1,
        hyper=sizes.hyper.get(agent, {}) | ABLATIONS.get(name, {}),
        scenario=scenario,
    )


# --- policies -----------------------------------------------------------------------------------------


def make_keep(_: Place) -> Policy:
    """Return the policy that inserts no cards."""
    return Keep()


def make_fixed(place: Place, every: int) -> Policy:
    """Return the policy that inserts a card at fixed slots."""
    return FixedSlot(track_of(place.env_id), every)


def make_planner(place: Place, name: str, run: str | None, solver: str, price: float) -> Policy:
    """Return a policy of :data:`PLANNERS` at a price."""
    config = Scenario.load(place.scenario).config.replace(**place.config)
    values: ValueModel = TrueValues() if run is None else _network_values(run, config)
    plan = InsertionPlan(name, values, config, solver=solver, price=price)
    # The oracle reads the user's state anew at every slot.
    return policy_of(plan, track_of(place.env_id), 1 if run is None else REPLAN_AFTER)


def make_attainable(place: Place, code: str, price: float) -> Policy:
    """Return the attainable ceiling at a price; see :func:`edgerec_gym.bench.setting.make_reference`."""
    return AttainablePolicy(margin=price, seed=place.seed)


def _network_values(run: str, config: FeedConfig) -> ValueModel:
    return NetworkValues(load_network(run, config))


def policies() -> tuple[str, ...]:
    """Return the names of the policies: keep first, the oracle last."""
    oracle = _oracle()
    return (KEEP, FIXED, *(name for name in PLANNERS if name != oracle), ATTAINABLE, oracle)


def _oracle() -> str:
    return next(name for name, (run, _) in PLANNERS.items() if run is None)


def entries(setting: Setting, names: Sequence[str]) -> list[Entry]:
    """Return the entries of the named policies, planners at price 0; :func:`at_equal_share` prices them."""
    rules = {KEEP: Entry(KEEP, make_keep), FIXED: fixed_entry()}
    planned = [name for name in names if name not in rules]
    found = [rules[name] for name in names if name in rules]
    return found + planner_entries(setting.runs, range(setting.seeds), planned)


def fixed_entry() -> Entry:
    """Return the entry of fixed slots, whose share all other policies match."""
    return Entry(FIXED, make_fixed, {"every": EVERY})


def at_equal_share(
    setting: Setting, place: Place, entries: Sequence[Entry], workers: int, progress: Progress | None
) -> list[Entry]:
    """Bring insertion policies to the share of fixed slots, at shipped prices or prices found now."""
    free = [entry for entry in entries if "price" in entry.arguments]
    if (setting.runs / PRICES).is_file():
        file = setting.runs / PRICES
        prices = read_document(file, dict[str, float])
        if missing := {entry.policy for entry in free} - prices.keys():
            raise InputError(f"{file}: {min(missing)} is missing; it holds a price for each policy")
        priced = [at_price(entry, prices[entry.policy]) for entry in free]
    else:
        sessions = (QUICK if setting.quick else setting.sizes).price_sessions
        where, cache = replace(place, sessions=sessions), setting.cache / "prices"
        priced = find_prices(free, fixed_entry(), where, cache, workers=workers, progress=progress)
    return [entry for entry in entries if entry not in free] + priced


def ship_prices(setting: Setting, folder: Path, workers: int, progress: Progress | None) -> None:
    """Write the prices of a setting's policies, so that a quick run need not search for them."""
    comparison = make_comparison(setting, workers=workers, progress=progress)
    priced = {e.policy: e.arguments["price"] for e in comparison.entries if "price" in e.arguments}
    earlier = read_document(folder / PRICES, dict[str, float]) if (folder / PRICES).is_file() else {}
    write_json(folder / PRICES, earlier | priced)


def planner_entries(out: Path, seeds: Sequence[int], names: Sequence[str], price: float = 0.0) -> list[Entry]:
    """Return the entries of policies of :data:`PLANNERS` or the attainable ceiling, all at one price."""
    found = []
    for name in names:
        if name == ATTAINABLE:
            found.append(Entry(name, make_attainable, {"code": CODE, "price": price}))
            continue
        run, solver = PLANNERS[name]
        for seed in (None,) if run is None else seeds:
            folder = None if run is None or seed is None else run_folder(out, run, seed)
            arguments = {"name": name, "run": folder and str(folder), "solver": solver, "price": price}
            found.append(Entry(name, make_planner, arguments, () if folder is None else (folder,), seed))
    return found


# --- rows ---------------------------------------------------------------------------------------------


def make_rows(true: Played, prices: dict[str, list[float]]) -> Rows:
    """Return the rows of all policies: share, clicks on cards and value, compared with fixed slots."""
    found: Rows = []
    for policy in dict.fromkeys(name for name, _ in true):
        own = values_of(true, policy)
        n_seeds, n_sessions = own("value").shape
        for metric, interval in _figures(policy, true).items():
            more = {"by_seed": own("value").mean(axis=1).round(4).tolist()} if metric == "value" else {}
            if metric == "share" and policy in prices:
                more = {"prices": prices[policy]}
            found.append(row(policy, metric, interval, n_seeds, n_sessions, **more))
        for metric, name in (("violations", "violations"), ("slots", "exposures")):
            total = float(own(name).sum())
            interval = {"mean": total, "low": total, "high": total}
            found.append(row(policy, metric, interval, n_seeds, n_sessions))
    return found


def _figures(policy: str, true: Played) -> dict[str, Interval]:
    own, fixed, keep, oracle = (values_of(true, name) for name in (policy, FIXED, KEEP, _oracle()))
    figures = {
        "share": ratio(own("cards"), own("exposures")),
        "value": mean(own("value")),
        "clicks": mean(own("expected_clicks")),
        "length": mean(own("exposures")),
        "gain_over_fixed": difference(own("value"), fixed("value")),
    }
    if policy != KEEP:
        figures |= attainable_gap_closed(true, own("value"), keep("value"))
        figures["gap_closed"] = gap_closed(own("value"), keep("value"), oracle("value"))
    if own("cards").any():
        clicks = [own("expected_card_clicks"), own("cards")]
        reference = [fixed("expected_card_clicks"), fixed("cards")]
        figures["card_click_rate"] = ratio(*clicks)
        figures["card_click_rate_gain"] = seeds_interval(
            [*clicks, *reference], lambda m: m[..., 0] / m[..., 1] / (m[..., 2] / m[..., 3]) - 1
        )
    return figures


def prediction_rows(out: Path, seeds: Sequence[int]) -> Rows:
    """Return the rows of ESAN and its ablations on held-out random insertions."""
    runs: dict[str, Sequence[Path]] = {
        name: [run_folder(out, name, seed) for seed in seeds] for name in ABLATIONS
    }
    scored, n_sessions = score(out / "held-logs", runs, "esan")
    return [
        row(name, metric, interval, len(seeds), n_sessions)
        for name, figures in scored.items()
        for metric, interval in figures.items()
    ]


FRONTIER = (-0.06, -0.03, 0.0, 0.04, 0.1)  # added to the price of equal share
FRONTIER_EVERY = (3, 4, 5, 7, 10)


def frontier_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return the first training seed's entries at several prices, and fixed slots at several distances."""
    found = [Entry(f"{FIXED} @ {every}", make_fixed, {"every": every}) for every in FRONTIER_EVERY]
    for entry in entries:
        if entry.seed in (None, 0):
            for step in FRONTIER:
                other = at_price(entry, entry.arguments["price"] + step)
                found.append(replace(other, policy=f"{entry.policy} @ {other.arguments['price']:.4f}"))
    return found


def frontier_rows(points: Played) -> Rows:
    """Return value against share of cards: rows of the metric `frontier` with a column `share`."""
    rows = []
    for (name, _), sessions in points.items():
        policy, _, knob = name.partition(" @ ")
        interval = mean(sessions["value"][None])
        more = {"share": share_of(sessions), "knob": float(knob)}
        rows.append(row(policy, "frontier", interval, 1, len(sessions["value"]), **more))
    return rows


def rows(setting: Setting, workers: int, progress: Progress | None) -> Rows:
    """Collect, train, find prices, play and score; rows of policies, predictions and the frontier.

    Raises:
        InputError: an unknown policy, or a share that no price gives.
    """
    policies, scenario, seeds = setting.policies, setting.scenario, range(setting.seeds)
    known = [name for name in setting.track.names() if name not in (KEEP, FIXED)]
    for name in policies:
        if name not in known:
            raise InputError(f"unknown policy {name!r}{closest(name, known)}")
    out, sizes = setting.runs, setting.sizes
    train(setting, policies, workers, progress)
    free = planner_entries(out, seeds, tuple(dict.fromkeys((*(policies or known), _oracle()))))
    place = Place(ENV_ID, scenario, "synthetic", sizes.price_sessions)
    options: dict[str, Any] = {"workers": workers, "progress": progress}
    priced = find_prices(free, fixed_entry(), place, out / "prices", **options)
    place = Place(ENV_ID, scenario, "synthetic", sizes.sessions)
    true = played([Entry(KEEP, make_keep), fixed_entry(), *priced], place, out / "played", **options)
    prices: dict[str, list[float]] = {}
    for entry in priced:
        prices.setdefault(entry.policy, []).append(entry.arguments["price"])
    place = Place(ENV_ID, scenario, "synthetic", sizes.frontier_sessions)
    points = played(frontier_entries(priced), place, out / "played", **options)
    return [*make_rows(true, prices), *prediction_rows(out, seeds), *frontier_rows(points)]


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of the tables, by title."""
    scored = [item for item in rows if item["policy"] not in ABLATIONS and item["metric"] != "frontier"]
    predicted = [item for item in rows if item["policy"] in ABLATIONS]
    return {
        f"{ENV_ID}, equal share": table(scored, METRICS),
        "clicks on held-out random insertions": table(predicted, PREDICTION),
    }


def picture(rows: Rows, path: str | Path) -> None:
    """Draw value against the share of cards."""
    draw_frontier(rows, path)
