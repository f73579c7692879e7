"""Simple policies that every learned policy must beat. All follow :class:`~edgerec_gym.policy.Policy`.

| name | decides | tracks |
| --- | --- | --- |
| random | uniformly among the legal actions | all |
| keep | cloud order, no cards, automatic pages only | all |
| greedy | the pool row with the highest base ctr score | joint, rerank, slate |
| device-greedy | the pool row with the best sum of base ctr and match with recent behaviour | as greedy |
| item-greedy | the same plus the lifts of the item table, in scenarios that have one | as greedy |
| mmr, dpp | base ctr, diversified against the cards shown last (diversity.py) | joint, rerank |
| fixed-slot | cloud order, a card at every k-th slot, card types in turn | joint, mix |
| fixed-interval | cloud order, a request once the page is m slots old | joint, request |

On the slate track (EdgeFeedSlate-v0) they plan lists; see :mod:`edgerec_gym.agents.list_policy`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgerec_gym.agents.diversity import BASE_CTR, DeterminantalPointProcess, MaximalMarginalRelevance
from edgerec_gym.agents.list_policy import RandomList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.agents.perception.live_interest import LiveInterest, embedding_size
from edgerec_gym.cloud.item_table import LIFT_SCALE
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, closest
from edgerec_gym.policy import Observation, Policy, best_legal, draw_legal
from edgerec_gym.registration import SLATE, track_of
from edgerec_gym.spaces import CONTEXT, N_SCALARS, TRACKS

LIFTS = ("click_lift", "satisfaction_lift")  # columns of the item table that item-greedy reads
SLOT_COLUMN, EXPOSURES_COLUMN = CONTEXT.index("slot"), CONTEXT.index("exposures")
PAGE_AGE_COLUMN = CONTEXT.index("page_age")  # in pages


class Keep:
    """Cloud order, no cards, no requests: the lowest legal action of every track."""

    name = "keep"
    stateless = True

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: there is no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64, the lowest legal action of each row."""
        return observation["action_mask"].argmax(axis=1)

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) zeros: no row is preferred."""
        return np.zeros(observation["pool"].shape[:2])


class Random:
    """Uniform over the legal actions, drawn from its own generator."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the generator keeps its state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        return draw_legal(self.generator, observation["action_mask"])

    def probabilities(self, observation: Observation) -> np.ndarray:
        """Return (B, A) float64, equal among the legal actions."""
        legal = observation["action_mask"] != 0
        return legal / legal.sum(axis=1, keepdims=True)


class Greedy:
    """The pool row with the highest base ctr score.

    Args:
        item_columns: names of the columns of the feed's item table (`config.item_columns`).
    """

    name = "greedy"
    stateless = True

    def __init__(self, item_columns: Sequence[str] = ()) -> None:
        self.item_columns = item_columns

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: there is no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        return best_legal(self.scores(observation), observation["action_mask"])

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) base ctr scores."""
        return observation["pool"][:, :, embedding_size(observation, self.item_columns) + BASE_CTR]


class DeviceGreedy(LiveInterest):
    """Re-rank by base ctr plus match with recent behaviour on the device (options of the parent class)."""

    name = "device-greedy"
    stateless = True

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: there is no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        return best_legal(self.scores(observation), observation["action_mask"])


class ItemGreedy(DeviceGreedy):
    """Device-greedy plus what the item table tells: the lifts of clicks and of satisfaction, in log-odds.

    Attributes:
        satisfaction: weight of the satisfaction lift; the click lift has weight 1.

    Raises:
        InputError: the feed has no item table with these columns.
    """

    name = "item-greedy"

    def __init__(self, item_columns: Sequence[str] = (), satisfaction: float = 0.1) -> None:
        super().__init__(item_columns=item_columns)
        self.satisfaction = satisfaction
        missing = [name for name in LIFTS if name not in item_columns]
        if missing:
            raise InputError(
                f"policy {self.name!r} needs the item columns {', '.join(LIFTS)}; the scenario lacks "
                f"{', '.join(missing)} (edgerec items)"
            )
        self._at = [N_SCALARS + list(item_columns).index(name) for name in LIFTS]

    def scores(self, observation: Observation) -> np.ndarray:
        """Return device-greedy's scores plus the weighted lifts, (B, N)."""
        d = embedding_size(observation, self.item_columns)
        click, satisfaction = (observation["pool"][:, :, d + at] for at in self._at)
        return super().scores(observation) + LIFT_SCALE * (click + self.satisfaction * satisfaction)


