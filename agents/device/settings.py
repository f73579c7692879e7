"""What an agent decides by besides its graphs: the `settings` of device.json, by network.

Each is written at the export and read on the phone; the limits stand here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgerec_gym.documents import Document

Reward = Annotated[float, Meta(ge=-1e6, le=1e6)]  # reward units
Track = Literal["joint", "rerank", "mix", "request"]


class ValueSettings(Document):
    """How values become actions.

    Attributes:
        track: that the values were learned on.
        margin: reward that a card must earn beyond the best pool row.
    """

    track: Track
    margin: Reward


class InsertionSettings(Document):
    """How a matrix of values becomes a plan.

    Attributes:
        price: of a card that is seen.
    """

    price: Reward


class PolicySettings(Document):
    """How logits become an action.

    Attributes:
        track: that the policy was trained on.
        groups: numbers of actions of the groups, of which the most probable one is chosen first; none: the
            most probable action is.
        keys: of the observation that a plain network reads side by side; none for others.
    """

    track: Track
    groups: list[Annotated[int, Meta(ge=1, le=100_000)]] = []
    keys: list[str] = []


class EdgeRecSettings(Document):
    """What the whole agent has learned besides its networks.

    Attributes:
        page_views: whether it sees what was opened.
        prices: (M,) reward that each card must earn beyond what it displaces.
        plan: (F,) weights of the values of whole plans; none: not learned.
        plan_spread: (F, F) their uncertainty.
    """

    page_views: bool
    prices: list[Reward]
    plan: list[Reward] = []
    plan_spread: list[list[Reward]] = []
