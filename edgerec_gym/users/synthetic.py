"""Synthetic users: the hidden ground truth. Never shown to training; only oracles may read its state."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.experimental import structref

from edgerec_gym.config import FeedConfig, SyntheticUserConfig
from edgerec_gym.kernel_cache import SOURCE_DIGEST
from edgerec_gym.state import NO_ITEM, FeedState
from edgerec_gym.users.base import FOCUSED, WINDOW, Focus, UserStart
from edgerec_gym.users.synthetic_kernels import (
    answer,
    click_logit,
    intent_moved,
    purchase_rate,
    satisfaction,
    sigmoid,
    start_user,
)
from edgerec_gym.users.world import World, make_world


@dataclass
class SyntheticArrays:
    """Weights, world and per-session state (B rows, K categories, d factors, T types, V users, n items)."""

    # --- weights (SyntheticUserConfig) ----------------------------------------------------------
    n_days: int
    click_bias: float
    leave_bias: float
    taste: float
    intent: float
    intent_switch: float
    intent_drift: float
    satiation: float
    weariness: float
    pseudo_click: float
    surroundings: float
    type_taste: float
    fatigue: float
    patience: float
    purchase: float
    refresh: float
    activity: float
    day_drift: float
    # --- the world ------------------------------------------------------------------------------
    factors: np.ndarray  # (n, d) float32
    attractiveness: np.ndarray  # (n,) float32
    quality: np.ndarray  # (n,) float32
    category: np.ndarray  # (n,) int32
    card_type: np.ndarray  # (n,) int32
    centres: np.ndarray  # (K, d) float32
    type_effect: np.ndarray  # (T, T) float32
    world_taste: np.ndarray  # (V, d) float32
    world_type_taste: np.ndarray  # (V, T) float32
    world_refresh: np.ndarray  # (V,) float32
    world_patience: np.ndarray  # (V,) float32
    # --- the session ----------------------------------------------------------------------------
    key: np.ndarray  # (B,) uint64
    user: np.ndarray  # (B,) int32
    day: np.ndarray  # (B,) int32
    hour: np.ndarray  # (B,) int32
    taste_now: np.ndarray  # (B, d) float64, taste on that day
    intent_now: np.ndarray  # (B, d) float64
    page_intent: np.ndarray  # (B, d) float64, intent when the current page was first looked at
    satiation_now: np.ndarray  # (B, K) float64, decayed satisfied page views per category
    weariness_now: np.ndarray  # (B, K) float64, decayed exposures without a click per category
    boredom: np.ndarray  # (B,) float64 in 0..1
    refresh_now: np.ndarray  # (B,) float64, decaying response to a requested page


FIELDS = [f.name for f in fields(SyntheticArrays)]
WEIGHTS = FIELDS[: FIELDS.index("factors")]


@structref.register
class SyntheticStateType(types.StructRef):
    """Numba type of the struct."""

    def preprocess_fields(self, fields: Any) -> Any:
        """Fields hold values, not literal types."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class SyntheticState(structref.StructRefProxy):
    """The synthetic users as the kernels see them."""


structref.define_proxy(SyntheticState, SyntheticStateType, FIELDS)


@njit(cache=True)
def _pack(values):
    return SyntheticState(*values)


def _kernels(digest: str) -> tuple[Any, ...]:
    # The digest is part of numba's cache key: see kernel_cache.
    @njit(cache=True, nogil=True)
    def start(users, rows, keys, split):
        _ = digest
        for j in range(rows.shape[0]):
            start_user(users, rows[j], keys[j], split)

    @njit(cache=True, nogil=True)
    def respond(users, active, items, context, response):
        _ = digest
        for row in range(active.shape[0]):
            if active[row]:
                answer(users, row, items[row], context[row], response[row])

    @njit(cache=True, nogil=True)
    def foresee(state, users, values):
        _ = digest
        window = np.full(WINDOW, NO_ITEM, np.int32)
        last = state.window_items.shape[1] - 1
        for row in range(values.shape[0]):
            slot = state.slot[row]
            window[FOCUSED - 2] = state.window_items[row, last - 1]
            window[FOCUSED - 1] = state.window_items[row, last]
            for j in range(values.shape[1]):
                card = j - state.n_pool
                item = state.pool_items[row, j] if card < 0 else state.card_items[row, card]
                click = 0.0 if item == NO_ITEM else sigmoid(click_logit(users, row, item, window, slot))
                values[row, j, 0] = click
                values[row, j, 1] = 0.0
                if click > 0:
                    values[row, j, 1] = click * satisfaction(users, row, item) * purchase_rate(users, item)

    @njit(cache=True, nogil=True)
    def moved(users, values):
        _ = digest
        for row in range(values.shape[0]):
            values[row] = intent_moved(users, row)

    return start, respond, foresee, moved


