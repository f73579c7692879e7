"""List policies: they plan the next K slots at once, as EdgeFeedSlate-v0 takes them.

:class:`SlateBySlate` plays a list policy in EdgeFeedSlate-v0, where the environment ends a stale plan;
:class:`SlotBySlot` plays it in EdgeFeed-v0 or EdgeFeedRerank-v0 and sees from the observation when one is. A
policy that decides slot by slot cannot plan a list, unless it has scores (:class:`ScoredList`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgerec_gym.answers import EXPOSURE_ACTIONS
from edgerec_gym.errors import InputError
from edgerec_gym.feed.slate import Plan, check_plan
from edgerec_gym.policy import Explanation, Observation, check_observation, draw_legal
from edgerec_gym.spaces import CONTEXT, N_EXPOSURE_COLUMNS

SLOT, EXPOSURES, PAGE_VIEWS, PAGE_AGE = (
    CONTEXT.index(name) for name in ("slot", "exposures", "page_views", "page_age")
)
DELETE_REASON = EXPOSURE_ACTIONS.index("delete_reason") - N_EXPOSURE_COLUMNS  # counted from a row's end


@runtime_checkable
class ListPolicy(Protocol):
    """Plans the next slots of a batch of sessions, from observations only.

    Rows of one call need not be equally far: a caller may use the plan of some of them and call again. One
    that plans each row from its observation alone may say so with `stateless = True`: then it is asked for
    the rows only that need a plan.
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
        """Return (B, N) scores of the pool rows, higher first."""


class ScoredList:
    """The pool by its scores now, no cards, no requests.

    Args:
        scorer: scores the pool, e.g. Greedy or DeviceGreedy.
        slate_size: K.
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
    """Scores (B, N) float32 in -1..1 of the pool rows, so that lists (B, K) int64 of them come first.

    -1 in a list is no row; rows that are in no list follow in cloud order.
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
        """Return (B, k) int64 pool rows in order, -1 behind the end of a list."""


class EmittedList:
    """The list that an emitter emits now, no cards, no requests.

    Args:
        emitter: emits lists, e.g. a trained generator.
        slate_size: K.
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
    """A random order, no card or a legal one at a random slot, and every other time a request, if legal.

    A card that is legal now stays so until another one is placed or a page comes: it may wait for its slot.

    Args:
        slate_size: K.
        seed: of its own generator.
    """

    name = "random"

    def __init__(self, slate_size: int, seed: int = 0) -> None:
        self.slate_size, self.generator = slate_size, np.random.default_rng(seed)

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the generator runs on."""

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
    """Plays a list policy in EdgeFeedSlate-v0; follows :class:`~edgerec_gym.policy.Policy`.

    Args:
        list_policy: plans.
    """

    def __init__(self, list_policy: ListPolicy) -> None:
        self.list_policy, self.name = list_policy, list_policy.name
        self.stateless = getattr(list_policy, "stateless", False)
        if hasattr(list_policy, "bind"):  # an oracle
            self.bind = list_policy.bind

    def reset(self, mask: np.ndarray) -> None:
        """Reset the list policy."""
        self.list_policy.reset(mask)

    def act(self, observation: Observation) -> Any:
        """Return the plan; InputError if the observation is not finite."""
        check_observation(observation)
        return self.list_policy.plan(observation)

    def explain(self, row: int) -> Explanation | None:
        """Tell what the list policy says of its last plan in one row."""
        return self.list_policy.explain(row) if hasattr(self.list_policy, "explain") else None


