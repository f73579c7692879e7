"""Judges of the EdgeRec agent: the joint network, or separately trained parts side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edgerec_gym.agents.edgerec.agent import Judgement
from edgerec_gym.agents.edgerec.network import READ, Behaviour, Coded, EdgeRecNetwork
from edgerec_gym.agents.edgerec.values import PlanValues
from edgerec_gym.agents.insertion.esan import ESAN
from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.train import load_network
from edgerec_gym.agents.insertion.values import SlotValues, pool_order, slots_left
from edgerec_gym.agents.learning.tensors import PLAY_BATCH, TensorObservation, torch_threads
from edgerec_gym.agents.list_policy import EXPOSURES, PAGE_VIEWS
from edgerec_gym.agents.perception.perception import BehaviourCodes, PerceptionState
from edgerec_gym.agents.registry import DISTILLED, ESTIMATOR, GENERATOR, INSERTER, RERANKER, find_agent
from edgerec_gym.agents.requests.scores import UpliftScore
from edgerec_gym.agents.requests.train import load_model
from edgerec_gym.agents.requests.uplift_models import UpliftModel
from edgerec_gym.agents.rerank.reranker import ListScorer, RerankPolicy
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.runs import read_run


class Parts:
    """The separately trained parts together, each with its own perception.

    Args:
        reranker: orders the pool.
        esan: values cards at slots.
        uplift: estimates what a request gains.
        threads: torch threads.
    """

    def __init__(self, reranker: ListScorer, esan: ESAN, uplift: UpliftModel, threads: int = 1) -> None:
        self.reranker, self.esan, self.uplift = reranker, esan, uplift
        self._order = RerankPolicy("parts", reranker, threads)
        self._values, self._gain = NetworkValues(esan, threads), UpliftScore(uplift, threads=threads)
        self.plan_values = None
        self._price = np.zeros((esan.config.n_cards, 1))

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the parts read the observation's histories."""

    def see(self, observation: Observation) -> None:
        """Do nothing."""

    def scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Scores of the re-ranker."""
        return self._order.scores(observation)

    def judge(self, observation: Observation, rows: np.ndarray, scores: np.ndarray) -> Judgement:
        """Values from ESAN and gain from the uplift model."""
        order = pool_order(observation, scores)
        values = self._values.values(observation, order, self.esan.config.page_size)
        return Judgement(values, self.gain(observation, rows), self._price)

    def gain(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Gain from the uplift model."""
        return np.asarray(self._gain(observation), np.float64)


KINDS = {  # by family
    RERANKER: "re-ranker",
    GENERATOR: "re-ranker",
    DISTILLED: "re-ranker",
    INSERTER: "esan",
    ESTIMATOR: "uplift",
}


