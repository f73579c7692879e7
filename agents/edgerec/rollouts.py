"""Sessions of EdgeFeed-v0 played by the EdgeRec agent, with the noise and the records that gradients need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.edgerec.agent import Judgement
from edgerec_gym.agents.edgerec.judges import JointNetwork, Parts
from edgerec_gym.agents.edgerec.network import Behaviour, EdgeRecNetwork
from edgerec_gym.agents.insertion.gradient import perturbation
from edgerec_gym.agents.insertion.values import pool_order
from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.list_policy import SLOT
from edgerec_gym.agents.perception.perception import BehaviourCodes
from edgerec_gym.agents.rerank.reranker import ABSENT
from edgerec_gym.answers import CLICK_PROBABILITY, PURCHASE_PROBABILITY
from edgerec_gym.answers import SLOT as FOCUS_SLOT
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.vector_env import EdgeFeedVectorEnv


def play_sessions(policy: Policy, env: EdgeFeedVectorEnv, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Play one session per row to its end.

    Args:
        policy: the policy; it is reset.
        env: an environment of the track joint.
        seeds: seeds of the rows, (B,).

    Returns:
        (B, slots) float64 expected reward of the card placed at each slot (the users' click and purchase
        probabilities), with the cost of a request at the slot where it was sent.
    """
    batch, config, n_rows = env.batch, env.config, env.num_envs
    a, weights, rows = batch.arrays, config.reward, np.arange(env.num_envs)
    env.reset(seed=[int(seed) for seed in seeds])
    policy.reset(np.ones(n_rows, np.bool_))
    earned, done = np.zeros((n_rows, config.max_slots)), np.zeros(n_rows, np.bool_)
    while not done.all():
        slot = np.minimum(a.slot, config.max_slots - 1).astype(np.int64)
        actions = policy.act(batch.observation(copy=False))
        batch.step(actions, done)
        earned[rows, slot] += np.where(~done & (a.sent == 1), weights.request, 0.0)
        answered = ~done & a.focus_active
        value = weights.click * a.response[:, CLICK_PROBABILITY].astype(np.float64)
        value += weights.purchase * a.response[:, PURCHASE_PROBABILITY]
        focus = np.where(answered, a.focus_context[:, FOCUS_SLOT], 0).astype(np.int64)
        earned[rows, focus] += np.where(answered, value, 0.0)
        done |= a.terminated | a.truncated
    return earned


class Moments(NamedTuple):
    """R moments at which plans were made, or lists of them.

    Attributes:
        observation: inputs of the network, (R, ...) each.
        behaviour: codes of what had happened.
        row, slot: (R,) int64, in the batch and in the session.
        told: what a recorder kept in addition, (R, ...) each.
    """

    observation: TensorObservation
    behaviour: Behaviour
    row: np.ndarray
    slot: np.ndarray
    told: dict[str, Tensor]

    def take(self, index: np.ndarray) -> Moments:
        """Select moments by index (K,) int64."""
        at = torch.from_numpy(index)
        return Moments(
            {key: values[at] for key, values in self.observation.items()},
            {
                name: BehaviourCodes(part.items[at], part.values[at], part.present[at])
                for name, part in self.behaviour.items()
            },
            self.row[index],
            self.slot[index],
            {key: values[at] for key, values in self.told.items()},
        )


def joined(parts: list[Moments]) -> Moments:
    """Join moments; shorter histories are padded."""

    def codes(name: str) -> BehaviourCodes:
        found = [part.behaviour[name] for part in parts]
        longest = max(part.present.shape[1] for part in found)
        return BehaviourCodes(
            torch.cat([_padded(part.items, longest) for part in found]),
            torch.cat([_padded(part.values, longest) for part in found]),
            torch.cat([_padded(part.present, longest) for part in found]),
        )

    first = parts[0]
    return Moments(
        {key: torch.cat([part.observation[key] for part in parts]) for key in first.observation},
        {name: codes(name) for name in first.behaviour},
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.slot for part in parts]),
        {key: torch.cat([part.told[key] for part in parts]) for key in first.told},
    )


def _padded(values: Tensor, length: int) -> Tensor:
    missing = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
    return torch.cat((values, missing), 1)


class Recorder(JointNetwork):
    """The joint network as a judge that records the moments it has judged."""

    def __init__(self, network: EdgeRecNetwork) -> None:
        super().__init__(network)
        self.moments: list[Moments] = []

    def reset(self, mask: np.ndarray) -> None:
        """Forget what happened, and the recorded moments."""
        super().reset(mask)
        self.moments = []

    def keep(self, observation: Observation, rows: np.ndarray, **told: np.ndarray) -> None:
        """Record the moments that are currently encoded."""
        slot = np.rint(observation["context"][:, SLOT] * self.network.config.max_slots).astype(np.int64)
        at = 0
        for part in self._encoded:
            n = len(part.observation["pool"])
            some = slice(at, at + n)
            values = {key: torch.from_numpy(np.asarray(v[some], np.float32)) for key, v in told.items()}
            self.moments.append(Moments(part.observation, part.behaviour, rows[some], slot[some], values))
            at += n


class Explorer(Recorder):
    """Adds Gaussian noise to the outputs of the heads, and records it: perturb and plan.

    Args:
        network: the judge.
        generator: generator of the noise.
        noise: standard deviations of order scores (logits), of card values and of a request's gain (reward).
    """

    def __init__(
        self,
        network: EdgeRecNetwork,
        generator: np.random.Generator,
        noise: tuple[float, float, float],
    ) -> None:
        super().__init__(network)
        self.generator, self.noise = generator, noise

    def scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Scores with noise."""
        found = super().scores(observation, rows)
        present = found > ABSENT / 2
        self._order_noise = self.generator.standard_normal(found.shape) * present
        return (found + self.noise[0] * self._order_noise).astype(np.float32)

    def judge(self, observation: Observation, rows: np.ndarray, scores: np.ndarray) -> Judgement:
        """Values and gain with noise; the moment is recorded."""
        if not self._encoded:  # the order is not the agent's to decide
            self._encoded = self._encode(observation, rows)
            self._order_noise = np.zeros(scores.shape)
        encoded = self._encoded
        found = super().judge(observation, rows, scores)
        cards = perturbation(self.generator, found.values.cards.shape)
        cards *= (found.values.cards > 0) & (found.values.exposure[:, None] > 0)
        request = self.generator.standard_normal(len(rows)) * (observation["action_mask"][:, -1] != 0)
        self._encoded = encoded
        self.keep(
            observation,
            rows,
            order=pool_order(observation, scores),
            order_noise=self._order_noise,
            card_noise=cards,
            request_noise=request,
        )
        self._encoded = []
        return found._replace(
            price=found.price - self.noise[1] * cards, gain=found.gain + self.noise[2] * request
        )


class Teachers(Recorder):
    """Lets the parts decide while the network encodes what they see; records what they say."""

    def __init__(self, network: EdgeRecNetwork, parts: Parts) -> None:
        super().__init__(network)
        self.parts = parts

    def scores(self, observation: Observation, rows: np.ndarray) -> np.ndarray:
        """Scores of the re-ranker."""
        return self.parts.scores(observation, rows)

    def judge(self, observation: Observation, rows: np.ndarray, scores: np.ndarray) -> Judgement:
        """Judgement of the parts; the moment is recorded."""
        found = self.parts.judge(observation, rows, scores)
        self._encoded = self._encode(observation, rows)
        self.keep(observation, rows, scores=scores, gain=found.gain)
        self._encoded = []
        return found
