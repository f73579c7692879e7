"""Sizes of a feed, as encoders ask for them: from its config, or from its observation space alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gymnasium import spaces

N_SCALARS = 4  # item features after the embedding: price level, base ctr, base cvr, freshness


class FeedSizes(Protocol):
    """The sizes that an encoder needs to know: a FeedConfig has them, and an observation space tells them."""

    @property
    def embedding_size(self) -> int:
        """Numbers of an item embedding (d)."""

    @property
    def n_item_features(self) -> int:
        """Item features (F)."""

    @property
    def n_types(self) -> int:
        """Card types with goods (T)."""

    @property
    def exposure_history(self) -> int:
        """Rows of `exposures`."""

    @property
    def page_view_history(self) -> int:
        """Rows of `page_views`."""


@dataclass(frozen=True)
class ObservationSizes:
    """What an observation space tells of the feed's sizes."""

    n_pool: int
    n_cards: int
    n_item_features: int  # F
    n_types: int  # T, goods included
    n_user: int
    n_context: int
    lookahead: int
    exposure_history: int
    page_view_history: int

    @classmethod
    def from_space(cls, observation_space: spaces.Dict) -> ObservationSizes:
        """Read the sizes of EdgeFeed-v0 or of one of its tracks."""
        shapes = {key: space.shape or () for key, space in observation_space.spaces.items()}
        n_pool, n_features = shapes["pool"]
        return cls(
            n_pool=n_pool,
            n_cards=shapes["cards"][0],
            n_item_features=n_features,
            n_types=shapes["cards"][1] - n_features,
            n_user=shapes["user"][0],
            n_context=shapes["context"][0],
            lookahead=shapes["screen"][0] if "screen" in shapes else 0,
            exposure_history=shapes["exposures"][0],
            page_view_history=shapes["page_views"][0],
        )

    @property
    def embedding_size(self) -> int:
        """Numbers of an item embedding (d)."""
        return self.n_item_features - N_SCALARS
