"""Action layout and observation spaces, derived from FeedConfig.

The observations of a batch live in one float32 buffer, with one row per environment and the keys side by
side. A fresh copy is one memory copy, and each key is a view into it (:func:`observation_dtype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, closest

TRACKS = ("joint", "rerank", "mix", "request")
JOINT, RERANK, MIX, REQUEST = range(4)

N_EXPOSURE_COLUMNS = 7  # e1..e7; the named responses stand between e6 and e7
N_PAGE_VIEW_COLUMNS = 12  # d1..d12
MODEL_KEYS = ("user", "pool", "exposures", "page_views", "screen", "context")  # what a re-ranker may read
N_SCALARS = 4  # item features after the embedding: price level, base ctr, base cvr, freshness
LEAST_CTR = 1e-4  # base ctr is clipped to LEAST_CTR .. 1 - LEAST_CTR before its logit is taken

# Columns of `context`; then, one column per card type each: share used, slots since the last card.
CONTEXT = (
    "slot",  # / max_slots
    "exposures",  # so far, / max_slots
    "page_views",  # so far, / max_slots
    "page_age",  # slots since the page arrived, / page_size
    "in_flight",  # 1 while a request is on the wire
    "arrival",  # slots until it arrives, / request_latency
    "requests_left",  # share of the budget; 1 if unlimited
    "page_requested",  # 1 if the policy asked for the current page
    "hour",  # / 24
)


def n_actions(config: FeedConfig, track: str) -> int:
    """Return the number of actions of a track."""
    return {
        "joint": config.pool_size + config.n_cards + 1,
        "rerank": config.pool_size,
        "mix": config.n_cards + 1,
        "request": 2,
    }[_known(track)]


def _known(track: str) -> str:
    if track not in TRACKS:
        raise InputError(f"unknown track {track!r}{closest(track, TRACKS, 'tracks are')}")
    return track


def exposure_columns(sizes: FeedSizes) -> int:
    """Return the columns of `exposures` after the card: e1..e6, the R named responses, e7."""
    return N_EXPOSURE_COLUMNS + sizes.n_responses


def first_action(observation: Mapping[str, Any]) -> int:
    """Return the column of `exposures` and `page_views` at which the actions begin (F + T)."""
    return int(observation["page_views"].shape[-1]) - N_PAGE_VIEW_COLUMNS


def context_size(config: FeedConfig) -> int:
    """Return the number of context columns (C)."""
    return len(CONTEXT) + 2 * len(config.card_types)


@lru_cache(maxsize=64)
def observation_dtype(config: FeedConfig, track: str) -> np.dtype:
    """Return the structured dtype of an observation row: float32 keys, int8 mask, padded to 4 bytes."""
    features, types = config.n_item_features, config.n_types
    actions = n_actions(config, track)
    return np.dtype(
        [
            ("user", np.float32, (config.n_user_features,)),
            ("pool", np.float32, (config.pool_size, features)),
            ("cards", np.float32, (config.n_cards, features + types)),
            ("exposures", np.float32, (config.exposure_history, features + types + exposure_columns(config))),
            ("page_views", np.float32, (config.page_view_history, features + types + N_PAGE_VIEW_COLUMNS)),
            ("screen", np.float32, (config.lookahead, features + types)),
            ("context", np.float32, (context_size(config),)),
            ("action_mask", np.int8, (actions,)),
            ("padding", np.int8, (-actions % 4,)),
        ]
    )


def observation_keys(config: FeedConfig) -> tuple[str, ...]:
    """Return the keys of the observation; `screen` is left out if it is always empty (lookahead 0)."""
    keys = ("user", "pool", "cards", "exposures", "page_views", "screen", "context", "action_mask")
    return tuple(k for k in keys if k != "screen" or config.lookahead)


class KeyLayout(NamedTuple):
    """Where a key lies in an observation row: NumPy dtype, shape, offset and strides in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]


def observation_layout(config: FeedConfig, track: str) -> dict[str, KeyLayout]:
    """Return the layout of every key of the observation."""
    fields: Any = observation_dtype(config, track).fields
    layout = {}
    for key in observation_keys(config):
        dtype, shape = fields[key][0].subdtype or (fields[key][0], ())
        layout[key] = KeyLayout(dtype, shape, fields[key][1], np.empty(shape, dtype).strides)
    return layout


def observation_space(config: FeedConfig, track: str) -> spaces.Dict:
    """Return the observation space of one environment: bounded float32, and the int8 mask."""
    d, features = config.embedding_size, config.n_item_features
    keys: dict[str, spaces.Space] = {}
    for key, (base, shape, *_) in observation_layout(config, track).items():
        low = np.zeros(shape, base)
        if key == "user":
            low[:] = -1
        elif key not in ("context", "action_mask"):
            low[..., :d] = -1  # embeddings and item columns lie in -1..1, everything else in 0..1
            low[..., d + N_SCALARS : features] = -1
        keys[key] = spaces.Box(low, np.ones(shape, base), dtype=base.type)
    return spaces.Dict(keys)


def action_space(config: FeedConfig, track: str) -> spaces.Discrete:
    """Return the action space of one environment."""
    return spaces.Discrete(n_actions(config, track))


def slate_action_space(config: FeedConfig) -> spaces.Dict:
    """Return the action space of EdgeFeedSlate-v0: pool scores, a card or none per slot, a request."""
    return spaces.Dict(
        {
            "order": spaces.Box(-1, 1, (config.pool_size,), np.float32),
            "insert": spaces.MultiDiscrete([config.n_cards + 1] * config.slate_size),
            "request": spaces.Discrete(2),
        }
    )


class FeedSizes(Protocol):
    """The sizes that an encoder needs, from a FeedConfig or an observation space."""

    @property
    def embedding_size(self) -> int:
        """Size of an item embedding (d)."""

    @property
    def n_item_features(self) -> int:
        """Number of item features (F)."""

    @property
    def n_types(self) -> int:
        """Number of card types, goods included (T)."""

    @property
    def n_responses(self) -> int:
        """Number of named responses (R)."""

    @property
    def exposure_history(self) -> int:
        """Number of rows of `exposures`."""

    @property
    def page_view_history(self) -> int:
        """Number of rows of `page_views`."""


@dataclass(frozen=True)
class ObservationSizes:
    """The sizes of a feed, as read from its observation space."""

    n_pool: int
    n_cards: int
    embedding_size: int  # d
    n_item_features: int  # F
    n_types: int  # T, goods included
    n_user: int
    n_context: int
    lookahead: int
    exposure_history: int
    page_view_history: int
    n_responses: int = 0

    @classmethod
    def from_space(cls, observation_space: spaces.Dict) -> ObservationSizes:
        """Read the sizes from the space of EdgeFeed-v0 or of one of its tracks."""
        shapes = {key: space.shape or () for key, space in observation_space.spaces.items()}
        n_pool, n_features = shapes["pool"]
        pool = observation_space["pool"]
        assert isinstance(pool, spaces.Box)
        return cls(
            n_pool=n_pool,
            n_cards=shapes["cards"][0],
            embedding_size=int((pool.low[0] >= 0).argmax()),  # scalars follow, which are not negative
            n_item_features=n_features,
            n_types=shapes["cards"][1] - n_features,
            n_user=shapes["user"][0],
            n_context=shapes["context"][0],
            lookahead=shapes["screen"][0] if "screen" in shapes else 0,
            exposure_history=shapes["exposures"][0],
            page_view_history=shapes["page_views"][0],
            n_responses=shapes["exposures"][1] - shapes["cards"][1] - N_EXPOSURE_COLUMNS,
        )
