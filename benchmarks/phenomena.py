"""Each phenomenon of the synthetic users, measured on and off in an otherwise plain world.

A plain world has every phenomenon off. One is switched on (with what it needs), and its effect is measured in
simulated sessions of a policy that places pool rows, cards and requests at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgerec_gym.answers import BUY, CLICK, CLICK_PROBABILITY, LEAVE, PAGE_VIEW, SLOT
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig, SyntheticUserConfig, preset
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.users.synthetic import SyntheticUsers

OFF = {
    "taste": 0.0,
    "intent": 0.0,
    "intent_switch": 0.0,
    "intent_drift": 0.0,
    "satiation": 0.0,
    "weariness": 0.0,
    "pseudo_click": 0.0,
    "surroundings": 0.0,
    "type_taste": 0.0,
    "fatigue": 0.0,
    "patience": 0.0,
    "purchase": 0.0,
    "refresh": 0.0,
    "activity": 0.2,
    "day_drift": 0.0,
}
Answers = dict[str, np.ndarray]


def simulate(config: SyntheticUserConfig, feed: FeedConfig, sessions: int, seed: int = 0) -> Answers:
    """Play random sessions; one entry for each answered slot, with the latent state before the answer."""
    users = SyntheticUsers(config, feed)
    batch = FeedBatch(sessions, "joint", feed, users.world.catalog, users, split="train")
    batch.reset(np.arange(sessions), seed + np.arange(sessions))
    a, u, world = batch.arrays, users.arrays, users.world
    rng = np.random.default_rng(seed)
    done = np.zeros(sessions, np.bool_)
    rows_of: list[Answers] = []
    while not done.all():
        mask = a.observation_bytes[:, a.mask_at : a.mask_at + batch.n_actions] != 0
        weight = rng.random(mask.shape) * mask
        weight[:, feed.pool_size : -1] *= 2.0  # enough cards to see some side by side
        weight[:, -1] *= rng.random(sessions) < 0.1
        item = a.window_items[:, 3].copy()  # focused next
        safe = np.maximum(item, 0)
        everyone = np.arange(sessions)
        before = {
            "row": everyone,
            "item": safe,
            "user": u.user.copy(),
            "day": u.day.copy(),
            "taste": (u.taste_now * world.factors[safe]).sum(axis=1),
            "intent": (u.intent_now * world.factors[safe]).sum(axis=1),
            "intent_vector": u.intent_now.copy(),
            "satiation": u.satiation_now[everyone, world.category[safe]],
            "weariness": u.weariness_now[everyone, world.category[safe]],
            "boredom": u.boredom.copy(),
        }
        batch.step(weight.argmax(axis=1), done)
        answered = ~done & a.focus_active
        after = {
            "slot": a.focus_context[:, SLOT].astype(int),
            "window": a.window_items.copy(),
            "probability": a.response[:, CLICK_PROBABILITY].astype(float),
            "click": a.response[:, CLICK] > 0,
            "long_view": a.response[:, PAGE_VIEW] >= 3 / 7 - 1e-6,
            "buy": a.response[:, BUY] > 0,
            "leave": a.response[:, LEAVE] > 0,
            "refresh": u.refresh_now.copy(),
            "intent_after": (u.intent_now * world.factors[safe]).sum(axis=1),
        }
        rows_of.append({key: value[answered] for key, value in (before | after).items()})
        done |= a.terminated | a.truncated
    answers = {key: np.concatenate([rows[key] for rows in rows_of]) for key in rows_of[0]}
    answers["type"] = world.catalog.card_type[answers["item"]]
    answers["goods"] = answers["type"] == 0
    answers["attractiveness"] = world.attractiveness[answers["item"]]
    answers["type_taste"] = world.type_taste[answers["user"], answers["type"]]
    around = answers["window"][:, [1, 3]]
    answers["same_type_near"] = (
        (world.catalog.card_type[np.maximum(around, 0)] == answers["type"][:, None]) & (around >= 0)
    ).any(axis=1)
    answers["active"] = answers["user"] < config.n_users // 5
    return answers


def _ratio(answers: Answers, high: np.ndarray, low: np.ndarray, what: str = "probability") -> float:
    """Mean of `what` where `high`, divided by its mean where `low`."""
    return float(answers[what][high].mean() / max(answers[what][low].mean(), 1e-12))


def _quartiles(answers: Answers, by: str, where: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    where = np.ones(len(answers[by]), np.bool_) if where is None else where
    low, high = np.quantile(answers[by][where], [0.25, 0.75])
    return where & (answers[by] >= high), where & (answers[by] <= low)


def _intent_stays(answers: Answers) -> float:
    """Mean cosine between a session's first intent and its intent 20 answers later."""
    vectors, slot, row = answers["intent_vector"], answers["slot"], answers["row"]
    first, later = slot == 0, slot == 20
    start = {r: v for r, v in zip(row[first], vectors[first], strict=True)}
    return float(np.mean([start[r] @ v for r, v in zip(row[later], vectors[later], strict=True)]))


