"""Synthetic users: the hidden ground truth. Training never sees it; only oracles may read its state."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgerec_gym import memory
from edgerec_gym.answers import FOCUSED, WINDOW, Focus, UserStart
from edgerec_gym.compiled.arrays import (
    AddressTable,
    Float32Matrix,
    Float32Vector,
    Float64Matrix,
    Float64Vector,
    Int32Vector,
    UInt64Vector,
    owned,
    reader,
)
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, sigmoid
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig, SyntheticUserConfig
from edgerec_gym.errors import InputError
from edgerec_gym.state import NO_ITEM, FeedArrays
from edgerec_gym.users.synthetic_kernels import (
    answer,
    click_logit,
    intent_moved,
    leave_probability,
    purchase_rate,
    relevance,
    satisfaction,
    start_user,
)
from edgerec_gym.users.world import World, make_world


class SyntheticArrays(NamedTuple):
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
    factors: Float32Matrix  # (n, d)
    traits: Float32Matrix  # (n, 4): attractiveness, quality, category, card type; adjacent in memory
    centres: Float32Matrix  # (K, d)
    type_effect: Float32Matrix  # (T, T)
    world_taste: Float32Matrix  # (V, d)
    world_type_taste: Float32Matrix  # (V, T)
    world_refresh: Float32Vector  # (V,)
    world_patience: Float32Vector  # (V,)
    shipped: Float32Matrix  # (V, U), user features as the cloud ships them
    # --- the session ----------------------------------------------------------------------------
    key: UInt64Vector  # (B,)
    user: Int32Vector  # (B,)
    day: Int32Vector  # (B,)
    hour: Int32Vector  # (B,)
    taste_now: Float64Matrix  # (B, d), taste on that day
    intent_now: Float64Matrix  # (B, d)
    page_intent: Float64Matrix  # (B, d), intent when the current page was first looked at
    satiation_now: Float64Matrix  # (B, K), decayed count of satisfied page views per category
    weariness_now: Float64Matrix  # (B, K), decayed count of exposures without a click per category
    odds: Float64Matrix  # (B, K), workspace for drawing the intent
    boredom: Float64Vector  # (B,) in 0..1
    refresh_now: Float64Vector  # (B,), decaying response to a requested page


WEIGHTS = SyntheticArrays._fields[: SyntheticArrays._fields.index("factors")]


read_users = reader(SyntheticArrays)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest becomes part of numba's cache key; see compiled/jit.py.
    @entry_point
    def start(users_address, rows, keys, split):
        _ = digest
        users = read_users(users_address)
        for j in range(rows.shape[0]):
            start_user(users, rows[j], keys[j], split)

    @entry_point
    def respond(users_address, active, items, context, response):
        _ = digest
        users = read_users(users_address)
        for row in range(active.shape[0]):
            if active[row]:
                answer(users, row, items, context, response)

    @entry_point
    def foresee(users_address, newest, slots, window_items, candidates, window, values):
        _ = digest
        users = read_users(users_address)
        for row in range(values.shape[0]):
            window[0, FOCUSED - 2] = window_items[row, newest - 1]
            window[0, FOCUSED - 1] = window_items[row, newest]
            for j in range(values.shape[1]):
                item = candidates[row, j]
                values[row, j, 0] = 0.0
                values[row, j, 1] = 0.0
                if item != NO_ITEM:
                    match = relevance(users, row, item)
                    click = sigmoid(click_logit(users, row, item, match, window, 0, slots[row]))
                    values[row, j, 0] = click
                    values[row, j, 1] = click * satisfaction(users, item, match) * purchase_rate(users, item)

    @entry_point
    def foresee_places(users_address, slots, listed, cards, window, values, leave):
        _ = digest
        users = read_users(users_address)
        n_cards = cards.shape[1]
        for row in range(values.shape[0]):
            leave[row] = leave_probability(users, row)
            for t in range(values.shape[2]):
                for j in range(n_cards + 1):
                    # The item of slot t is at FOCUSED + t of the list; a card pushes it down.
                    item = cards[row, j] if j < n_cards else listed[row, FOCUSED + t]
                    for k in range(WINDOW):
                        pushed = 1 if j < n_cards and k > FOCUSED else 0
                        window[0, k] = listed[row, t + k - pushed]
                    values[row, j, t, 0] = 0.0
                    values[row, j, t, 1] = 0.0
                    if item != NO_ITEM:
                        match = relevance(users, row, item)
                        click = sigmoid(click_logit(users, row, item, match, window, 0, slots[row] + t))
                        values[row, j, t, 0] = click
                        values[row, j, t, 1] = (
                            click * satisfaction(users, item, match) * purchase_rate(users, item)
                        )

    @entry_point
    def moved(users_address, values):
        _ = digest
        users = read_users(users_address)
        for row in range(values.shape[0]):
            values[row] = intent_moved(users, row)

    return start, respond, foresee, foresee_places, moved


_start, _respond, _foresee, _foresee_places, _moved = _entry_points(SOURCE_DIGEST)


class SyntheticUsers:
    """The ground truth behind the UserModel protocol. These users never give named responses.

    Args:
        config: the users.
        feed: the feed that they answer; its embedding size, profile size and card types shape the world.

    Attributes:
        world: latent factors, fixed by the config.
        arrays: latent state per session; only oracles may read it.
        kernel_state: the same arrays for kernels, with which the feed steps these users in one call.
    """

    name = "synthetic"
    uncertainty: np.ndarray | None = None  # the ground truth has no model uncertainty

    def __init__(self, config: SyntheticUserConfig, feed: FeedConfig) -> None:
        self.config, self._feed = config, world_feed(feed)
        self._enter_world()

    def _enter_world(self) -> None:
        self.world: World = make_world(self.config, self._feed)
        world = self.world
        traits = (world.attractiveness, world.quality, world.category, world.catalog.card_type)
        self._traits = np.stack(traits, axis=1, dtype=np.float32, casting="unsafe")
        self._shipped = np.concatenate([self.world.estimate, self.world.profile], axis=1)

    @property
    def shipped(self) -> np.ndarray:
        """What the cloud ships about every user, (V, U) float32."""
        return self._shipped

    @property
    def numbers(self) -> np.ndarray:
        """Each session's user as a row of :attr:`shipped`, (B,) int32."""
        users: np.ndarray = self.arrays.user
        return users

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate the state of `num_envs` sessions; InputError if they have been, or the sizes differ."""
        if hasattr(self, "kernel_state"):
            raise InputError("this user model serves another environment: make one for each environment")
        for size in ("embedding_size", "profile_size", "card_types"):
            if getattr(config, size) != getattr(self._feed, size):
                raise InputError(
                    f"{size} = {getattr(config, size)!r} cannot be: the users were made for "
                    f"{getattr(self._feed, size)!r}"
                )
        world, d = self.world, config.embedding_size
        per_session = 8 * (3 * d + 3 * len(world.centres) + 5)
        memory.check(per_session * num_envs, f"num_envs = {num_envs}: its synthetic users")
        session = {
            "key": np.zeros(num_envs, np.uint64),
            "user": np.zeros(num_envs, np.int32),
            "day": np.zeros(num_envs, np.int32),
            "hour": np.zeros(num_envs, np.int32),
            "taste_now": np.zeros((num_envs, d)),
            "intent_now": np.zeros((num_envs, d)),
            "page_intent": np.zeros((num_envs, d)),
            "satiation_now": np.zeros((num_envs, len(world.centres))),
            "weariness_now": np.zeros((num_envs, len(world.centres))),
            "odds": np.zeros((num_envs, len(world.centres))),
            "boredom": np.zeros(num_envs),
            "refresh_now": np.zeros(num_envs),
        }
        self._link({name: getattr(self.config, name) for name in WEIGHTS} | session)

    def _link(self, own: dict[str, Any]) -> None:
        """Make the arrays and their table of addresses from what the world does not hold."""
        world = self.world
        self.arrays = SyntheticArrays(
            factors=world.factors,
            traits=self._traits,
            centres=world.centres,
            type_effect=world.type_effect,
            world_taste=world.taste,
            world_type_taste=world.type_taste,
            world_refresh=world.refresh,
            world_patience=world.patience,
            shipped=self._shipped,
            **own,
        )
        self.kernel_state = AddressTable(self.arrays)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts from: everything but the world, which its process has or generates."""
        world = ("world", "_traits", "_shipped", "arrays", "kernel_state")
        state = {name: value for name, value in self.__dict__.items() if name not in world}
        if hasattr(self, "kernel_state"):
            fields = SyntheticArrays._fields
            own = (*WEIGHTS, *fields[fields.index("key") :])
            state["own"] = {name: getattr(self.arrays, name) for name in own}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "own"})
        self._enter_world()
        if "own" in state:
            self._link({name: owned(value) for name, value in state["own"].items()})

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.answers.UserModel`."""
        rows = np.ascontiguousarray(rows, np.int64)
        keys, n_sessions = np.ascontiguousarray(keys, np.uint64), len(self.arrays.user)
        if rows.ndim != 1 or keys.shape != rows.shape or ((rows < 0) | (rows >= n_sessions)).any():
            raise InputError(f"rows must be whole numbers from 0 to {n_sessions - 1}, each with a key")
        _start(self.kernel_state.address, rows, keys, split)
        user = self.arrays.user[rows]
        return UserStart(self._shipped[user], self.arrays.hour[rows])

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.answers.UserModel`."""
        n_items, n_sessions = len(self._traits), len(self.arrays.user)
        if len({len(values) for values in (*focus, response, self.arrays.user)}) > 1:
            raise InputError(f"the users have {n_sessions} sessions, the focus has {len(focus.items)} rows")
        if focus.items.max() >= n_items or focus.items[focus.active, FOCUSED].min(initial=0) < 0:
            raise InputError(f"a card in focus is none of the {n_items} items that the users know")
        _respond(self.kernel_state.address, focus.active, focus.items, focus.context, response)

    def true_values(self, feed: FeedArrays) -> np.ndarray:
        """Return what each candidate would earn at the next slot in the user's current state; for oracles.

        Args:
            feed: the feed that these users answer.

        Returns:
            (B, N + M, 2) float64 true click and purchase probabilities, pool rows then cards; 0 where a row
            is empty.
        """
        candidates = np.concatenate([feed.pool_items, feed.card_items], axis=1)
        values = np.empty((*candidates.shape, 2))
        window = np.full((1, WINDOW), NO_ITEM, np.int32)  # the cards that follow are not known yet
        _foresee(
            self.kernel_state.address, feed.newest, feed.slot, feed.window_items, candidates, window, values
        )
        return values

    def true_place_values(self, feed: FeedArrays, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what each card would earn at each of the next T slots; for oracles.

        Args:
            feed: the feed that these users answer.
            listed: (B, T + 2) int32 goods in the order they would be shown, -1 where there is none.

        Returns:
            (B, M + 1, T, 2) float64 true click and purchase probabilities in the user's current state, first
            of the cards (each pushes the item at its slot down), then of the goods; and (B,) float64
            probabilities of leaving after a card.
        """
        above = feed.window_items[:, feed.newest - 1 : feed.newest + 1]
        stream = np.concatenate([above, listed], axis=1, dtype=np.int32)
        n_sessions, n_cards = feed.card_items.shape
        values = np.empty((n_sessions, n_cards + 1, listed.shape[1] - 2, 2))
        leave = np.empty(n_sessions)
        window = np.full((1, WINDOW), NO_ITEM, np.int32)
        _foresee_places(self.kernel_state.address, feed.slot, stream, feed.card_items, window, values, leave)
        return values, leave

    def intent_moved(self) -> np.ndarray:
        """Return 1 - cosine of the intent now and at the page's first card, (B,) float64; for oracles."""
        values = np.zeros(len(self.arrays.user))
        _moved(self.kernel_state.address, values)
        return values


def world_feed(feed: FeedConfig) -> FeedConfig:
    """Return the part of a feed that shapes the world: embedding size, profile size and card types."""
    return FeedConfig(
        embedding_size=feed.embedding_size,
        profile_size=feed.profile_size,
        card_types=feed.card_types,
        share_caps=feed.share_caps,
        gaps=feed.gaps,
        first_slots=feed.first_slots,
    )
