"""Random feeds: every field of FeedConfig and SyntheticUserConfig, the ends of their ranges included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.fuzz.scripted_users import ScriptedUsers
from edgerec_gym.config import SYNC_MODES, FeedConfig, SyntheticUserConfig, preset
from edgerec_gym.registration import IDS
from edgerec_gym.scenario import SHIPPED, Scenario
from edgerec_gym.users.synthetic import world_feed
from edgerec_gym.users.world import make_world

Rng = np.random.Generator
SYNTHETIC, LEARNED, SCRIPTED = "synthetic", "learned", "scripted"
SHARES = {SYNTHETIC: 0.82, LEARNED: 0.06, SCRIPTED: 0.12}  # of the configs, by kind of users
FITTED = ("embedding_size", "profile_size", "card_types")  # what learned users were fitted with
PER_TYPE = ("share_caps", "gaps", "first_slots")
SPLITS = ("log", "train", "eval")
LARGE_SEEDS = (0, 1, 2**31 - 1, 2**32, 2**62)


@dataclass(frozen=True)
class Setup:
    """One environment to fuzz.

    Attributes:
        number: number of the config in the run.
        env_id: a registered id.
        scenario: the world.
        users: kind of users.
        fields: FeedConfig fields that differ from the scenario's.
        split: "log", "train" or "eval".
        seed: seed of the first row.
    """

    number: int
    env_id: str
    scenario: Scenario
    users: str
    fields: dict[str, Any]
    split: str
    seed: int

    def options(self) -> dict[str, Any]:
        """Arguments of an environment; users of one's own are made anew, since they serve only one."""
        users = ScriptedUsers(self.number) if self.users == SCRIPTED else self.users
        return {"scenario": self.scenario, "users": users, "split": self.split, **self.fields}

    def __str__(self) -> str:
        return f"config {self.number}: {self.env_id}, {self.users} users"


def make_setup(number: int, seed: int, small: bool = False) -> Setup:
    """Return config `number` of a run; `small` keeps sizes low, for tests."""
    rng = np.random.default_rng([seed, number])
    users = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    env_id = list(IDS)[number % len(IDS)]
    name = str(rng.choice(SHIPPED))
    fields = _fields(rng, preset(name)[0], small)
    if users == LEARNED:
        scenario = Scenario.load(name)
        fields = {key: value for key, value in fields.items() if key not in (*FITTED, *PER_TYPE)}
        fields |= _per_type(rng, len(scenario.config.card_types))
    else:
        synthetic = _synthetic(rng, scenario_config := preset(name)[0].replace(**fields), small)
        catalog = make_world(synthetic, world_feed(scenario_config)).catalog
        scenario = Scenario(name, scenario_config, catalog, synthetic=synthetic)
        fields = {}
    split = str(rng.choice(SPLITS))
    start = int(rng.choice(LARGE_SEEDS)) if rng.random() < 0.3 else int(rng.integers(2**31))
    return Setup(number, env_id, scenario, users, fields, split, start)