def load_parts(folders: list[Path], config: FeedConfig, threads: int = 1) -> Parts:
    """Load one run each of a re-ranker that scores, of ESAN, and of an uplift model, in any order.

    Raises:
        InputError: a part is missing, is given twice or is none of these; broken files; other sizes.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        agent = read_run(folder).agent
        kind = KINDS.get(find_agent(agent).family)
        if kind is None or kind in found:
            raise InputError(
                f"{folder} holds the agent {agent!r}; edgerec is based on one re-ranker, one esan and one "
                "uplift model"
            )
        found[kind] = folder
    for kind, example in (("re-ranker", "crban"), ("esan", "esan"), ("uplift", "uplift-x")):
        if kind not in found:
            raise InputError(f"agent 'edgerec' needs a run of {example!r}: give it with --based-on")
    load: Any = find_agent(read_run(found["re-ranker"]).agent).code("load_network") or load_reranker
    reranker = load(found["re-ranker"], config)
    if not isinstance(reranker, ListScorer):
        raise InputError(f"{found['re-ranker']} emits lists; edgerec learns its order from one that scores")
    return Parts(reranker, load_network(found["esan"], config), load_model(found["uplift"], config), threads)


class JointNetwork:
    """The joint network, with a perception that processes one event at a time.

    Args:
        network: the agent's network.
        threads: torch threads.
    """

    def __init__(self, network: EdgeRecNetwork, threads: int = 1) -> None:
        self.network, self.threads = network.eval(), threads
        self._state: PerceptionState = {}
        self._counts: dict[str, np.ndarray] = {}
        self._encoded: list[_Encoded] = []

    @property
    def plan_values(self) -> PlanValues | None:
        """Learned values of whole plans; None if they were not learned."""
        network = self.network
        if not network.plan.any():
            return None
        return PlanValues(network.plan.double().numpy(), network.plan_spread.double().numpy())

    def reset(self, mask: np.ndarray) -> None:
        """Forget what happened in the masked rows."""
        perception = self.network.esan.perception
        if not self._state or len(self._counts["exposures"]) != len(mask):
            self._state = perception.start(len(mask))
            self._counts = {name: np.zeros(len(mask), np.int64) for name in self._state}
        rows = torch.from_numpy(np.flatnonzero(mask))
        for name, state in self._state.items():
            self._counts[name][mask] = 0
            state.count[rows] = 0
            state.hidden[:, rows] = 0
            state.action_hidden[:, rows] = 0

    def see(self, observation: Observation) -> None:
        """Encode the new events, one GRU step each."""
        config = self.network.config
        for name, column in (("exposures", EXPOSURES), ("page_views", PAGE_VIEWS)):
            if name == "page_views" and not self.network.page_views:
                continue
            count = np.rint(observation["context"][:, column] * config.max_slots).astype(np.int64)
            new = count - self._counts[name]
            history, self._counts[name] = observation[name], count
            length = (history != 0).any(2).sum(1)  # a session that was joined late: all of its history
            new = np.minimum(np.maximum(new, 0), length)
            for back in range(int(new.max(initial=0)), 0, -1):
                rows = np.flatnonzero(new >= back)
                event = np.ascontiguousarray(history[rows, length[rows] - back], np.float32)
                with torch_threads(self.threads):
                    self.network.esan.perception.append(
                        self._state, name, torch.from_numpy(rows), torch.from_numpy(event)
                    )

    def behaviour(self, rows: np.ndarray) -> Behaviour:
        """Codes of what has happened in some rows (R,) int64, padded to the longest history."""
        found, at = {}, torch.from_numpy(rows)
        for name, state in self._state.items():
            part = replace(state, items=state.items[at], actions=state.actions[at], count=state.count[at])
            codes = self.network.esan.perception.encoder(name).codes(part)
            some = slice(max(1, int(codes.present.sum(1).max())) if len(rows) else 1)
            found[name] = BehaviourCodes(codes.items[:, some], codes.values[:, some], codes.present[:, some])
        return found

    def scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Scores of the order head; the encodings are kept for :meth:`judge`."""
        self._encoded = self._encode(observation, rows)
        with torch_threads(self.threads), torch.no_grad():
            parts = [self.network.scores(part.observation, part.coded) for part in self._encoded]
        return torch.cat(parts).numpy()

    def judge(self, observation: Observation, rows: np.ndarray, scores: np.ndarray) -> Judgement:
        """Matrix and gain, from what :meth:`scores` has encoded."""
        encoded, self._encoded = self._encoded or self._encode(observation, rows), []
        network, n_slots = self.network, self.network.config.page_size
        order = torch.from_numpy(pool_order(observation, scores))
        parts, at = [], 0
        with torch_threads(self.threads), torch.no_grad():
            for part in encoded:
                end = at + len(part.observation["pool"])
                matrix = network.matrix(part.observation, part.coded, order[at:end], n_slots)
                parts.append((*matrix, network.gain(part.observation, part.behaviour)))
                at = end
        cards, goods, exposure, gain = (torch.cat(p).double().numpy() for p in zip(*parts, strict=True))
        left = slots_left(observation, network.config)
        values = SlotValues(cards, goods, exposure * (np.arange(n_slots) < left[:, None]))
        return Judgement(values, gain, network.prices().detach().double().numpy()[:, None])

    def gain(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Gain of the request head, which needs no cards."""
        seen, behaviour, parts = self.network.seen(observation), self.behaviour(rows), []
        with torch_threads(self.threads), torch.no_grad():
            for at in range(0, len(rows), PLAY_BATCH):
                some = slice(at, at + PLAY_BATCH)
                parts.append(self.network.gain(agent_inputs(seen, some), _some(behaviour, some)))
        found: np.ndarray = torch.cat(parts).double().numpy()
        return found

    def _encode(self, observation: Observation, rows: np.ndarray) -> list[_Encoded]:
        seen, behaviour = self.network.seen(observation), self.behaviour(rows)
        parts = []
        with torch_threads(self.threads), torch.no_grad():
            for at in range(0, len(rows), PLAY_BATCH):
                some = slice(at, at + PLAY_BATCH)
                tensors = agent_inputs(seen, some)
                codes = _some(behaviour, some)
                parts.append(_Encoded(tensors, codes, self.network.encode(tensors, codes)))
        return parts


class _Encoded(NamedTuple):
    observation: TensorObservation
    behaviour: Behaviour
    coded: Coded


def _some(behaviour: Behaviour, rows: slice) -> Behaviour:
    return {
        name: BehaviourCodes(part.items[rows], part.values[rows], part.present[rows])
        for name, part in behaviour.items()
    }


def agent_inputs(observation: Observation, rows: slice | np.ndarray = slice(None)) -> TensorObservation:
    """Convert some rows of an observation to tensors, cards included."""
    return {
        key: torch.from_numpy(np.array(observation[key][rows], np.float32, order="C"))
        for key in READ
        if key in observation
    }