class SlotBySlot:
    """Plays a list policy in EdgeFeed-v0, EdgeFeedRerank-v0 or EdgeFeedMix-v0; knows only the observation.

    A new plan is made at each trigger: a click, a deletion (exposure action delete_reason), `every` exposures
    without a click, a new page, or when all K slots of the plan are filled. What is not legal at a slot (also
    cards and requests in EdgeFeedRerank-v0) is left out: the next row in order is placed. In EdgeFeedMix-v0
    only the cards are played. A request is made with the first slot of a plan and takes the place of what
    stood there, as in EdgeFeedSlate-v0.

    Args:
        list_policy: plans.
        every: exposures without a click that make a plan stale, at least 1; None: only its end does.
        mix: it plays EdgeFeedMix-v0.

    Raises:
        InputError: `every` is no such number; a plan of a wrong form or with scores that are not finite.
    """

    def __init__(self, list_policy: ListPolicy, every: int | None = None, mix: bool = False) -> None:
        if every is not None and (not isinstance(every, int) or every < 1):
            raise InputError(f"every = {every!r} must be a whole number of exposures, at least 1, or None")
        self.list_policy, self.every, self.mix, self.name = list_policy, every, mix, list_policy.name
        self._stale = np.zeros(0, np.bool_)
        if hasattr(list_policy, "bind"):  # an oracle
            self.bind = list_policy.bind

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        self.list_policy.reset(mask)
        if not len(self._stale):
            self._stale = np.ones(len(mask), np.bool_)
            self._position, self._quiet = np.zeros((2, len(mask)), np.int64)  # in the plan; without a click
            self._slot, self._exposures, self._page_views = np.zeros((3, len(mask)), np.float32)
            self._last = np.zeros(len(mask), np.int64)
            self._why = np.full(len(mask), "", object)  # what would have made a plan stale last
            self._said: list[Explanation | None] = [None] * len(mask)  # when the plan was made
            self._plan: Plan | None = None
        self._stale |= mask
        self._slot[mask] = -1
        self._exposures[mask] = 0
        self._page_views[mask] = 0

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64; sessions that stand still, since they have ended, repeat their last action."""
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
        """Where something has happened since the last slot that makes a plan stale, (B,) bool."""
        events = self._events(observation)
        why = np.select(list(events.values()), list(events), "end of the plan")
        self._why = np.where(self._stale, "start", why)
        return np.any(list(events.values()), axis=0)

    def _events(self, observation: Observation) -> dict[str, np.ndarray]:
        """What makes a plan stale, the most telling first, (B,) bool each; asked once a slot."""
        context, history = observation["context"], observation["exposures"]
        answered = context[:, EXPOSURES] > self._exposures
        clicked = context[:, PAGE_VIEWS] > self._page_views
        newest = history[:, :, -1].argmax(axis=1)  # the last column is the slot
        deleted = answered & (history[np.arange(len(history)), newest, DELETE_REASON] > 0)
        self._exposures, self._page_views = context[:, EXPOSURES].copy(), context[:, PAGE_VIEWS].copy()
        self._quiet += answered
        quiet = np.zeros_like(clicked) if self.every is None else self._quiet >= self.every
        page = context[:, PAGE_AGE] == 0
        return {"new page": page, "click": clicked, "deletion": deleted, "no click for long": quiet}

    def _renew(self, observation: Observation, stale: np.ndarray) -> None:
        """Take new plans where the old ones are stale, (B,) bool."""
        check_observation(observation)
        some = stale if getattr(self.list_policy, "stateless", False) else np.ones_like(stale)
        asked = observation if some.all() else {key: value[some] for key, value in observation.items()}
        plan = self._planned(asked, np.flatnonzero(some))
        if self._plan is None:  # the policy's arrays stay its own: these are copied into
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
        """Tell what the plan in force says of the slots from this one on, and why it was made, if now."""
        past = int(self._position[row]) - 1  # slots of the plan that lie behind
        trigger = str(self._why[row]) if past == 0 else None
        said = self._said[row]
        if said is None:
            return None if trigger is None else Explanation(trigger=trigger)
        plan = None if said.plan is None else np.where(said.plan >= past, said.plan - past, -1)
        matrix = None if said.matrix is None else said.matrix[:, past:]
        return replace(said, plan=plan, matrix=matrix, trigger=trigger)

    def _planned(self, observation: Observation, rows: np.ndarray) -> Plan:
        """New plans of some rows (R,) int64 of the batch, whose observation it is."""
        n_pool, n_cards = observation["pool"].shape[1], observation["cards"].shape[1]
        return check_plan(self.list_policy.plan(observation), n_pool, n_cards, None, len(rows))

    def _action(self, observation: Observation) -> np.ndarray:
        """The plans' actions at their positions, (B,) int64."""
        assert self._plan is not None
        mask = observation["action_mask"]
        n_pool, n_cards = observation["pool"].shape[1], observation["cards"].shape[1]
        order, insert, request = self._plan
        sizes = (n_cards + 1,) if self.mix else (n_pool, n_pool + n_cards + 1)
        if mask.shape[1] not in sizes:
            ids = "EdgeFeedMix-v0" if self.mix else "EdgeFeed-v0 and EdgeFeedRerank-v0"
            raise InputError(f"{self.name!r} plays {ids}, not {mask.shape[1]} actions")
        rows = np.arange(len(mask))
        position = np.minimum(self._position, insert.shape[1] - 1)  # sessions that stand still
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
