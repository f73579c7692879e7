"""Bring your own logs: write them in the log schema, fit users on them, and play with those users.

It runs as is, on a made-up log of a small news feed. Then replace `made_up_log` with your own log.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.answers import N_EXPOSURE_ACTIONS, N_PAGE_VIEW_ACTIONS
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import CloudConfig, FeedConfig
from edgerec_gym.logs.store import LogReader, LogWriter
from edgerec_gym.simulator.fit import fit

ITEMS, DIMENSIONS, TOPICS, PAGE = 300, 8, 6, 10

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/fit_your_logs"))
parser.add_argument("--sessions", type=int, default=2000)
parser.add_argument("--epochs", type=int, default=10)
arguments = parser.parse_args()
rng = np.random.default_rng(0)

# 1. The catalogue: a unit vector, a topic and an id for each item; here all items are goods.
topic = rng.integers(TOPICS, size=ITEMS)
vectors = np.eye(TOPICS, DIMENSIONS)[topic] + 0.3 * rng.normal(size=(ITEMS, DIMENSIONS))
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
scalars = np.column_stack([np.full(ITEMS, 0.5), np.full(ITEMS, -2.0), np.full(ITEMS, 0.1), rng.random(ITEMS)])
catalog, _ = Catalog.sorted(vectors, scalars, np.zeros(ITEMS, int), topic, 1000 + np.arange(ITEMS))

# 2. The logged feed: its sizes, and a cloud that ships items at random, as in the log below.
config = FeedConfig(
    page_size=PAGE,
    pool_size=20,
    n_cards=1,
    embedding_size=DIMENSIONS,
    profile_size=0,
    max_slots=60,
    exposure_history=20,
    page_view_history=10,
    cloud=CloudConfig(long_term_weight=0, recent_weight=0, noise=1),
)


def made_up_log(session: int) -> dict[str, list]:
    """Make up a session of a user who likes one topic: a row per slot, in the columns of the log schema."""
    rng = np.random.default_rng([1, session])
    taste = np.eye(TOPICS, DIMENSIONS)[rng.integers(TOPICS)]
    seen = int(rng.integers(5, 40))
    slots = seen + config.lookahead  # also log the cards below the last one that was looked at
    answered = np.arange(slots) < seen
    items = rng.choice(ITEMS, size=slots, replace=False)
    click = answered & (rng.random(slots) < 1 / (1 + np.exp(2.5 - 4 * catalog.embeddings[items] @ taste)))
    dwell = np.clip(0.3 + 0.4 * click + 0.2 * rng.random(slots), 0, 1)
    leave = np.arange(slots) == seen - 1
    nothing = [None] * slots
    return {
        "session": [session] * slots,
        "user": [session % 500] * slots,
        "day": [session * 7 // arguments.sessions] * slots,  # the last days are held out
        "hour": [int(rng.integers(24))] * slots,
        "slot": list(range(slots)),
        "time": nothing,
        "item": items.tolist(),
        "card_type": [0] * slots,
        "page": [slot // PAGE for slot in range(slots)],
        "page_age": [slot % PAGE for slot in range(slots)],
        "page_requested": [False] * slots,
        "candidates": nothing,
        "cards": nothing,
        "user_features": [taste.tolist(), *nothing[1:]],  # what your cloud knows of the user
        "price_level": catalog.scalars[items, 0].tolist(),
        "base_ctr": [0.12] * slots,  # your ranker's click score; here it knows nothing
        "base_cvr": [0.1] * slots,
        "freshness": catalog.scalars[items, 3].tolist(),
        "action": nothing,
        "propensity": nothing,
        "randomised": [True] * slots,
        "request": [False] * slots,
        "request_propensity": nothing,
        "answered": answered.tolist(),
        "exposure_actions": where(answered, [[d, *[0.0] * (N_EXPOSURE_ACTIONS - 1)] for d in dwell]),
        "click": where(answered, click.tolist()),
        "page_view_actions": where(click, [[0.5, *[0.0] * (N_PAGE_VIEW_ACTIONS - 1)]] * slots),
        "leave": where(answered, leave.tolist()),
    }


def where(known: np.ndarray, values: list) -> list:
    """Keep the values where they are known; None elsewhere."""
    return [value if k else None for k, value in zip(known, values, strict=True)]


# 3. Write the log in chunks; what your data does not contain is declared, not invented.
provenance = {"source": "made up", "sessions": arguments.sessions}
unidentified = ("cards", "page_view_actions")
writer = LogWriter(arguments.out / "logs", config, catalog, provenance, unidentified)
for first in range(writer.sessions, arguments.sessions, 500):
    sessions = [made_up_log(session) for session in range(first, min(first + 500, arguments.sessions))]
    writer.write({name: [value for rows in sessions for value in rows[name]] for name in sessions[0]})
writer.finish()
log = LogReader(arguments.out / "logs")
clicks = np.concatenate([table["click"].drop_null().to_numpy() for table in log.batches(["click"])])

# 4. Fit users on it. `edgerec fit LOGS --out SCENARIO` does the same.
metrics = fit(arguments.out / "logs", arguments.out / "scenario", ensemble=1, epochs=arguments.epochs)

# 5. Play: the folder is a scenario like any other.
env = gym.make("EdgeFeed-v0", scenario=str(arguments.out / "scenario"))
seen = clicked = 0
for seed in range(100):
    observation, info = env.reset(seed=seed)
    ended = False
    while not ended:
        keep = int(observation["action_mask"].argmax())
        observation, reward, terminated, truncated, info = env.step(keep)
        seen += int(info["answered"])
        clicked += int(info["reward_terms"]["click"] > 0)
        ended = terminated or truncated
print(f"click rate: {clicks.mean():.3f} in the log, {clicked / seen:.3f} of the learned users")
