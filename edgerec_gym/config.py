"""Configuration: frozen, validated dataclasses. The dynamics read no other settings.

Units: time is counted in *slots* (one card shown = one slot), hours in 0..23, days from 0.
Every class raises :class:`~edgerec_gym.errors.InputError` naming the field and the allowed range.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from edgerec_gym.errors import InputError, UnknownOptionError, closest, shown

SCHEMA_VERSION = 1
SYNC_MODES = ("page", "periodic", "incremental")
SUPPLIES = ("catalogue", "daily", "logged")
PRESETS = ("default", "lite", "default-v2", "lite-v2", "short-video", "live", "food")
MOST_TYPES = 100  # card types of a feed
MOST_COLUMNS = 256  # of the item table
MOST_RESPONSES = 16  # of a feed
RESPONSE_PREFIX = "response_"  # before its name, where figures of named responses stand beside others
REWARD_TERMS = ("click", "purchase", "request", "invalid", "insert_click", "leave", "uncertainty")
# Users unlike those behind the logs and policies: factors applied to the scenario's SyntheticUserConfig.
SHIFTS: dict[str, dict[str, float]] = {
    "more-switching": {"intent_switch": 2.0},  # the intent switches twice as often
    "fewer-pseudo-clicks": {"pseudo_click": 0.5},  # attractiveness alone draws half as many clicks
    "impatient": {"patience": 1.5},  # boredom makes users leave sooner
}

ConfigT = TypeVar("ConfigT", bound="Config")


def bounded(default: Any, low: float, high: float) -> Any:
    """Dataclass field with an inclusive allowed range, which also applies to each entry of a tuple."""
    return field(default=default, metadata={"range": (low, high)})


def later(default: Any, **metadata: Any) -> Any:
    """Dataclass field that older files lack: files leave it out at its default and so stay as they were."""
    return field(default=default, metadata={"later": True, **metadata})


@dataclass(frozen=True)
class Config:
    """Base class: validates ranges, offers `replace`, and converts to and from dicts."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            object.__setattr__(self, f.name, _checked(type(self).__name__, f, hints[f.name], value))

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """Build from a plain dict (nested configs as dicts); unknown fields raise InputError."""
        if not isinstance(values, dict):
            raise InputError(f"{cls.__name__} must be an object with named fields, got {values!r}")
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise InputError(_unknown(cls.__name__, name, names))
        hints = get_type_hints(cls)
        nested = {
            name: hints[name].from_dict(value)
            if isinstance(hints[name], type) and issubclass(hints[name], Config) and isinstance(value, dict)
            else value
            for name, value in values.items()
        }
        return cls(**nested)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain, JSON-ready dict; fields made by :func:`later` are left out at their default."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("later") and value == f.default:
                continue
            if isinstance(value, Config):
                value = value.to_dict()
            values[f.name] = dict(value) if f.metadata.get("named") else value
        return values

    def digest(self) -> str:
        """Return the sha256 of all fields: configs with the same digest are equal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def replace(self: ConfigT, **changes: Any) -> ConfigT:
        """Return a copy with some fields changed; unknown fields raise InputError.

        A dict given for a nested config changes only the fields that it names.
        """
        current = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in changes.items():
            if isinstance(value, dict) and isinstance(current.get(name), Config):
                value = current[name].replace(**value)
            current[name] = value
        return type(self).from_dict(current)


def _unknown(owner: str, name: str, names: set[str]) -> str:
    return f"{owner} has no field {shown(name)}{closest(name, sorted(names), 'fields are')}"


def check_options(owner: str, given: Iterable[str], made: type) -> None:
    """Check names that a constructor takes in addition to its own arguments: the fields of FeedConfig.

    Args:
        owner: name of what is made, for the message.
        given: names of the options.
        made: the class whose own arguments are suggested, too.

    Raises:
        UnknownOptionError: an option that does not exist, with the closest one.
    """
    fields = {f.name for f in dataclasses.fields(FeedConfig)}
    for name in given:
        if name not in fields:
            parameters = inspect.signature(made).parameters.values()
            own = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
            hint = closest(name, sorted(fields | own), "options are")
            raise UnknownOptionError(f"{owner} got an unexpected keyword argument {name!r}{hint}")


def _checked(owner: str, f: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Return `value` as the field's type, or raise InputError."""
    where = f"{owner}.{f.name}"
    if f.metadata.get("named"):
        return _named_numbers(where, f, value)
    if get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise InputError(f"{where} must be a list, got {shown(value)}")
        element = get_args(hint)[0]
        return tuple(_scalar(f"{where}[{i}]", f, element, v) for i, v in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Config):
        if not isinstance(value, hint):
            raise InputError(f"{where} must be a {hint.__name__}, got {shown(value)}")
        return value
    return _scalar(where, f, hint, value)


