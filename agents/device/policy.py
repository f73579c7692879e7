"""Play an exported agent in the environment, one phone per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.device.players import RERANK_TRACKS, Player, player
from edgerec_gym.agents.edgerec.triggers import Clock, TriggeredSlots
from edgerec_gym.agents.list_policy import ScoredList, SlateBySlate, order_of
from edgerec_gym.device.budget import StandingOrder, TimedDecisions, read_budget
from edgerec_gym.device.description import SEQUENCES
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import ABSENT, DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, Policy, best_legal, check_observation
from edgerec_gym.registration import SLATE
from edgerec_gym.spaces import CONTEXT, observation_layout

SLOT = CONTEXT.index("slot")
COUNTS = {name: CONTEXT.index(name) for name in SEQUENCES}
ONLY = np.ones(1, np.bool_)  # a phone has one session


class Standing:
    """What a phone shows when a decision is late: the order that stands, without cards or requests.

    Args:
        feed: the environment.
        fallback: "standing plan" or "cloud order".
    """

    name = "standing"

    def __init__(self, feed: Any, fallback: str) -> None:
        self.track, self._order = feed.track, StandingOrder(fallback)
        self._plans = SlateBySlate(ScoredList(self, feed.config.slate_size))

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: a session begins with a phone's own."""

    def keep(self, policy: Any, observation: Observation) -> None:
        """Let the order stand that a policy has just decided in time, if it tells one."""
        told = policy.explain(0) if hasattr(policy, "explain") else None
        if told is not None and told.scores is not None:
            pool = observation["pool"][0]
            left = np.flatnonzero(pool.any(axis=1) & (told.scores > ABSENT))
            self._order.keep(left[np.argsort(-told.scores[left], kind="stable")], pool)

    def scores(self, observation: Observation) -> np.ndarray:
        """Score the pool, (1, N), by the order that stands."""
        pool = observation["pool"][0]
        return order_of(self._order.order(pool)[None], len(pool))

    def act(self, observation: Observation) -> Any:
        """Return the action of the track; where the order is not decided, it is keep's."""
        if self.track == SLATE:
            return self._plans.act(observation)
        if self.track in RERANK_TRACKS:
            return best_legal(self.scores(observation), observation["action_mask"])
        return observation["action_mask"].argmax(axis=1)


class Phone:
    """One user's session on a phone: events as they happen, and the agent's decisions.

    Args:
        model: the exported model.
        make: makes the policy that plays it, for one session.
        max_slots: the environment's max_slots, the scale of the event counts in the context.

    Attributes:
        session: what the phone keeps.
        policy: decides, from observations of a batch of one.
    """

    def __init__(self, model: DeviceModel, make: Player, max_slots: int) -> None:
        self.session, self.max_slots = DeviceSession(model), max_slots
        self.policy = make(self.session)
        self.policy.reset(ONLY)

    def began_again(self, observation: Observation) -> bool:
        """Whether an observation of a batch of one tells of fewer events than there were."""
        total = self._counts(observation)
        return any(total[name] < self.session.count[name] for name in SEQUENCES)

    def follow(self, observation: Observation) -> None:
        """Append the events that are new in an observation of a batch of one."""
        total = self._counts(observation)
        for name in SEQUENCES:
            new = total[name] - self.session.count[name]
            if new:
                rows = observation[name][0]
                events = rows[rows.any(axis=1)]
                for event in events[max(0, len(events) - new) :]:
                    self.session.append(name, event)
                self.session.count[name] = total[name]  # including events that have left the history

    def act(self, observation: Observation) -> Any:
        """Follow an observation of a batch of one, and act on it."""
        self.follow(observation)
        return self.policy.act(observation)

    def _counts(self, observation: Observation) -> dict[str, int]:
        context = observation["context"][0]
        return {name: round(float(context[column]) * self.max_slots) for name, column in COUNTS.items()}