def _taste_between_days(config: SyntheticUserConfig, feed: FeedConfig) -> float:
    """Mean cosine between the tastes of one user on two days."""
    users = SyntheticUsers(config, feed)
    users.allocate(4000, feed, Workers(4000, 1))
    users.reset(np.arange(4000), np.arange(4000, dtype=np.uint64), 1)
    user, day, taste = users.arrays.user, users.arrays.day, users.arrays.taste_now
    order = np.argsort(user, kind="stable")
    a, b = order[:-1], order[1:]
    pairs = (user[a] == user[b]) & (day[a] != day[b])
    return float((taste[a[pairs]] * taste[b[pairs]]).sum(axis=1).mean())


@dataclass(frozen=True)
class Phenomenon:
    """One phenomenon: what is switched on with it, and how its effect is measured from the answers."""

    name: str
    measure: str
    effect: Callable[[Answers], float]
    needs: dict[str, float]


PHENOMENA = (
    Phenomenon(
        "taste",
        "click rate, items near / far from the taste",
        lambda a: _ratio(a, *_quartiles(a, "taste")),
        {},
    ),
    Phenomenon(
        "intent",
        "click rate, items near / far from the intent",
        lambda a: _ratio(a, *_quartiles(a, "intent")),
        {},
    ),
    Phenomenon(
        "intent_switch", "cosine of the intent with itself 20 slots later", _intent_stays, {"intent": 4.0}
    ),
    Phenomenon(
        "intent_drift",
        "move of the intent toward a clicked and liked item (cosine)",
        lambda a: float((a["intent_after"] - a["intent"])[a["click"] & a["long_view"]].mean()),
        {"intent": 4.0, "click_bias": -3.0},
    ),
    Phenomenon(
        "satiation",
        "click rate, category just enjoyed / not",
        lambda a: _ratio(a, a["goods"] & (a["satiation"] > 0.7), a["goods"] & (a["satiation"] < 0.05)),
        {"click_bias": -2.0},
    ),
    Phenomenon(
        "weariness",
        "click rate, category shown in vain / not",
        lambda a: _ratio(a, a["goods"] & (a["weariness"] > 0.9), a["goods"] & (a["weariness"] < 0.05)),
        {},
    ),
    Phenomenon(
        "pseudo_click",
        "click rate, attractive / dull items",
        lambda a: _ratio(a, *_quartiles(a, "attractiveness")),
        {},
    ),
    Phenomenon(
        "surroundings",
        "click rate of cards beside their own type / not",
        lambda a: _ratio(a, (a["type"] > 0) & a["same_type_near"], (a["type"] > 0) & ~a["same_type_near"]),
        {},
    ),
    Phenomenon(
        "type_taste",
        "click rate of cards, users who like / dislike the type",
        lambda a: _ratio(a, *_quartiles(a, "type_taste", a["type"] > 0)),
        {},
    ),
    Phenomenon(
        "fatigue",
        "click rate, slots 60+ / 0-20",
        lambda a: _ratio(a, a["goods"] & (a["slot"] >= 60), a["goods"] & (a["slot"] <= 20)),
        {},
    ),
    Phenomenon(
        "patience",
        "leave rate, bored / amused users",
        lambda a: _ratio(a, *_quartiles(a, "boredom", a["slot"] > 10), what="leave"),
        {"intent": 4.0, "intent_switch": 0.02},
    ),
    Phenomenon(
        "purchase",
        "purchases per long page view",
        lambda a: float(a["buy"].sum() / max((a["click"] & a["long_view"]).sum(), 1)),
        {"click_bias": -3.0},
    ),
    Phenomenon(
        "refresh",
        "click rate after a requested page that pleased / annoyed",
        lambda a: _ratio(a, a["goods"] & (a["refresh"] > 0.1), a["goods"] & (a["refresh"] < -0.1)),
        {"intent_switch": 0.05},
    ),
    Phenomenon(
        "activity",
        "share of events by the most active 20 % of users",
        lambda a: float(a["active"].mean()),
        {},
    ),
)


def effects(sessions: int = 4000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return {phenomenon: {"on", "off"}}."""
    feed, full = preset("default")
    feed = feed.replace(
        page_size=20, pool_size=40, max_slots=100, gaps=(0,) * 4, share_caps=(1.0,) * 4, first_slots=(0,) * 4
    )
    table: dict[str, dict[str, float]] = {}
    for phenomenon in PHENOMENA:
        plain = full.replace(**(OFF | {"leave_bias": -4.5} | phenomenon.needs))
        on = plain.replace(**{phenomenon.name: getattr(full, phenomenon.name)})
        table[phenomenon.name] = {
            "on": phenomenon.effect(simulate(on, feed, sessions, seed)),
            "off": phenomenon.effect(
                simulate(plain.replace(**{phenomenon.name: OFF[phenomenon.name]}), feed, sessions, seed)
            ),
        }
    for state, day_drift in (("on", full.day_drift), ("off", 0.0)):
        drifting = full.replace(**(OFF | {"day_drift": day_drift, "n_users": 500}))
        table.setdefault("day_drift", {})[state] = _taste_between_days(drifting, feed)
    return table
