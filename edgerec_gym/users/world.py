"""The synthetic world: items and users with latent factors, generated from the configs alone.

Only the catalogue reaches the cloud: a noisy view with errors in embeddings and popularity, and hardly a
trace of quality. The latent factors stay with the ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgerec_gym import memory
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import FeedConfig, SyntheticUserConfig

WITHIN_CATEGORY = 0.6  # length of an item's own component, added to its category's direction


@dataclass(frozen=True)
class World:
    """Latent factors of items and users (n items, K categories, d factors, V users, T card types)."""

    catalog: Catalog
    factors: np.ndarray  # (n, d) float32, length 1
    attractiveness: np.ndarray  # (n,) float32, standard normal, then moved by price and freshness
    quality: np.ndarray  # (n,) float32, standard normal; what a page view reveals
    category: np.ndarray  # (n,) int32
    centres: np.ndarray  # (K, d) float32, length 1
    type_effect: np.ndarray  # (T, T) float32, logits of type t beside a neighbour of type s
    taste: np.ndarray  # (V, d) float32, length 1
    estimate: np.ndarray  # (V, d) float32, the cloud's long-term estimate, length 1
    profile: np.ndarray  # (V, P) float32 in -1..1
    type_taste: np.ndarray  # (V, T) float32, standard normal, 0 for goods
    refresh: np.ndarray  # (V,) float32, standard normal
    patience: np.ndarray  # (V,) float32, standard normal

    def __post_init__(self) -> None:
        for values in vars(self).values():
            if isinstance(values, np.ndarray):  # kernels and all environments of the process read it
                values.flags.writeable = False


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def _directions(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return _unit(rng.standard_normal(shape))


@lru_cache(maxsize=4)
def make_world(config: SyntheticUserConfig, feed: FeedConfig) -> World:
    """Generate the world; the same configs give the same world."""
    _check_memory(config, feed)
    rng = np.random.default_rng([config.world_seed, 20_081])
    n, d, n_types = config.n_items, feed.embedding_size, feed.n_types
    centres = _directions(rng, config.n_categories, d)
    n_cards = round(n * config.card_fraction)
    card_type = np.zeros(n, np.int32)
    card_type[n - n_cards :] = 1 + np.arange(n_cards) % (n_types - 1)
    category = np.arange(n, dtype=np.int32) % config.n_categories
    factors = _unit(centres[category] + WITHIN_CATEGORY * _directions(rng, n, d))
    quality = rng.standard_normal(n)
    # Attractive items tend to be of lower quality, which makes clicks alone misleading.
    attractiveness = -0.4 * quality + np.sqrt(1 - 0.16) * rng.standard_normal(n)
    price = rng.random(n)
    attractiveness -= config.price * (price - 0.5)
    popularity_error, conversion_error = 0.5 * rng.standard_normal(n), 0.7 * rng.standard_normal(n)
    freshness = rng.random(n)
    attractiveness += config.freshness * (freshness - 0.5)
    scalars = np.stack(
        [
            price,
            np.clip(config.click_bias + 0.5 * attractiveness + popularity_error, -20, 20),
            1 / (1 + np.exp(2.5 - 0.3 * quality - conversion_error)),
            freshness,
        ],
        axis=1,
    )
    catalog, order = Catalog.sorted(
        _unit(factors + config.item_noise * _directions(rng, n, d)),
        scalars,
        card_type,
        category,
        np.arange(n),
    )
    type_effect = 0.4 * rng.standard_normal((n_types, n_types)).astype(np.float32)
    type_effect[0, 0] = 0.0
    users = _make_users(rng, config, feed)
    return World(
        catalog=catalog,
        factors=factors[order],
        attractiveness=attractiveness[order].astype(np.float32),
        quality=quality[order].astype(np.float32),
        category=category[order],
        centres=centres,
        type_effect=type_effect,
        **users,
    )


def _check_memory(config: SyntheticUserConfig, feed: FeedConfig) -> None:
    """Raise InputError if the world, with what it takes to draw it, does not fit into memory."""
    d = feed.embedding_size
    users = 4 * config.n_users * (3 * d + 2 * feed.n_types + 2 * feed.profile_size + 8)
    items = 4 * config.n_items * (4 * d + 16)
    drawing = 16 * d * max(config.n_users, config.n_items)  # double precision, twice
    told = f"a world of n_users = {config.n_users} and n_items = {config.n_items}"
    memory.check(users + items + drawing, told)


def _make_users(
    rng: np.random.Generator, config: SyntheticUserConfig, feed: FeedConfig
) -> dict[str, np.ndarray]:
    n, d = config.n_users, feed.embedding_size
    taste = _directions(rng, n, d)
    type_taste = rng.standard_normal((n, feed.n_types)).astype(np.float32)
    type_taste[:, 0] = 0.0
    refresh, patience = rng.standard_normal((2, n)).astype(np.float32)
    hints = np.column_stack([type_taste[:, 1:], refresh, patience])
    mixing = rng.standard_normal((hints.shape[1], feed.profile_size)) / np.sqrt(hints.shape[1])
    profile = np.tanh(0.7 * (hints @ mixing + 0.5 * rng.standard_normal((n, feed.profile_size))))
    return {
        "taste": taste,
        "estimate": _unit(taste + config.long_term_noise * _directions(rng, n, d)),
        "profile": profile.astype(np.float32),
        "type_taste": type_taste,
        "refresh": refresh,
        "patience": patience,
    }