def _named_numbers(where: str, f: dataclasses.Field[Any], value: Any) -> tuple[tuple[str, float], ...]:
    """Return a dict of names and numbers, or such pairs, as pairs in order of the names."""
    if isinstance(value, tuple):
        value = dict(value)  # what another config holds
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{where} must map names to numbers, got {shown(value)}")
    return tuple(
        sorted((name, _scalar(f"{where}[{name!r}]", f, float, number)) for name, number in value.items())
    )


def _scalar(where: str, f: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(
                f"{where} must be one of {', '.join(map(str, get_args(hint)))}, got {shown(value)}"
            )
        return value
    if hint is str:
        if not isinstance(value, str):
            raise InputError(f"{where} must be text, got {shown(value)}")
        return value
    optional = type(None) in get_args(hint)
    if optional and value is None:
        return None
    kind = float if float in (hint, *get_args(hint)) else int
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise InputError(f"{where} must be a number, got {shown(value)}")
    low, high = f.metadata["range"]
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):  # hundreds of digits, or an array of several numbers
        number = math.nan
    if math.isfinite(number) and kind is int and not number.is_integer():
        raise InputError(f"{where} must be a whole number, got {shown(value)}")
    if not low <= number <= high:  # also catches NaN
        raise InputError(f"{where} = {shown(value)} is out of range; allowed: {low} to {high}")
    return kind(value)


