"""The EdgeRec agent: order, insertions and requests together, decided anew whenever something has happened.

The agent plays a plan slot by slot. A new page, the end of the plan, or what its rules name (triggers.py: by
default a click, a deletion, some exposures without a click) starts a new one: first the order of the pool,
then the cards whose value in that order exceeds what they displace, then whether a request gains more than
its price (Gong et al., EdgeRec, CIKM'20, and its later talks on insertion and AdaRequest). With the joint
option, several whole plans are compared by their learned value (values.py). Rules: rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from edgerec_gym.agents.edgerec.rules import Rules
from edgerec_gym.agents.edgerec.triggers import Clock, TriggeredSlots, TriggerWatch
from edgerec_gym.agents.edgerec.values import Candidate, PlanValues, candidates, features
from edgerec_gym.agents.insertion.policies import insertions, net_gains, solve
from edgerec_gym.agents.insertion.values import SlotValues
from edgerec_gym.agents.list_policy import SLOT
from edgerec_gym.agents.perception.live_interest import LiveInterest
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.feed.slate import Plan, check_plan
from edgerec_gym.policy import NOT_SHOWN, Explanation, Observation

NAME = "edgerec"
NEVER_ASKED = -(10**9)


class Judgement(NamedTuple):
    """Judgement of R moments.

    Attributes:
        values: values of cards and goods at the slots ahead, with the pool shown in the order of the scores.
        gain: (R,) reward that a request now is expected to add, before its cost.
        price: (M, 1) or (R, M, T) reward that each card must earn beyond what it displaces.
    """

    values: SlotValues
    gain: np.ndarray
    price: np.ndarray


class Judge(Protocol):
    """Judges moments for the agent."""

    @property
    def plan_values(self) -> PlanValues | None:
        """Learned values of whole plans; None if they were not learned."""

    def reset(self, mask: np.ndarray) -> None:
        """Forget the rows where `mask` (B,) bool is True; the first call fixes the batch size."""

    def see(self, observation: Observation) -> None:
        """Process what has happened since the last slot, in all B rows; called at every slot."""

    def scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Score the pool (R, N) in rows (R,) int64 of the batch; `observation` holds these rows."""

    def judge(self, observation: Observation, rows: np.ndarray, scores: np.ndarray) -> Judgement:
        """Judge the rest, with the pool ordered by `scores` (R, N); follows `scores` at the same slot."""

    def gain(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Gain of a request alone, (R,) float64, as in :meth:`judge`."""


# (rows, features (R, P, F), slots of the session (R,)) -> (R,) chosen plans
Choose = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class EdgeRec(TriggeredSlots):
    """Plays EdgeFeed-v0; every decision obeys the rules.

    Args:
        judge: tells what orders, cards and requests are worth.
        config: the feed.
        rules: which decisions are enabled, when, and within which limits.
        name: the policy's name.
        choose: picks among whole plans (:func:`~edgerec_gym.agents.edgerec.values.candidates`), for training;
            None: the rules say whether their learned values decide.
        clock: the runtime's clock for triggers, in seconds; None counts the time that the answers took.

    Raises:
        InputError: rules that do not fit the feed.
    """

    def __init__(
        self,
        judge: Judge,
        config: FeedConfig,
        rules: Rules | None = None,
        name: str = NAME,
        choose: Choose | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.judge, self.config, self.rules = judge, config, rules or Rules()
        self._interest = LiveInterest(item_columns=config.item_columns)
        super().__init__(_Unasked(name), TriggerWatch(self.rules.triggers, config, self._gain_of_page, clock))
        self.limits = self.rules.feed(config)
        self.price, self.cool_down = self.rules.charge(config), self.rules.cool_down(config)
        self.n_slots = config.page_size  # maximum number of slots that plans look ahead
        self._choose = choose
        if choose is None and self.rules.decide.joint:
            plans = judge.plan_values
            if plans is None:
                raise InputError(
                    f"{name!r} has not learned what whole plans are worth; [decide] joint needs it"
                )
            self._choose = lambda rows, told, slots: plans.best(told)

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        if len(self._stale) != len(mask):  # another batch
            self._stale = np.zeros(0, np.bool_)
        super().reset(mask)
        self.judge.reset(mask)
        n = len(mask)
        if self._plan is None:
            self._asked, self._requests = np.full(n, NEVER_ASKED), np.zeros(n, np.int64)
            self._told = _Told(n, self.config, self.n_slots)
        self._asked[mask], self._requests[mask] = NEVER_ASKED, 0

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64; rows whose session has ended repeat their last action."""
        self._now = np.rint(observation["context"][:, SLOT] * self.config.max_slots).astype(np.int64)
        self.judge.see(observation)
        action = super().act(observation)
        asked = (action == observation["action_mask"].shape[1] - 1) & (self._asked != self._now)
        self._requests += asked
        self._asked[asked] = self._now[asked]
        return action

    def follow_on(self, earlier: TriggeredSlots) -> None:
        """Go on in the sessions of another agent, whose requests count against the rules, too."""
        super().follow_on(earlier)
        if isinstance(earlier, EdgeRec):
            self._asked, self._requests = earlier._asked.copy(), earlier._requests.copy()

    def _gain_of_page(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Estimated gain of a request in rows (R,) int64; -inf where none is allowed."""
        gain, may = np.full(len(rows), -np.inf), self._may_ask(observation, rows)
        if may.any():
            asked = {key: values[may] for key, values in observation.items()}
            gain[may] = self.judge.gain(asked, rows[may])
        return gain

    def _planned(self, observation: Observation, rows: np.ndarray) -> Plan:
        decide = self.rules.decide
        scores = np.zeros(observation["pool"].shape[:2], np.float32)  # ties: the cloud's order
        if decide.order:
            scores = self.judge.scores(observation, rows)
        found = self.judge.judge(observation, rows, scores)
        may_ask = self._may_ask(observation, rows)
        net = net_gains(found.values, self.rules.insert.price + found.price)
        plan = Candidate(scores, self._slots(net, found, observation), may_ask & (found.gain > self.price))
        if self._choose is not None:
            planned = candidates(plan, observation, may_ask, self._interest, decide.order)
            told = features(planned, net, found.gain - self.price, observation, self._interest)
            plan = _chosen(planned, self._choose(rows, told, self._now[rows]))
        self._told.keep(rows, plan, found.values.cards, found.gain)
        made = {
            "order": plan.scores,
            "insert": insertions(plan.slots, self.config.slate_size),
            "request": plan.asks.astype(np.int64),
        }
        n_pool, n_cards = observation["pool"].shape[1], observation["cards"].shape[1]
        return check_plan(made, n_pool, n_cards, None, len(rows))

    def _slots(self, net: np.ndarray, found: Judgement, observation: Observation) -> np.ndarray:
        """Slots ahead at which the cards are placed, (R, M) int64."""
        if not self.rules.decide.insert:
            return np.full(net.shape[:2], NOT_SHOWN)
        return solve(net, found.values.exposure, observation, self.limits, self.rules.insert.solver)

    def _may_ask(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Where the rules and the feed allow a request now, (R,) bool."""
        if not self.rules.decide.request:
            return np.zeros(len(rows), np.bool_)
        may = (observation["action_mask"][:, -1] != 0) & (
            self._now[rows] - self._asked[rows] >= self.cool_down
        )
        most = self.rules.request.per_session
        return may if most is None else may & (self._requests[rows] < most)

    def explain(self, row: int) -> Explanation:
        """Explain the last action in a row of the batch; slots are counted from it."""
        at = int(self._position[row]) - 1  # the action has already advanced it
        first, told = at == 0, self._told
        slots = told.slots[row] - at
        return Explanation(
            scores=told.scores[row].copy(),
            matrix=told.matrix[row, :, max(at, 0) :].copy(),
            plan=np.where(slots >= 0, slots, NOT_SHOWN),
            uplift=float(told.gain[row]) if first else None,
            price=self.price if first else None,
            trigger=str(self._why[row]) if first else None,
        )


class _Told:
    """The estimates behind each row's current plan."""

    def __init__(self, rows: int, config: FeedConfig, n_slots: int) -> None:
        self.scores = np.zeros((rows, config.pool_size), np.float32)
        self.matrix = np.zeros((rows, config.n_cards, n_slots))
        self.slots = np.full((rows, config.n_cards), NOT_SHOWN)
        self.gain = np.zeros(rows)

    def keep(self, rows: np.ndarray, plan: Candidate, cards: np.ndarray, gain: np.ndarray) -> None:
        """Remember plans of some rows (R,) int64."""
        self.scores[rows], self.slots[rows] = plan.scores, plan.slots
        self.matrix[rows], self.gain[rows] = cards, gain


def _chosen(planned: Sequence[Candidate], choice: np.ndarray) -> Candidate:
    """Select one of P plans at each moment, by `choice` (R,)."""
    at = np.arange(len(choice))
    scores, slots, asks = (
        np.stack([getattr(c, k) for c in planned])[choice, at] for k in ("scores", "slots", "asks")
    )
    return Candidate(scores, slots, asks)


class _Unasked:
    """Placeholder for a list policy: the agent plans by itself, for the rows that need it."""

    stateless = True

    def __init__(self, name: str) -> None:
        self.name = name

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing."""

    def plan(self, observation: Observation) -> dict[str, np.ndarray]:
        raise NotImplementedError