class FixedSlot:
    """Cloud order with a card at every k-th slot; card types take turns, and illegal ones are skipped.

    Args:
        track: "joint" or "mix".
        every: k, the number of slots from one card to the next.
    """

    name = "fixed-slot"

    def __init__(self, track: str, every: int = 5) -> None:
        self.track, self.every = track, _at_least_one("every", every)
        self.slot = np.zeros(0, np.int64)
        self.turn = np.zeros(0, np.int64)

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        if not len(self.slot):
            self.slot, self.turn = np.zeros((2, len(mask)), np.int64)
        self.slot[mask] = 0
        self.turn[mask] = 0

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        mask, n_features = observation["action_mask"], observation["pool"].shape[2]
        first = observation["pool"].shape[1] if self.track == "joint" else 1
        types = observation["cards"][:, :, n_features + 1 :]  # (B, M, T - 1) one-hot, without goods
        legal = mask[:, first : first + types.shape[1], None] * types > 0
        n_types = types.shape[2]
        order = (self.turn[:, None] + np.arange(n_types)) % n_types  # (B, T - 1), next in turn first
        fits = np.take_along_axis(legal.any(axis=1), order, axis=1)
        chosen = np.take_along_axis(order, fits.argmax(axis=1)[:, None], axis=1)[:, 0]
        insert = (self.slot % self.every == self.every - 1) & fits.any(axis=1)
        card = legal[np.arange(len(mask)), :, chosen].argmax(axis=1)
        self.turn = np.where(insert, (chosen + 1) % n_types, self.turn)
        self.slot += 1
        return np.where(insert, first + card, mask.argmax(axis=1))


class FixedInterval:
    """Cloud order with a request, if legal, whenever the page is `every` slots old.

    Args:
        every: slots from a page's arrival to the request; None means half a page.
    """

    name = "fixed-interval"

    def __init__(self, every: int | None = None) -> None:
        self.every = None if every is None else _at_least_one("every", every)
        self.age = np.zeros(0)  # of the current page, in slots
        self.pages = np.zeros(0)  # the same in pages, from the last observation

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        if not len(self.age):
            self.age, self.pages = np.zeros((2, len(mask)))
        self.age[mask] = 0
        self.pages[mask] = 0

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64; the request is the last action of both tracks."""
        mask, pages = observation["action_mask"], observation["context"][:, PAGE_AGE_COLUMN]
        self.age = np.where(pages > self.pages, self.age + 1, 0)
        self.pages = pages.copy()
        due = pages >= 0.5 if self.every is None else self.age >= self.every
        return np.where(due & (mask[:, -1] > 0), mask.shape[1] - 1, mask.argmax(axis=1))


def _at_least_one(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise InputError(f"policy option {name} = {value!r} must be a whole number of slots, at least 1")
    return int(value)


BASELINES: dict[str, tuple[Callable[..., Policy], tuple[str, ...]]] = {
    "random": (Random, (*TRACKS, SLATE)),
    "keep": (Keep, (*TRACKS, SLATE)),
    "greedy": (Greedy, ("joint", "rerank", SLATE)),
    "device-greedy": (DeviceGreedy, ("joint", "rerank", SLATE)),
    "item-greedy": (ItemGreedy, ("joint", "rerank", SLATE)),
    "mmr": (MaximalMarginalRelevance, ("joint", "rerank")),
    "dpp": (DeterminantalPointProcess, ("joint", "rerank")),
    "fixed-slot": (FixedSlot, ("joint", "mix")),
    "fixed-interval": (FixedInterval, ("joint", "request")),
}


PASSED = ("track", "seed", "slate_size", "item_columns")  # arguments that policies may accept


def baselines_of(track: str, item_columns: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the baselines that play a track of a feed with these item columns."""
    has_table = all(name in item_columns for name in LIFTS)
    return tuple(
        name
        for name, (policy, tracks) in BASELINES.items()
        if track in tracks and (has_table or policy is not ItemGreedy)
    )


