"""What an agent's decisions ask its networks for, answered for one session by the graphs of a model."""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.device.settings import EdgeRecSettings
from edgerec_gym.agents.edgerec.agent import Judgement
from edgerec_gym.agents.edgerec.values import PlanValues
from edgerec_gym.agents.insertion.values import SlotValues, goods_in_order, pool_order, slots_left
from edgerec_gym.agents.list_policy import order_of
from edgerec_gym.agents.perception.intent_change import current_interest, intent_signals, state_vector
from edgerec_gym.agents.ppo.modes import best_of_groups, legal_probabilities
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.description import DQN, EDGEREC, ESAN, PPO, VALUES
from edgerec_gym.device.engines.engine import Arrays
from edgerec_gym.device.session import ABSENT, DeviceSession
from edgerec_gym.policy import Explanation, Observation, best_legal
from edgerec_gym.spaces import CONTEXT

SLOT, PAGE_VIEWS = CONTEXT.index("slot"), CONTEXT.index("page_views")
CLICK, PURCHASE, _, LEAVE = range(4)  # outcomes in ESAN's predictions


class DeviceScores:
    """A re-ranker: scores of the pool, or lists; played slot by slot, its top legal pool row.

    Args:
        name: name of the policy.
        session: the phone's session.
        whole: whether one that writes lists writes all of a list at every slot: the plan that stands if the
            next one is late.
    """

    def __init__(self, name: str, session: DeviceSession, whole: bool = False) -> None:
        self.name, self.session, self.whole = name, session, whole
        self._last = np.zeros((1, 0), np.float32)  # scores

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: a session begins with a phone's own."""

    def scores(self, observation: Observation) -> np.ndarray:
        """Score the pool, (1, N) float32."""
        return self.session.scores(_one(observation))[None]

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Write a list, (1, k) int64 pool rows, -1 after its end."""
        return self.session.rerank(_one(observation), k)[None]

    def act(self, observation: Observation) -> np.ndarray:
        """Return (1,) int64 pool rows, legal under the mask."""
        if self.session.scorer is not None:
            self._last = self.scores(observation)
        else:
            n_pool = observation["pool"].shape[1]
            places = min(self.session.model.places, n_pool) if self.whole else 1
            self._last = order_of(self.lists(observation, places), n_pool)
        return best_legal(self._last, observation["action_mask"])

    def explain(self, row: int) -> Explanation:
        """Return the scores of the last call."""
        return Explanation(scores=self._last[row])


class DeviceValues:
    """Values of candidates; see :data:`~edgerec_gym.agents.values.policy.Values`."""

    def __init__(self, session: DeviceSession) -> None:
        self.session = session

    def __call__(self, observation: Observation, cards: np.ndarray) -> np.ndarray:
        """Value cards (1, n, F + T): (1, n) float32."""
        found = self.session.decide(VALUES, "values", _one(observation), offered=cards[0])["values"]
        return np.where(cards.any(2), found[:, 0], np.float32(ABSENT))


class DeviceGain:
    """Estimated gain of a request, by an uplift estimator or DQN."""

    def __init__(self, session: DeviceSession, network: str, config: FeedConfig) -> None:
        self.session, self.network, self.config = session, network, config

    def __call__(self, observation: Observation) -> np.ndarray:
        """Gain (1,) float32."""
        if self.network == DQN:
            told: Arrays = {"state": state_vector(observation, self.config)}
        else:
            told = {"signals": intent_signals(observation, self.config)}
        return self.session.decide(self.network, "gain", _one(observation), **told)["gain"][:, 0]


class DeviceSlotValues:
    """Values of cards at the slots ahead, predicted by ESAN; see insertion.values.ValueModel."""

    name = ESAN

    def __init__(self, session: DeviceSession, config: FeedConfig) -> None:
        self.session, self.config = session, config

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Predict the values, with the pool shown in `order` (1, N) int64."""
        needed = self.session.model.graphs[ESAN]["matrix"].fixed("goods")[0]
        goods = goods_in_order(observation["pool"], order, needed, self.config.n_types)
        found = self.session.decide(ESAN, "matrix", _one(observation), goods=goods[0])
        return slot_values(found, observation, goods, self.config)