def _fields(rng: Rng, base: FeedConfig, small: bool) -> dict[str, Any]:
    """Every field of the feed, valid together."""
    chance, whole = rng.random, rng.integers
    page = base.page_size if chance() < 0.2 else int(whole(2, 25))
    if not small and chance() < 0.03:
        page = int(whole(100, 400))
    latency = min(100, _one(rng, 1, page - 1, int(whole(1, page)), min(2, page - 1)))
    pool = page + latency + _one(rng, 0, 0, int(whole(0, 20)), int(whole(0, 80)))
    slots = _one(rng, 4, int(whole(4, 40)), int(whole(20, 120)), 60, 200)
    if not small and chance() < 0.03:
        slots = int(whole(400, 3000))
    n_types = int(whole(1, 9))
    fields = {
        "page_size": page,
        "request_latency": latency,
        "pool_size": max(3, pool),
        "n_cards": _one(rng, 1, int(whole(1, 12)), 8, int(whole(8, 40))),
        "card_types": tuple(f"type {k}" for k in range(n_types)),
        "embedding_size": _one(rng, 2, int(whole(2, 20)), 16, 64 if not small else 16),
        "profile_size": _one(rng, 0, 4, int(whole(0, 9)), 64 if not small else 4),
        "exposure_history": _one(rng, 1, int(whole(1, 60)), base.exposure_history),
        "page_view_history": _one(rng, 1, int(whole(1, 40)), base.page_view_history),
        "max_slots": slots,
        "lookahead": min(slots - 1, _one(rng, 0, 1, 2, 2, int(whole(0, 11)), 10)),
        "request_budget": _one(rng, None, 0, 1, int(whole(0, 12)), 10_000),
        "rules": _one(rng, "mask", "penalty"),
        "slate_size": _one(rng, 1, int(whole(1, 16)), 10, 100 if not small else 10),
        "reward": {name: _weight(rng) for name in _WEIGHTS},
        "cloud": {
            "sync": _one(rng, *SYNC_MODES),
            "sync_period": _one(rng, 1, int(whole(1, 30)), 10_000),
            "long_term_weight": _one(rng, 0.0, 1.0, 50.0),
            "recent_weight": _one(rng, 0.0, 3.0, 50.0),
            "noise": _one(rng, 0.0, 0.6, 0.6, 50.0),
            "score_offset": _one(rng, 0.0, 0.0, -50.0, 50.0),
            "interest_decay": _one(rng, 0.0, 0.85, 1.0),
            "dwell_weight": _one(rng, 0.0, 1.0, 50.0),
            "click_weight": _one(rng, 0.0, 1.0, 50.0),
            "page_view_weight": _one(rng, 0.0, 2.0, 50.0),
            "probed_categories": _one(rng, 1, int(whole(1, 20)), 12, 10_000),
            "scan_limit": _one(rng, 64, 200, int(whole(4, 200)), 100_000),
        },
    }
    return fields | _per_type(rng, n_types)


_WEIGHTS = ("click", "purchase", "request", "invalid", "insert_click", "leave")


def _per_type(rng: Rng, n_types: int) -> dict[str, Any]:
    """Rules of insertion."""
    rounds = range(n_types)
    return {
        "share_caps": tuple(float(_one(rng, 0.0, 1.0, 0.1, rng.random(), rng.random())) for _ in rounds),
        "gaps": tuple(_one(rng, 0, 1, int(rng.integers(0, 12)), 1000) for _ in rounds),
        "first_slots": tuple(_one(rng, 0, 0, 1, int(rng.integers(0, 20)), 10_000) for _ in rounds),
    }


def _synthetic(rng: Rng, feed: FeedConfig, small: bool) -> SyntheticUserConfig:
    """Users whose catalogue has enough goods that retrieval can reach."""
    ranges = {
        f.name: f.metadata["range"] for f in SyntheticUserConfig.__dataclass_fields__.values()
    }  # fmt: skip
    values: dict[str, Any] = {"world_seed": int(rng.integers(2**31))}
    for name, (low, high) in ranges.items():
        if name in _SIZES:
            continue
        default = getattr(SyntheticUserConfig(), name)
        values[name] = float(_one(rng, default, default, low, high, rng.uniform(low, high)))
    if rng.random() < 0.8:  # else most sessions end at once
        values["leave_bias"] = float(rng.uniform(-9, -4))
        values["patience"] = float(rng.uniform(0, 2))
    categories = _one(rng, 2, 10, 40, int(rng.integers(2, 80)))
    card_fraction = min(float(values["card_fraction"]), 0.9)
    reachable = feed.pool_size + feed.max_slots
    per_category = max(-(-reachable // categories), 1) + int(rng.integers(1, 4))
    if per_category > feed.cloud.scan_limit:
        categories = -(-reachable // feed.cloud.scan_limit) + 1
        per_category = feed.cloud.scan_limit + 1
    goods = per_category * categories
    items = int(np.ceil(goods / (1 - card_fraction) * 1.1)) + categories * (1 + feed.n_types)
    items = max(items, int(rng.integers(200, 600 if small else 4000)))
    return SyntheticUserConfig(
        **values
        | {
            "n_items": items,
            "n_users": _one(rng, 10, int(rng.integers(10, 200)), 500),
            "n_categories": min(categories, 10_000),
            "n_days": _one(rng, 2, 14, int(rng.integers(2, 30))),
        }
    )


_SIZES = ("world_seed", "n_items", "n_users", "n_categories", "n_days")


def _weight(rng: Rng) -> float:
    return float(_one(rng, 0.0, 1.0, -0.1, 5.0, rng.normal(), 1000.0, -1000.0))


def _one(rng: Rng, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]
