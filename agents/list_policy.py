"""List policies plan the next K slots at once, as EdgeFeedSlate-v0 expects.

:class:`SlateBySlate` plays a list policy in EdgeFeedSlate-v0, where the environment ends a stale plan;
:class:`SlotBySlot` plays it in the joint, rerank and mix tracks and detects stale plans from the observation.
A policy that decides slot by slot can plan a list only if it has scores (:class:`ScoredList`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from edgerec_gym.answers import DELETE_REASON
from edgerec_gym.errors import InputError
from edgerec_gym.feed.slate import Plan, check_plan
from edgerec_gym.policy import Explanation, Observation, check_observation, draw_legal
from edgerec_gym.spaces import CONTEXT, first_action

SLOT, EXPOSURES, PAGE_VIEWS, PAGE_AGE = (
    CONTEXT.index(name) for name in ("slot", "exposures", "page_views", "page_age")
)


@runtime_checkable
class ListPolicy(Protocol):
    """Plans the next slots of a batch of sessions, from observations only.

    Rows of one call may be at different slots: a caller may use the plans of some rows only and call again.
    A policy that plans each row from its observation alone may set `stateless = True`; it is then called
    only with the rows that need a plan.
    """

    name: str

    def reset(self, mask: np.ndarray) -> None:
        """Forget the rows where `mask` (B,) bool is True; the first call fixes the batch size."""

    def plan(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return "order" (B, N) scores, "insert" (B, K) int64 in 0..M, "request" (B,) int64 in 0..1."""


class Scorer(Protocol):
    """Anything that scores the pool."""

    name: str

    def reset(self, mask: np.ndarray) -> None:
        """Forget the rows where `mask` (B,) bool is True."""

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) scores of the pool rows; higher is better."""


class ScoredList:
    """Plan the pool in order of its current scores, without cards or requests.

    Args:
        scorer: scores the pool, e.g. Greedy or DeviceGreedy.
        slate_size: K, the length of a plan.
    """

    def __init__(self, scorer: Scorer, slate_size: int) -> None:
        self.scorer, self.slate_size, self.name = scorer, slate_size, scorer.name
        self.stateless = getattr(scorer, "stateless", False)

    def reset(self, mask: np.ndarray) -> None:
        """Reset the scorer."""
        self.scorer.reset(mask)

    def plan(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return the plan; see :class:`ListPolicy`."""
        order = self.scorer.scores(observation)
        rows = len(order)
        return {
            "order": order,
            "insert": np.zeros((rows, self.slate_size), np.int64),
            "request": np.zeros(rows, np.int64),
        }


def order_of(lists: np.ndarray, n_pool: int) -> np.ndarray:
    """Return scores (B, N) float32 in -1..1 that put the rows of lists (B, K) int64 first, in order.

    -1 in a list stands for no row. Rows that are not listed follow in cloud order.
    """
    n_sessions, n_places = lists.shape
    order = np.zeros((n_sessions, n_pool + 1), np.float32)
    column = np.where(lists < 0, n_pool, lists)
    np.put_along_axis(order, column, np.linspace(1, 0.5, n_places, dtype=np.float32)[None], axis=1)
    return order[:, :n_pool]


class Emitter(Protocol):
    """Anything that emits lists of pool rows for a batch of sessions."""

    name: str

    def reset(self, mask: np.ndarray) -> None:
        """Forget the rows where `mask` (B,) bool is True."""

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Return (B, k) int64 pool rows in order, -1 after the end of a list."""


class EmittedList:
    """Plan the list that an emitter returns, without cards or requests.

    Args:
        emitter: emits lists, e.g. a trained generator.
        slate_size: K, the length of a plan.
    """

    def __init__(self, emitter: Emitter, slate_size: int) -> None:
        self.emitter, self.slate_size, self.name = emitter, slate_size, emitter.name
        self.stateless = getattr(emitter, "stateless", False)

    def reset(self, mask: np.ndarray) -> None:
        """Reset the emitter."""
        self.emitter.reset(mask)

    def plan(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return the plan; see :class:`ListPolicy`."""
        rows, n_pool = observation["pool"].shape[:2]
        return {
            "order": order_of(self.emitter.lists(observation, self.slate_size), n_pool),
            "insert": np.zeros((rows, self.slate_size), np.int64),
            "request": np.zeros(rows, np.int64),
        }