class DevicePolicy:
    """Run one phone per row; each appends events as they appear in the observation, and decides by itself.

    The phone plays as the torch policy does. Only CRBAN, the generators and the sequence search remember more
    than the torch policy once a session no longer fits into the histories.

    A decision's time is that of one session, from the observation to the action: new events, networks,
    planner and rules. A slot is decided once. An agent that plans several slots goes on with a late plan at
    the next slot.

    Args:
        name: name of the policy.
        model: the exported model to run.
        feed: the environment to play.
        timed: holds decisions to a budget (:mod:`edgerec_gym.device.budget`); None measures nothing.
        clock: seconds that triggers read; None counts the time that the answers took.

    Raises:
        InputError: the agent does not play the environment's track, or its settings are wrong.
    """

    def __init__(
        self,
        name: str,
        model: DeviceModel,
        feed: Any,
        timed: TimedDecisions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.model, self.timed, self.feed = name, model, timed, feed
        self.max_slots, self.clock = feed.config.max_slots, clock
        self.make = player(model, feed, timed is not None, clock)
        self.phones: list[Phone] = []
        self._standing: list[Standing | None] = []
        self._slot = np.zeros(0, np.float32)
        self._last: list[Any] = []

    def reset(self, mask: np.ndarray) -> None:
        """Start new sessions where `mask` (B,) is True."""
        if len(self.phones) != len(mask):
            mask = np.ones(len(mask), np.bool_)
            self.phones = [self._phone() for _ in mask]
            self._standing = [self._stands() for _ in mask]
            self._slot, self._last = np.full(len(mask), -1, np.float32), [None] * len(mask)
        else:
            for row in np.flatnonzero(mask).tolist():
                self._restart(row)
        self._slot[mask] = -1
        if self.timed is not None:
            self.timed.reset(mask)

    def act(self, observation: Observation) -> Any:
        """Return what the agent's own policy returns; sessions that have ended repeat their last action."""
        check_observation(observation)
        context = observation["context"]
        if len(self.phones) != len(context):
            self.reset(np.ones(len(context), np.bool_))
        for row in np.flatnonzero(context[:, SLOT] != self._slot).tolist():
            started = 0.0 if self.timed is None else self.timed.clock()
            one = {key: values[row : row + 1] for key, values in observation.items()}
            if self.phones[row].began_again(one):  # without a reset
                self._restart(row)
            self._last[row] = self._decide(row, one, started)
        self._slot = context[:, SLOT].copy()
        if isinstance(self._last[0], dict):
            return {key: np.concatenate([action[key] for action in self._last]) for key in self._last[0]}
        return np.concatenate(self._last)

    def explain(self, row: int) -> Explanation | None:
        """Return the explanation of the last action in one row."""
        policy: Any = self.phones[row].policy
        return policy.explain(0) if hasattr(policy, "explain") else None

    def keep_time(self, clock: Clock | None) -> None:
        """Let the triggers of new sessions read a clock, in seconds; None counts the time of the answers."""
        self.make = player(self.model, self.feed, self.timed is not None, clock)
        self.clock = clock

    def swap(self, model: DeviceModel) -> None:
        """Go on with another model in every session; its plans begin anew.

        Raises:
            InputError: the model does not play this feed, or cannot take over a session; the old one stays.
        """
        make = player(model, self.feed, self.timed is not None, self.clock)
        fresh = []
        for phone in self.phones:
            session = DeviceSession(phone.session.model)
            vars(session).update(vars(phone.session))  # so that a failure in another session changes nothing
            session.swap(model)
            policy = make(session)
            policy.reset(ONLY)
            if isinstance(policy, TriggeredSlots) and isinstance(phone.policy, TriggeredSlots):
                policy.follow_on(phone.policy)
            fresh.append((session, policy))
        for phone, (session, policy) in zip(self.phones, fresh, strict=True):
            phone.session, phone.policy = session, policy
        self.model, self.make = model, make

    def _restart(self, row: int) -> None:
        self.phones[row], self._standing[row] = self._phone(), self._stands()

    def _phone(self) -> Phone:
        return Phone(self.model, self.make, self.max_slots)

    def _stands(self) -> Standing | None:
        """What a new session shows if it is late; None without a budget."""
        return None if self.timed is None else Standing(self.feed, self.timed.budget.fallback)

    def _decide(self, row: int, one: Observation, started: float) -> Any:
        """Follow an observation of a batch of one, and act on it; if that is late, return what stands."""
        phone = self.phones[row]
        standing = self._standing[row]
        if self.timed is None or standing is None:
            return phone.act(one)
        phone.follow(one)
        slot = round(float(one["context"][0, SLOT]) * self.max_slots)
        acted: Callable[[], Any] = partial(phone.policy.act, one)
        action, in_time = self.timed.decide(row, slot, started, acted, partial(standing.act, one))
        if in_time:
            standing.keep(phone.policy, one)
        return action


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load an exported agent to play the tracks that it plays in torch.

    Its decisions have the budget of a rules.toml in the folder, else that of the environment's
    `latency_budget_ms`, else none.

    Raises:
        InputError: if files are broken, or the environment has another track or other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    model = load(folder)
    budget = read_budget(Path(folder), feed.config)
    timed = None if budget is None else TimedDecisions(budget)
    policy = DevicePolicy(f"{model.agent} on device", model, feed, timed)
    for key, part in observation_layout(feed.config, "joint").items():
        if key != "action_mask" and part.shape != model.sizes.get(key):
            raise InputError(
                f"{folder} was exported for the scenario {model.described.scenario!r} with {key} "
                f"{list(model.sizes.get(key, ()))}; this environment has {list(part.shape)}"
            )
    return policy