def differences(config: Config, other: Config) -> dict[str, Any]:
    """Return the fields in which a config differs from another one, nested ones by their dotted names."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        own, theirs = getattr(config, f.name), getattr(other, f.name)
        if isinstance(own, Config):
            found |= {f"{f.name}.{name}": value for name, value in differences(own, theirs).items()}
        elif own != theirs:
            found[f.name] = own
    return found


@dataclass(frozen=True)
class RewardConfig(Config):
    """Weights of the named reward terms (reward units per event)."""

    click: float = bounded(1.0, -1e3, 1e3)  # every click, goods or card
    purchase: float = bounded(5.0, -1e3, 1e3)  # every purchase in a page view
    request: float = bounded(-0.3, -1e3, 1e3)  # every request by the policy (automatic pages are free)
    invalid: float = bounded(-0.1, -1e3, 1e3)  # every illegal action
    insert_click: float = bounded(0.0, -1e3, 1e3)  # added to `click` for a click on a mix-in card
    leave: float = bounded(0.0, -1e3, 1e3)  # when the user leaves
    uncertainty: float = bounded(0.0, -1e3, 1e3)  # per unit of disagreement among learned users (MOPO: < 0)
    # Of the feed's named responses, e.g. {"like": 0.5, "hate": -2}; 0 if not named. Pairs, in order of names.
    responses: tuple[tuple[str, float], ...] = later((), named=True, range=(-1e3, 1e3))

    def value(
        self, click: Any, purchase: Any, card: Any = 0.0, leave: Any = 0.0, responses: Any = 0.0
    ) -> Any:
        """Reward for what users do: the weighted sum of the terms that depend on the answer.

        The arguments are arrays or tensors that broadcast. Each holds events (0 or 1), their probabilities or
        their counts.

        Args:
            click: clicks.
            purchase: purchases.
            card: 1 for a mix-in card, whose clicks also earn `insert_click`.
            leave: users who leave.
            responses: the sum of the named responses, weighted (:meth:`FeedConfig.response_value`).
        """
        return (
            self.click * click + self.purchase * purchase + self.insert_click * click * card
            + self.leave * leave + responses
        )  # fmt: skip

    def cost(self, request: Any, invalid: Any = 0.0) -> Any:
        """Reward, usually negative, for what a policy does: its requests and its illegal actions."""
        return self.request * request + self.invalid * invalid

    @property
    def outcome_weights(self) -> tuple[float, float]:
        """Weights of (click, purchase), for arrays whose last axis holds these two."""
        return self.click, self.purchase


@dataclass(frozen=True)
class CloudConfig(Config):
    """How the cloud estimates the user and builds a page from the catalogue.

    A candidate's score is `long_term_weight` x cosine(long-term estimate, item)
    + `recent_weight` x cosine(synchronised behaviour, item) x evidence + the item's `base_logit`.
    The page is ranked by score + `noise` x a standard normal.
    """

    supply: Literal["catalogue", "daily", "logged"] = "catalogue"  # what pages are made of (supply.py)
    sync: Literal["page", "periodic", "incremental"] = "page"  # when behaviour reaches the cloud
    sync_period: int = bounded(20, 1, 10_000)  # slots between uploads with sync="periodic"
    long_term_weight: float = bounded(1.0, 0.0, 50.0)  # logits per unit of cosine
    recent_weight: float = bounded(3.0, 0.0, 50.0)  # logits per unit of cosine, at full evidence
    noise: float = bounded(0.6, 0.0, 50.0)  # standard deviation of the ranking noise, logits
    score_offset: float = bounded(0.0, -50.0, 50.0)  # logits; centres the shipped click score
    interest_decay: float = bounded(0.92, 0.0, 1.0)  # decay of the behaviour estimate per slot
    dwell_weight: float = bounded(1.0, 0.0, 50.0)  # evidence from a long look at an exposed card
    click_weight: float = bounded(1.0, 0.0, 50.0)  # evidence from a click
    page_view_weight: float = bounded(2.0, 0.0, 50.0)  # evidence from a long page view
    probed_categories: int = bounded(12, 1, 10_000)  # number of best categories that a page draws from
    scan_limit: int = bounded(64, 4, 100_000)  # items scanned per probed category


@dataclass(frozen=True)
class FeedConfig(Config):
    """Sizes, rules and latency of one feed. The defaults follow the EdgeRec paper (CIKM'20)."""

    page_size: int = bounded(50, 2, 500)  # slots between automatic pages
    pool_size: int = bounded(100, 3, 1000)  # N, candidates per page
    n_cards: int = bounded(8, 1, 100)  # M, mix-in cards per page
    card_types: tuple[str, ...] = ("video", "live", "content", "ad")
    embedding_size: int = bounded(16, 2, 256)  # d, as shipped by the cloud
    profile_size: int = bounded(4, 0, 64)  # profile numbers in addition to the long-term embedding
    item_columns: tuple[str, ...] = ()  # what logs have told of items (cloud/item_table.py)
    exposure_history: int = bounded(50, 1, 1000)  # rows of `exposures`
    page_view_history: int = bounded(25, 1, 1000)  # rows of `page_views`
    max_slots: int = bounded(200, 4, 10_000)  # a session is truncated here
    lookahead: int = bounded(2, 0, 10)  # slots on screen below the focused one
    request_latency: int = bounded(2, 1, 100)  # slots from request to arrival
    request_budget: int | None = bounded(None, 0, 10_000)  # policy requests per session; None = unlimited
    share_caps: tuple[float, ...] = bounded((0.10, 0.06, 0.10, 0.06), 0.0, 1.0)  # per card type
    gaps: tuple[int, ...] = bounded((5, 8, 5, 8), 0, 1000)  # minimum slots between cards of one type
    first_slots: tuple[int, ...] = bounded((1, 3, 1, 3), 0, 10_000)  # first slot where a type may appear
    rules: Literal["mask", "penalty"] = "mask"
    slate_size: int = bounded(10, 1, 100)  # K of EdgeFeedSlate
    # Further binary answers to a card, with or without a click, e.g. ("like", "hate"); see answers.py
    responses: tuple[str, ...] = later(())
    # Factor on the exposure durations DWELL_EDGES (answers.py): a video is looked at longer than a card
    dwell_scale: float = later(1.0, range=(0.01, 1000.0))
    # Time that a decision on the device may take, milliseconds; None = no limit (device/budget.py)
    latency_budget_ms: float | None = later(None, range=(0.001, 60_000.0))
    reward: RewardConfig = field(default_factory=RewardConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.card_types) <= MOST_TYPES:
            raise InputError(
                f"FeedConfig.card_types names {len(self.card_types)} types; allowed: 1 to {MOST_TYPES}"
            )
        for name in ("share_caps", "gaps", "first_slots"):
            if len(getattr(self, name)) != len(self.card_types):
                raise InputError(
                    f"FeedConfig.{name} has {len(getattr(self, name))} entries; it needs one for each of "
                    f"the {len(self.card_types)} card_types {self.card_types}"
                )
        if len(self.item_columns) > MOST_COLUMNS or len(set(self.item_columns)) < len(self.item_columns):
            raise InputError(
                f"FeedConfig.item_columns must be up to {MOST_COLUMNS} different names, "
                f"got {shown(list(self.item_columns))}"
            )
        self._check_responses()
        logged = self.cloud.supply == "logged"  # pages as long as the log's, the next one at their end
        if self.request_latency >= self.page_size and not logged:
            raise InputError(
                f"FeedConfig.request_latency = {self.request_latency} must be below "
                f"page_size = {self.page_size}"
            )
        if self.pool_size < self.page_size + self.request_latency and not logged:
            raise InputError(
                f"FeedConfig.pool_size = {self.pool_size} could run dry; it must be at least page_size + "
                f"request_latency = {self.page_size + self.request_latency}"
            )
        if self.lookahead >= self.max_slots:
            raise InputError(
                f"FeedConfig.lookahead = {self.lookahead} must be below max_slots = {self.max_slots}"
            )

    def _check_responses(self) -> None:
        names = self.responses
        if len(names) > MOST_RESPONSES or len(set(names)) < len(names):
            raise InputError(
                f"FeedConfig.responses must be up to {MOST_RESPONSES} different names, "
                f"got {shown(list(names))}"
            )
        for name in names:
            if not (name.isascii() and name.isidentifier() and name == name.lower()):
                raise InputError(
                    f"FeedConfig.responses: {shown(name)} must be a lower-case name such as 'long_view'"
                )
            if name in REWARD_TERMS:
                raise InputError(
                    f"FeedConfig.responses: {name!r} is a term of the reward already; choose another name"
                )
        for name, _ in self.reward.responses:
            if name not in names:
                told = ", ".join(names) or "none"
                raise InputError(
                    f"RewardConfig.responses weights {shown(name)}; the feed's responses are {told}"
                )

    def __repr__(self) -> str:
        """Return the closest preset, and the fields that differ from it."""
        changed = {name: differences(self, config) for name, (config, _) in _PRESET_CONFIGS.items()}
        name = min(changed, key=lambda preset: len(changed[preset]))
        told = "".join(f", {field}={value!r}" for field, value in changed[name].items())
        return f"FeedConfig({name!r}{told})"

    @property
    def n_types(self) -> int:
        """Number of card types, goods included (T)."""
        return 1 + len(self.card_types)

    @property
    def n_responses(self) -> int:
        """Number of named responses (R)."""
        return len(self.responses)

    @property
    def reward_terms(self) -> tuple[str, ...]:
        """Names of the reward terms: REWARD_TERMS, then the named responses."""
        return REWARD_TERMS + self.responses

    @property
    def reward_weights(self) -> tuple[float, ...]:
        """Weights of :attr:`reward_terms`."""
        weights = dict(self.reward.responses)
        return (
            *(getattr(self.reward, term) for term in REWARD_TERMS),
            *(weights.get(name, 0.0) for name in self.responses),
        )

    def response_value(self, responses: Any) -> Any:
        """Reward for named responses (..., R), an array: their weighted sum (...)."""
        return responses @ np.array(self.reward_weights[len(REWARD_TERMS) :])

    @property
    def n_item_features(self) -> int:
        """Number of item features (F): embedding, price, base ctr, base cvr, freshness, item columns."""
        return self.embedding_size + 4 + len(self.item_columns)

    @property
    def n_user_features(self) -> int:
        """Number of user features (U): the cloud's long-term embedding, then the profile."""
        return self.embedding_size + self.profile_size


@dataclass(frozen=True)
class SyntheticUserConfig(Config):
    """The hidden ground truth. Each effect has a weight; 0 switches it off."""

    world_seed: int = bounded(0, 0, 2**31)
    n_users: int = bounded(2000, 10, 10_000_000)
    n_items: int = bounded(10_000, 200, 10_000_000)  # goods and cards together
    n_categories: int = bounded(40, 2, 10_000)
    card_fraction: float = bounded(0.2, 0.0, 0.9)  # fraction of the items that are cards
    n_days: int = bounded(14, 2, 1000)  # logs and training: first half; evaluation: second half
    item_noise: float = bounded(0.5, 0.0, 10.0)  # length of (shipped - true) item embedding
    long_term_noise: float = bounded(1.0, 0.0, 10.0)  # length of the error in the cloud's user estimate
    click_bias: float = bounded(-5.2, -20.0, 5.0)  # logits
    leave_bias: float = bounded(-6.6, -20.0, 5.0)  # logits per slot, of a user who is not bored
    taste: float = bounded(0.5, 0.0, 20.0)  # long-term taste, logits per unit of cosine
    intent: float = bounded(4.0, 0.0, 20.0)  # session intent, logits per unit of cosine
    intent_switch: float = bounded(0.02, 0.0, 1.0)  # probability per slot that the intent jumps
    intent_drift: float = bounded(0.25, 0.0, 1.0)  # step toward an item that was clicked and satisfied
    satiation: float = bounded(0.5, 0.0, 20.0)  # logits lost per satisfied page view in the category
    weariness: float = bounded(0.06, 0.0, 20.0)  # logits lost per unclicked exposure in the category
    pseudo_click: float = bounded(1.0, 0.0, 20.0)  # logits per unit of attractiveness (not of quality)
    surroundings: float = bounded(1.0, 0.0, 20.0)  # scales same-type, type x type and contrast effects
    type_taste: float = bounded(0.8, 0.0, 20.0)  # spread of a user's taste for card types, logits
    fatigue: float = bounded(0.4, 0.0, 20.0)  # logits lost per 100 slots
    patience: float = bounded(1.0, 0.0, 20.0)  # scales the effect of boredom on leaving
    purchase: float = bounded(1.0, 0.0, 1.0)  # scales the purchase rate after a satisfied page view
    refresh: float = bounded(1.0, 0.0, 20.0)  # scales the user's personal response to a requested page
    activity: float = bounded(0.8, 0.2, 1.0)  # share of events from the most active 20 % (0.2 = equal)
    day_drift: float = bounded(0.3, 0.0, 10.0)  # length of the day-to-day change in taste
    # Part of an item's attractiveness, standard deviations from the lowest to the highest:
    price: float = later(0.0, range=(0.0, 20.0))  # the dearest item loses this much against the cheapest
    freshness: float = later(0.0, range=(0.0, 20.0))  # the freshest gains this much over the stalest

    def shifted(self, shift: str) -> SyntheticUserConfig:
        """Return other users of the same world; InputError if `shift` is not in :data:`SHIFTS`."""
        if shift not in SHIFTS:
            raise InputError(f"unknown shift {shift!r}{closest(shift, SHIFTS)}")
        return self.replace(**{name: factor * getattr(self, name) for name, factor in SHIFTS[shift].items()})


def preset(name: str) -> tuple[FeedConfig, SyntheticUserConfig]:
    """Return the feed and synthetic users of a preset.

    "default" has the paper's sizes, and "lite" is a shorter feed. Version 2 of both is tuned so that more is
    left to learn: of what can be known of the user and the items, a heuristic reaches at most two thirds.
    "short-video", "live" and "food" are scenes of low-latency recommendation, tuned likewise; every choice
    has its reason in docs/results/scenes.md. Figures of different presets do not compare.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{closest(name, PRESETS, 'presets are')}")
    return _PRESET_CONFIGS[name]


def _shipped_presets() -> dict[str, tuple[FeedConfig, SyntheticUserConfig]]:
    # A shorter feed: pages, sessions and intents turn over faster, so requests are cheaper.
    lite = FeedConfig(
        page_size=10,
        pool_size=20,
        exposure_history=20,
        page_view_history=10,
        max_slots=60,
        gaps=(3, 4, 3, 4),
        share_caps=(0.1, 0.1, 0.1, 0.1),
        reward=RewardConfig(request=-0.1),
        cloud=CloudConfig(interest_decay=0.85),
    )
    return {
        "default": (FeedConfig(), SyntheticUserConfig()),
        "default-v2": (FeedConfig(), SyntheticUserConfig(surroundings=1.5)),
        "lite": (lite, SyntheticUserConfig(n_items=2000, intent_switch=0.08, leave_bias=-5.9)),
        "lite-v2": (
            lite.replace(page_size=20, pool_size=40, cloud=CloudConfig(interest_decay=0.9)),
            SyntheticUserConfig(
                n_items=2000,
                click_bias=-4.9,
                leave_bias=-5.9,
                intent_switch=0.04,
                pseudo_click=0.7,
                surroundings=1.5,
            ),
        ),
        # One video per screen, the next one loaded; a slot lasts about ten seconds.
        "short-video": (
            FeedConfig(
                page_size=10,
                pool_size=24,
                n_cards=4,
                card_types=("live", "ad"),
                share_caps=(0.1, 0.1),
                gaps=(5, 5),
                first_slots=(3, 3),
                exposure_history=30,
                page_view_history=10,
                max_slots=120,
                lookahead=1,
                request_latency=1,
                reward=RewardConfig(request=-0.1),
                cloud=CloudConfig(interest_decay=0.9),
                dwell_scale=8.0,
                latency_budget_ms=20.0,
            ),
            SyntheticUserConfig(
                world_seed=1,
                n_items=3000,
                click_bias=-4.9,
                leave_bias=-6.4,
                intent_switch=0.04,
                pseudo_click=0.7,
                surroundings=2.0,
                weariness=0.1,
                purchase=0.4,
            ),
        ),
        # A handful of rooms, moods that change quickly, rooms that lose their appeal as they go on.
        "live": (
            FeedConfig(
                page_size=8,
                pool_size=24,
                n_cards=4,
                card_types=("goods", "ad"),
                share_caps=(0.1, 0.1),
                gaps=(4, 6),
                first_slots=(2, 4),
                exposure_history=20,
                page_view_history=10,
                max_slots=50,
                lookahead=1,
                request_latency=1,
                reward=RewardConfig(request=-0.1),
                cloud=CloudConfig(interest_decay=0.85),
                dwell_scale=4.0,
                latency_budget_ms=30.0,
            ),
            SyntheticUserConfig(
                world_seed=2,
                n_items=1500,
                n_categories=24,
                click_bias=-4.7,
                leave_bias=-5.7,
                intent_switch=0.06,
                pseudo_click=0.7,
                surroundings=2.0,
                purchase=0.4,
                freshness=1.5,
            ),
        ),
        # A long list of shops, one lasting intent (a meal), few requests; price and delivery time matter.
        "food": (
            FeedConfig(
                page_size=20,
                pool_size=50,
                n_cards=4,
                card_types=("coupon", "ad"),
                share_caps=(0.06, 0.1),
                gaps=(8, 5),
                first_slots=(4, 2),
                exposure_history=30,
                page_view_history=10,
                max_slots=80,
                lookahead=3,
                request_latency=2,
                request_budget=3,
                reward=RewardConfig(request=-0.3),
                cloud=CloudConfig(interest_decay=0.95),
                dwell_scale=1.5,
                latency_budget_ms=50.0,
            ),
            SyntheticUserConfig(
                world_seed=3,
                n_items=1200,
                n_categories=20,
                click_bias=-4.7,
                leave_bias=-6.0,
                taste=1.0,
                intent=3.5,
                intent_switch=0.01,
                pseudo_click=0.7,
                surroundings=2.0,
                price=1.5,
                freshness=1.5,
            ),
        ),
    }


_PRESET_CONFIGS = _shipped_presets()