_start, _respond, _foresee, _moved = _kernels(SOURCE_DIGEST)


class SyntheticUsers:
    """The ground truth behind the UserModel protocol.

    Attributes:
        world: latent factors, fixed by the config.
        arrays: per-session latent state; oracles may read it, nothing else may.
        state: the same as a numba struct, for the fused step.
    """

    name = "synthetic"

    def __init__(self, config: SyntheticUserConfig, feed: FeedConfig) -> None:
        self.config = config
        self.world: World = make_world(config, world_feed(feed))

    def allocate(self, num_envs: int, config: FeedConfig) -> None:
        """Make room for `num_envs` sessions."""
        world, d = self.world, config.embedding_size
        self.arrays = SyntheticArrays(
            **{name: getattr(self.config, name) for name in WEIGHTS},
            factors=world.factors,
            attractiveness=world.attractiveness,
            quality=world.quality,
            category=world.category,
            card_type=world.catalog.card_type,
            centres=world.centres,
            type_effect=world.type_effect,
            world_taste=world.taste,
            world_type_taste=world.type_taste,
            world_refresh=world.refresh,
            world_patience=world.patience,
            key=np.zeros(num_envs, np.uint64),
            user=np.zeros(num_envs, np.int32),
            day=np.zeros(num_envs, np.int32),
            hour=np.zeros(num_envs, np.int32),
            taste_now=np.zeros((num_envs, d)),
            intent_now=np.zeros((num_envs, d)),
            page_intent=np.zeros((num_envs, d)),
            satiation_now=np.zeros((num_envs, len(world.centres))),
            weariness_now=np.zeros((num_envs, len(world.centres))),
            boredom=np.zeros(num_envs),
            refresh_now=np.zeros(num_envs),
        )
        self.state = _pack(tuple(getattr(self.arrays, name) for name in FIELDS))

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.users.base.UserModel`."""
        _start(self.state, rows, keys, split)
        user = self.arrays.user[rows]
        features = np.concatenate([self.world.estimate[user], self.world.profile[user]], axis=1)
        return UserStart(features, self.arrays.hour[rows])

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.users.base.UserModel`."""
        _respond(self.state, focus.active, focus.items, focus.context, response)

    def true_values(self, feed: FeedState, num_envs: int, n_candidates: int) -> np.ndarray:
        """For oracles: what each candidate would earn at the next slot, in the user's present state.

        Args:
            feed: the struct of the feed that these users answer.
            num_envs: B.
            n_candidates: N + M, pool rows then cards.

        Returns:
            (B, N + M, 2) float64 true click and purchase probabilities; 0 where the place is empty.
        """
        values = np.zeros((num_envs, n_candidates, 2))
        _foresee(feed, self.state, values)
        return values

    def intent_moved(self) -> np.ndarray:
        """For oracles: 1 - cosine between the intent now and at the current page's first card, (B,)."""
        values = np.zeros(len(self.arrays.user))
        _moved(self.state, values)
        return values


def world_feed(feed: FeedConfig) -> FeedConfig:
    """The part of a feed that shapes the world: sizes of embeddings, profile and types, nothing else."""
    return FeedConfig(
        embedding_size=feed.embedding_size,
        profile_size=feed.profile_size,
        card_types=feed.card_types,
        share_caps=feed.share_caps,
        gaps=feed.gaps,
        first_slots=feed.first_slots,
    )