def make_policy(
    name: str,
    id_or_track: str,
    seed: int = 0,
    slate_size: int = FeedConfig.slate_size,
    item_columns: Sequence[str] = (),
    **options: Any,
) -> Policy:
    """Make a policy by name.

    List policies play EdgeFeed-v0 and EdgeFeedRerank-v0 slot by slot, and EdgeFeedSlate-v0 directly.

    Args:
        name: name of a baseline, or "package.module:Class" for your own policy.
        id_or_track: "EdgeFeed-v0", "EdgeFeedRerank-v0", ... or "joint", "rerank", "mix", "request", "slate".
        seed: seed of the policy's own generator.
        slate_size: K, the length of a plan in EdgeFeedSlate-v0.
        item_columns: names of the columns of the feed's item table (`config.item_columns`).
        **options: arguments of the policy. `track`, `seed`, `slate_size` and `item_columns` are passed to
            policies that accept them.

    Raises:
        InputError: if the name or an option is unknown, or the policy does not play this track.
    """
    track = track_of(id_or_track)
    factory: Callable[..., Any]
    if ":" in name:
        factory = _import_class(name)
    elif name in BASELINES:
        factory, tracks = BASELINES[name]
        if track not in tracks:
            raise InputError(f"policy {name!r} plays the tracks {', '.join(tracks)}, not {track!r}")
        if track == SLATE and factory is Random:
            factory = RandomList
    else:
        names = [*BASELINES, "or 'package.module:Class'"]
        raise InputError(f"unknown policy {name!r}{closest(name, names, 'policies:')}")
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            known = ", ".join(p for p in parameters if p not in PASSED)
            raise InputError(f"policy {name!r} has no option {option!r}; its options are: {known or 'none'}")
    given: dict[str, Any] = dict(zip(PASSED, (track, seed, slate_size, item_columns), strict=True)) | options
    given = {key: value for key, value in given.items() if key in parameters or key in options}
    for parameter in parameters.values():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required and parameter.name not in given:
            raise InputError(
                f"policy {name!r} cannot be made: its argument {parameter.name!r} has no default; "
                f"only {', '.join(PASSED)} are passed"
            )
    made = factory(**given)
    if not isinstance(getattr(made, "name", None), str):
        raise InputError(f'policy {name!r} has no name: give it an attribute such as name = "mine"')
    return _for_track(made, track, slate_size)


def _for_track(policy: Any, track: str, slate_size: int) -> Policy:
    """Wrap a list policy so that it plays a track."""
    if track == SLATE and not hasattr(policy, "plan") and hasattr(policy, "scores"):
        policy = ScoredList(policy, slate_size)
    if not hasattr(policy, "plan") or (hasattr(policy, "act") and track != SLATE):
        return policy
    if track == SLATE:
        return SlateBySlate(policy)
    if track not in ("joint", "rerank"):
        raise InputError(f"policy {policy.name!r} plans lists: it plays joint, rerank, slate, not {track!r}")
    return SlotBySlot(policy)


def _import_class(name: str) -> Callable[..., Policy]:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise InputError(f"policy {name!r}: cannot import {module!r}: {error}") from None
    except AttributeError:
        raise InputError(f"policy {name!r}: module {module!r} has no {attribute!r}") from None
    if not callable(factory) or not (
        (hasattr(factory, "act") or hasattr(factory, "plan")) and hasattr(factory, "reset")
    ):
        raise InputError(
            f"policy {name!r} is not a policy class: it needs reset(mask) and act(observation) "
            "or plan(observation)"
        )
    return factory