class DeviceJudge:
    """Judges one session for the whole agent; see edgerec.agent.Judge.

    Args:
        session: the phone's session.
        settings: what the agent has learned besides its networks.
        config: the feed.
    """

    def __init__(self, session: DeviceSession, settings: EdgeRecSettings, config: FeedConfig) -> None:
        self.session, self.settings, self.config = session, settings, config
        self._prices = np.array(settings.prices)[:, None]
        self._encoded: Arrays | None = None

    @property
    def plan_values(self) -> PlanValues | None:
        """Learned values of whole plans; None if they were not learned."""
        if not self.settings.plan:
            return None
        return PlanValues(np.array(self.settings.plan), np.array(self.settings.plan_spread))

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: a session begins with a phone's own."""

    def see(self, observation: Observation) -> None:
        """Do nothing: the phone has appended the events."""

    def scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Scores of the order head, (1, N) float32; the encodings are kept for :meth:`judge`."""
        self._encoded = self._encode(self._seen(observation))
        present = (observation["pool"] != 0).any(2)
        return np.where(present, self._encoded["scores"][:, 0], np.float32(ABSENT))

    def judge(self, observation: Observation, rows: np.ndarray, scores: np.ndarray) -> Judgement:
        """Matrix and gain, from what :meth:`scores` has encoded."""
        seen = self._seen(observation)
        encoded, self._encoded = self._encoded or self._encode(seen), None
        order, graph = pool_order(observation, scores), self.session.model.graphs[EDGEREC]["matrix"]
        goods = goods_in_order(observation["pool"], order, graph.fixed("goods")[0], self.config.n_types)
        found = self.session.decide(
            EDGEREC,
            "matrix",
            _one(seen),
            goods=goods[0],
            mixed=encoded["mixed"],
            organic=encoded["organic"][order[0, : graph.fixed("organic")[0]]],
        )
        values = slot_values(found, observation, goods, self.config)
        return Judgement(values, self.gain(observation, rows), self._prices)

    def gain(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Gain of a request, (1,) float64."""
        seen = self._seen(observation)
        signals = intent_signals(seen, self.config)
        gain = self.session.decide(EDGEREC, "gain", _one(seen), signals=signals)["gain"]
        return gain[:, 0].astype(np.float64)

    def _encode(self, seen: Observation) -> Arrays:
        interest = current_interest(seen, self.config)
        return self.session.decide(EDGEREC, "order", _one(seen), interest=interest)

    def _seen(self, observation: Observation) -> Observation:
        """The part of the observation that the agent may read."""
        if self.settings.page_views:
            return observation
        context = observation["context"].copy()
        context[:, PAGE_VIEWS] = 0
        return observation | {"page_views": np.zeros_like(observation["page_views"]), "context": context}


class DeviceLogits:
    """Plays the most probable legal action of a policy trained by MaskablePPO.

    Args:
        name: name of the policy.
        session: the phone's session.
        groups: numbers of actions of its groups; empty: none.
        keys: keys that a plain network reads side by side; empty: the graph names what it reads.
    """

    def __init__(self, name: str, session: DeviceSession, groups: list[int], keys: list[str]) -> None:
        self.name, self.session, self.groups, self.keys = name, session, groups, keys
        self._last = np.zeros((1, 0), np.float32)  # probabilities
        self._n_pool = 0

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the policy has no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (1,) int64, legal under the mask."""
        told: Arrays = {}
        if self.keys:
            parts = [observation[key].reshape(1, -1).astype(np.float32) for key in self.keys]
            told["flat"] = np.concatenate(parts, axis=1)
        logits = self.session.decide(PPO, "logits", _one(observation), **told)["logits"]
        self._last = legal_probabilities(logits, observation["action_mask"])
        self._n_pool = observation["pool"].shape[1]
        return best_of_groups(self._last, self.groups or [self._last.shape[1]])

    def explain(self, row: int) -> Explanation | None:
        """Return the log-probabilities of the pool rows, if they are actions of the track."""
        if self._last.shape[1] < self._n_pool:
            return None
        with np.errstate(divide="ignore"):
            return Explanation(scores=np.log(self._last[row, : self._n_pool]))


def slot_values(found: Arrays, observation: Observation, goods: np.ndarray, config: FeedConfig) -> SlotValues:
    """Values at the slots ahead from ESAN's probabilities.

    Args:
        found: `of_cards` (M, T, 4) and `of_goods` (T, 4).
        observation: of one session.
        goods: (1, at least T, F + T) goods cards in the order in which they will be shown.
        config: the feed.
    """
    n_slots = len(found["of_goods"])
    there = (observation["cards"][0] != 0).any(axis=1)
    listed = (goods[0, :n_slots] != 0).any(axis=1)
    of_cards = found["of_cards"] * there[:, None, None]
    of_goods = found["of_goods"] * listed[:, None]
    value = config.reward.value
    cards = value(of_cards[..., CLICK], of_cards[..., PURCHASE], card=1.0)
    organic = value(of_goods[..., CLICK], of_goods[..., PURCHASE], card=0.0)
    leave = of_goods[:, LEAVE]
    stay = np.concatenate([np.ones(1, np.float32), np.cumprod(1 - leave)[:-1]])
    stay = stay * (1 - leave[0]) ** config.lookahead  # for cards on screen that are not answered yet
    slot = np.rint(observation["context"][0, SLOT] * config.max_slots) + np.arange(n_slots)
    left = slots_left(observation, config)
    exposure = stay * (slot < config.max_slots - config.lookahead) * (np.arange(n_slots) < left[0])
    return SlotValues(*(part[None].astype(np.float64) for part in (cards, organic, exposure)))


def _one(observation: Observation) -> Observation:
    """The observation of the only session."""
    return {key: values[0] for key, values in observation.items()}