class RandomList:
    """A random order, no card or a legal one at a random slot, and half the time a request, if legal.

    A card that is legal now stays legal until another one is placed or a page arrives, so it can wait.

    Args:
        slate_size: K, the length of a plan.
        seed: seed of the policy's own generator.
    """

    name = "random"

    def __init__(self, slate_size: int, seed: int = 0) -> None:
        self.slate_size, self.generator = slate_size, np.random.default_rng(seed)

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the generator keeps its state."""

    def plan(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return the plan; see :class:`ListPolicy`."""
        (rows, n_pool), mask, generator = (
            observation["pool"].shape[:2],
            observation["action_mask"],
            self.generator,
        )
        cards = mask[:, n_pool : n_pool + observation["cards"].shape[1]]
        choices = np.column_stack([np.ones(rows, np.int8), cards])  # no card, then each card
        insert = np.zeros((rows, self.slate_size), np.int64)
        at = generator.integers(self.slate_size, size=rows)
        insert[np.arange(rows), at] = draw_legal(generator, choices)
        order = generator.random((rows, n_pool))
        wanted = generator.random(rows) < 0.5
        return {"order": order, "insert": insert, "request": (wanted & (mask[:, -1] != 0)).astype(np.int64)}


class SlateBySlate:
    """Play a list policy in EdgeFeedSlate-v0 as a :class:`~edgerec_gym.policy.Policy`.

    Args:
        list_policy: makes the plans.
    """

    def __init__(self, list_policy: ListPolicy) -> None:
        self.list_policy, self.name = list_policy, list_policy.name
        self.stateless = getattr(list_policy, "stateless", False)
        if hasattr(list_policy, "bind"):  # it is an oracle
            self.bind = list_policy.bind

    def reset(self, mask: np.ndarray) -> None:
        """Reset the list policy."""
        self.list_policy.reset(mask)

    def act(self, observation: Observation) -> Any:
        """Return the plan; raise InputError if the observation is not finite."""
        check_observation(observation)
        return self.list_policy.plan(observation)

    def explain(self, row: int) -> Explanation | None:
        """Return the list policy's explanation of its last plan in one row."""
        return self.list_policy.explain(row) if hasattr(self.list_policy, "explain") else None


class Answered(NamedTuple):
    """What the sessions of a batch have answered since the last slot; at most one card each.

    Attributes:
        answered: (B,) bool, a card was answered.
        clicked: (B,) bool, it was clicked.
        deleted: (B,) bool, it was deleted.
        newest: (B,) int64, its row in `exposures`.
    """

    answered: np.ndarray
    clicked: np.ndarray
    deleted: np.ndarray
    newest: np.ndarray


class NewAnswers:
    """Tells what is new in the observations of a batch; asked once per slot."""

    def __init__(self, n_sessions: int) -> None:
        self._exposures, self._page_views = np.zeros((2, n_sessions), np.float32)

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        self._exposures[mask] = 0
        self._page_views[mask] = 0

    def see(self, observation: Observation) -> Answered:
        """Return what has been answered since the last call."""
        context, history = observation["context"], observation["exposures"]
        answered = context[:, EXPOSURES] > self._exposures
        clicked = context[:, PAGE_VIEWS] > self._page_views
        newest = history[:, :, -1].argmax(axis=1)  # the last column is the slot
        reason = first_action(observation) + DELETE_REASON
        deleted = answered & (history[np.arange(len(history)), newest, reason] > 0)
        self._exposures, self._page_views = context[:, EXPOSURES].copy(), context[:, PAGE_VIEWS].copy()
        return Answered(answered, clicked, deleted, newest)


