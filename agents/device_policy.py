"""Play an exported re-ranker in the environment, one phone per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.device.budget import StandingOrder, TimedDecisions, read_budget
from edgerec_gym.device.files import CRBAN, SEQUENCES, DeviceModel
from edgerec_gym.device.session import ABSENT, DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.policy import NOT_SHOWN, Observation, Policy, best_legal, check_observation
from edgerec_gym.registration import SLATE
from edgerec_gym.spaces import CONTEXT, observation_layout

TRACKS = ("joint", "rerank", SLATE)
COUNTS = {name: CONTEXT.index(name) for name in SEQUENCES}
SLOT = CONTEXT.index("slot")


class DevicePolicy:
    """Run one phone session per row; each appends events as they appear in the observation.

    As long as a session fits into the histories, the policy plays as the torch policy does; after that the
    phone remembers more. At every slot it plays its top row (a sequence search plays its lists). It inserts
    no cards and makes no requests.

    A decision's time is that of one session, from the observation to the order: new events and re-ranking. A
    slot is decided once; a policy that plans lists is timed at every slot, whether its plan is played or not.

    Args:
        name: name of the policy.
        model: the exported model to run.
        max_slots: the environment's max_slots, the scale of the event counts in the context.
        timed: holds decisions to a budget (:mod:`edgerec_gym.device.budget`); None measures nothing.
    """

    def __init__(
        self, name: str, model: DeviceModel, max_slots: int, timed: TimedDecisions | None = None
    ) -> None:
        self.name, self.model, self.max_slots, self.timed = name, model, max_slots, timed
        self.sessions: list[DeviceSession] = []
        self._standing: list[StandingOrder] = []
        self._decided: list[tuple[int, np.ndarray] | None] = []  # (slot, order) of the last decision

    def reset(self, mask: np.ndarray) -> None:
        """Start new sessions where `mask` (B,) is True."""
        if len(self.sessions) != len(mask):
            mask = np.ones_like(mask)
            self.sessions = [DeviceSession(self.model) for _ in mask]
            self._standing = [StandingOrder("standing plan") for _ in mask]
            self._decided = [None for _ in mask]
        for row in np.flatnonzero(mask):
            self._restart(int(row))
        if self.timed is not None:
            self.timed.reset(mask)

    def _restart(self, row: int) -> None:
        self.sessions[row], self._decided[row] = DeviceSession(self.model), None
        if self.timed is not None:
            self._standing[row] = StandingOrder(self.timed.budget.fallback)

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) float32; CRBAN only. Under a budget, scores are n - place in the order."""
        if self.timed is None:
            return np.stack([session.scores(one) for _, session, one, _ in self._followed(observation)])
        found = np.full(observation["pool"].shape[:2], ABSENT, np.float32)
        for row, session, one, started in self._followed(observation):
            rows = self._in_time(row, one, started, partial(_best_first, session, one))
            found[row, rows] = np.arange(len(rows), 0, -1)
        return found

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Return (B, k) int64 pool rows, -1 after the end of a list."""
        found = np.full((len(observation["pool"]), k), NOT_SHOWN, np.int64)
        for row, session, one, started in self._followed(observation):
            listed = partial(session.rerank, one, k)
            rows = listed() if self.timed is None else self._in_time(row, one, started, listed)[:k]
            found[row, : len(rows)] = rows
        return found

    def _in_time(
        self, row: int, one: Observation, started: float, compute: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """Return pool rows in order: those of `compute` if it meets the budget, else those that stand."""
        assert self.timed is not None
        slot, last = round(float(one["context"][SLOT]) * self.max_slots), self._decided[row]
        if last is not None and last[0] == slot:  # nothing happened: the session has ended, or is asked again
            return last[1]
        standing = self._standing[row]
        rows, in_time = self.timed.decide(row, slot, started, compute, partial(standing.order, one["pool"]))
        rows = rows[rows != NOT_SHOWN]
        if in_time:
            standing.keep(rows, one["pool"])
        self._decided[row] = slot, rows
        return rows

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 pool rows, legal under the mask."""
        n_pool = observation["pool"].shape[1]
        if CRBAN in self.model.graphs:
            score = self.scores(observation)
        else:
            # Under a budget the whole list is made: it is the plan that stands if the next one is late.
            places = 1 if self.timed is None else min(self.model.places, n_pool)
            first = self.lists(observation, places)[:, :1]
            score = (first == np.arange(n_pool)).astype(np.float32)
        return best_legal(score, observation["action_mask"])

    def _followed(self, observation: Observation) -> Iterator[tuple[int, DeviceSession, Observation, float]]:
        """Bring sessions up to date; yield (row, session, observation, time when the observation came)."""
        check_observation(observation)
        if len(self.sessions) != len(observation["context"]):
            self.reset(np.ones(len(observation["context"]), np.bool_))
        for row in range(len(self.sessions)):
            started = 0.0 if self.timed is None else self.timed.clock()
            one = {key: values[row] for key, values in observation.items()}
            total = {
                name: round(float(one["context"][column]) * self.max_slots) for name, column in COUNTS.items()
            }
            if any(total[name] < self.sessions[row].count[name] for name in SEQUENCES):
                self._restart(row)  # a new session began without a reset
            session = self.sessions[row]
            for name in SEQUENCES:
                new = total[name] - session.count[name]
                events = one[name][one[name].any(axis=1)]
                for event in events[max(0, len(events) - new) :]:
                    session.append(name, event)
                session.count[name] = total[name]  # including events that have left the history
            yield row, session, one, started


def _best_first(session: DeviceSession, one: Observation) -> np.ndarray:
    """Return the pool rows that are left, the best one first."""
    score = session.scores(one)
    order = np.argsort(-score, kind="stable")
    return order[score[order] > ABSENT]


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load an exported re-ranker to play the joint, rerank or slate track.

    Its decisions have the budget of a rules.toml in the folder, else that of the environment's
    `latency_budget_ms`, else none.

    Raises:
        InputError: if files are broken, or the environment has another track or other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    if feed.track not in TRACKS:
        raise InputError(f"{folder} re-ranks; it plays the tracks {', '.join(TRACKS)}, not {feed.track!r}")
    model = load(folder)
    for key, part in observation_layout(feed.config, "joint").items():
        if key in ("cards", "action_mask"):
            continue
        if part.shape != model.sizes.get(key):
            raise InputError(
                f"{folder} was exported for the scenario {model.described['scenario']!r} with {key} "
                f"{list(model.sizes.get(key, ()))}; this environment has {list(part.shape)}"
            )
    budget = read_budget(Path(folder), feed.config)
    timed = None if budget is None else TimedDecisions(budget)
    policy = DevicePolicy(f"{model.agent} on device", model, feed.config.max_slots, timed)
    if feed.track != SLATE and model.search is None:
        return policy
    if CRBAN in model.graphs:
        return SlateBySlate(ScoredList(policy, feed.config.slate_size))
    if feed.config.slate_size > model.places:
        raise InputError(
            f"{folder} was exported for lists of {model.places} cards; this environment asks for "
            f"{feed.config.slate_size}"
        )
    lists = EmittedList(policy, feed.config.slate_size)
    if feed.track == SLATE or model.search is None:
        return SlateBySlate(lists)
    return SlotBySlot(lists, model.search.settings.every)
