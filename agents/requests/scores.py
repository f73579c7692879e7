"""Scores of a request now, from the observation: uplift, outcome, change of intent, a policy, chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerec_gym.agents.perception.intent_change import SIGNALS, intent_signals
from edgerec_gym.agents.requests.train import effects_alone, uplift
from edgerec_gym.agents.requests.uplift_models import UpliftModel
from edgerec_gym.config import FeedConfig
from edgerec_gym.policy import Observation

if TYPE_CHECKING:
    from edgerec_gym.agents.ppo.trained_policy import TrainedPolicy


class UpliftScore:
    """Estimated gain of a request: the effect, or with `outcome` the outcome after it instead."""

    def __init__(self, network: UpliftModel, outcome: bool = False, threads: int = 1) -> None:
        self.network, self.outcome, self.threads = network.eval(), outcome, threads

    def __call__(self, observation: Observation) -> np.ndarray:
        """Score (R,) float32."""
        seen = decision_inputs(observation)
        if self.outcome:
            return uplift(self.network, seen, self.threads).mu1.numpy()
        return effects_alone(self.network, seen, self.threads)


class IntentScore:
    """Distance, 0..2, of the interest from the one that the page was ranked for."""

    def __init__(self, config: FeedConfig) -> None:
        self.config = config

    def __call__(self, observation: Observation) -> np.ndarray:
        """Score (R,) float32."""
        return intent_signals(observation, self.config)[:, SIGNALS.index("change")]


class PolicyScore:
    """Log-odds of a request under a trained stochastic policy of EdgeFeedRequest-v0."""

    def __init__(self, policy: TrainedPolicy) -> None:
        self.policy = policy

    def __call__(self, observation: Observation) -> np.ndarray:
        """Score (R,) float32."""
        found = self.policy.log_probabilities(observation)
        return found[:, 1] - found[:, 0]


class ChanceScore:
    """Uniform in 0..1: at a price of 1 - p, each moment is chosen with probability p."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, observation: Observation) -> np.ndarray:
        """Score (R,) float64."""
        return self.generator.random(len(observation["context"]))


def decision_inputs(observation: Observation) -> Observation:
    """Return the part of an observation that uplift estimators were trained on."""
    return {key: values for key, values in observation.items() if key not in ("cards", "action_mask")}