class SlotBySlot:
    """Play a list policy in EdgeFeed-v0, EdgeFeedRerank-v0 or EdgeFeedMix-v0 from observations only.

    A new plan is made at each trigger: a click, a deletion (exposure action delete_reason), `every` exposures
    without a click, a new page, or the end of the plan's K slots. Where an action is illegal (like cards
    and requests in EdgeFeedRerank-v0), the next row in order is placed instead. In EdgeFeedMix-v0 only the
    cards are played. A request is made at the first slot of a plan and replaces what was planned there, as in
    EdgeFeedSlate-v0.

    Args:
        list_policy: makes the plans.
        every: exposures without a click that make a plan stale, at least 1; None disables this trigger.
        mix: whether it plays EdgeFeedMix-v0.

    Raises:
        InputError: if `every` is invalid, or a plan is malformed or has scores that are not finite.
    """

    def __init__(self, list_policy: ListPolicy, every: int | None = None, mix: bool = False) -> None:
        if every is not None and (not isinstance(every, int) or every < 1):
            raise InputError(f"every = {every!r} must be a whole number of exposures, at least 1, or None")
        self.list_policy, self.every, self.mix, self.name = list_policy, every, mix, list_policy.name
        self._stale = np.zeros(0, np.bool_)
        if hasattr(list_policy, "bind"):  # it is an oracle
            self.bind = list_policy.bind

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        self.list_policy.reset(mask)
        if not len(self._stale):
            self._stale = np.ones(len(mask), np.bool_)
            self._position, self._quiet = np.zeros((2, len(mask)), np.int64)  # in the plan; since a click
            self._slot, self._answers = np.zeros(len(mask), np.float32), NewAnswers(len(mask))
            self._last = np.zeros(len(mask), np.int64)
            self._why = np.full(len(mask), "", object)  # the most recent trigger
            self._said: list[Explanation | None] = [None] * len(mask)  # explanations given with the plan
            self._plan: Plan | None = None
        self._stale |= mask
        self._slot[mask] = -1
        self._answers.reset(mask)

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64; sessions that have ended repeat their last action."""
        slot = observation["context"][:, SLOT]
        moved, self._slot = slot != self._slot, slot.copy()
        stale = self._stale | self._triggered(observation)
        if self._plan is not None:
            stale |= self._position >= self._plan.insert.shape[1]
        stale &= moved
        if stale.any():
            self._renew(observation, stale)
        self._last = np.where(moved, self._action(observation), self._last)
        self._position += moved
        return self._last.copy()

    def _triggered(self, observation: Observation) -> np.ndarray:
        """Return (B,) bool: where an event since the last slot makes the plan stale."""
        events = self._events(observation)
        why = np.select(list(events.values()), list(events), "end of the plan")
        self._why = np.where(self._stale, "start", why)
        return np.any(list(events.values()), axis=0)

    def _events(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return the triggers in order of priority, (B,) bool each; called once per slot."""
        new = self._answers.see(observation)
        self._quiet += new.answered
        quiet = np.zeros_like(new.clicked) if self.every is None else self._quiet >= self.every
        page = observation["context"][:, PAGE_AGE] == 0
        return {"new page": page, "click": new.clicked, "deletion": new.deleted, "no click for long": quiet}

    def _renew(self, observation: Observation, stale: np.ndarray) -> None:
        """Make new plans where the old ones are `stale` (B,) bool."""
        check_observation(observation)
        some = stale if getattr(self.list_policy, "stateless", False) else np.ones_like(stale)
        asked = observation if some.all() else {key: value[some] for key, value in observation.items()}
        plan = self._planned(asked, np.flatnonzero(some))
        if self._plan is None:  # own arrays to copy into: the policy keeps its own
            self._plan = Plan(*(np.zeros((len(stale), *new.shape[1:]), new.dtype) for new in plan))
        if plan.insert.shape[1:] != self._plan.insert.shape[1:]:
            raise InputError(f"the plans of {self.name!r} must not change their number of slots")
        for new, own in zip(plan, self._plan, strict=True):
            own[stale] = new[stale[some]]
        for values in (self._position, self._quiet, self._stale):
            values[stale] = 0
        if hasattr(self.list_policy, "explain"):
            for k, row in enumerate(np.flatnonzero(some).tolist()):
                if stale[row]:
                    self._said[row] = self.list_policy.explain(k)

    def explain(self, row: int) -> Explanation | None:
        """Explain the current plan from this slot on, with the trigger if it was made at this slot."""
        past = int(self._position[row]) - 1  # slots of the plan already played
        trigger = str(self._why[row]) if past == 0 else None
        said = self._said[row]
        if said is None:
            return None if trigger is None else Explanation(trigger=trigger)
        plan = None if said.plan is None else np.where(said.plan >= past, said.plan - past, -1)
        matrix = None if said.matrix is None else said.matrix[:, past:]
        return replace(said, plan=plan, matrix=matrix, trigger=trigger)

    def _planned(self, observation: Observation, rows: np.ndarray) -> Plan:
        """Return new plans for the batch rows `rows` (R,) int64; `observation` holds only these."""
        n_pool, n_cards = observation["pool"].shape[1], observation["cards"].shape[1]
        return check_plan(self.list_policy.plan(observation), n_pool, n_cards, None, len(rows))

    def _action(self, observation: Observation) -> np.ndarray:
        """Return the plans' actions at their positions, (B,) int64."""
        assert self._plan is not None
        mask = observation["action_mask"]
        n_pool, n_cards = observation["pool"].shape[1], observation["cards"].shape[1]
        order, insert, request = self._plan
        sizes = (n_cards + 1,) if self.mix else (n_pool, n_pool + n_cards + 1)
        if mask.shape[1] not in sizes:
            ids = "EdgeFeedMix-v0" if self.mix else "EdgeFeed-v0 and EdgeFeedRerank-v0"
            raise InputError(f"{self.name!r} plays {ids}, not {mask.shape[1]} actions")
        rows = np.arange(len(mask))
        position = np.minimum(self._position, insert.shape[1] - 1)  # ended sessions go past it
        card = insert[rows, position] - 1
        if self.mix:
            return np.where(mask[rows, card + 1] != 0, card + 1, 0)
        row = np.where(mask[:, :n_pool] != 0, order, -np.inf).argmax(axis=1)
        if mask.shape[1] == n_pool:  # EdgeFeedRerank-v0
            return row
        card += n_pool
        action = np.where((card >= n_pool) & (mask[rows, card] != 0), card, row)
        wanted = (self._position == 0) & (request == 1) & (mask[:, -1] != 0)
        return np.where(wanted, n_pool + n_cards, action)
