"""Policies of the track request, created in worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.ppo.trained_policy import load_policy as load_trained
from edgerec_gym.agents.registry import load_policy
from edgerec_gym.agents.requests import dqn
from edgerec_gym.agents.requests.planner import OneExtra, RequestPlanner, Score, TrueEffectPlanner
from edgerec_gym.agents.requests.scores import (
    ChanceScore,
    IntentScore,
    PolicyScore,
    UpliftScore,
)
from edgerec_gym.agents.requests.train import load_model
from edgerec_gym.agents.requests.waiting import Waiting, WaitingScore
from edgerec_gym.evaluation.cache import Place
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario

ENV_ID = "EdgeFeedRequest-v0"
HORIZON = 15  # slots over which effects are estimated and scored


def cool_down(scenario: Scenario) -> int:
    """Return a planner's minimum slots between requests: page size less latency, as automatic pages have."""
    return scenario.config.page_size - scenario.config.request_latency


def make_baseline(place: Place, kind: str, number: float = 0) -> Policy:
    """Return keep, one-extra, interval (every `number` slots), chance (rate `number`) or intent (price)."""
    scenario = Scenario.load(place.scenario)
    if kind == "interval":
        return make_policy("fixed-interval", place.env_id, every=int(number))
    if kind == "one-extra":
        return OneExtra()
    if kind == "chance":
        return RequestPlanner("chance", ChanceScore(place.seed), 1.0 - number)
    if kind == "intent":
        score = IntentScore(scenario.config)
        return RequestPlanner("intent", score, float(number), cool_down=cool_down(scenario))
    return make_policy(kind, place.env_id)


def make_planner(place: Place, run: str, price: float, outcome: bool = False) -> Policy:
    """Return the planner of an estimator's run at a price; `outcome` scores the outcome, not the effect."""
    scenario = Scenario.load(place.scenario)
    score = UpliftScore(load_model(run, scenario.config), outcome)
    return RequestPlanner("planner", score, price, cool_down=cool_down(scenario))


def make_waiting(place: Place, run: str, price: float, later: list[list[float]]) -> Policy:
    """Return the planner of an estimator's run that waits for the best moment of a page."""
    scenario = Scenario.load(place.scenario)
    estimate = UpliftScore(load_model(run, scenario.config))
    score = WaitingScore(estimate, Waiting(price, np.array(later)), scenario.config.page_size)
    return RequestPlanner("planner", score, price, cool_down=cool_down(scenario))


def make_oracle(place: Place, price: float) -> Policy:
    """Return the oracle at a price."""
    return TrueEffectPlanner(price, HORIZON, cool_down=cool_down(Scenario.load(place.scenario)))


def make_learner(place: Place, run: str) -> Policy:
    """Return the policy of a PPO or DQN run."""
    env = make_feeds(place.env_id, 1, scenario=place.scenario, users=place.users)
    return load_policy(run, env)


def make_learner_at(place: Place, run: str, price: float) -> Policy:
    """Return the planner at a price that takes its score from a PPO or DQN run."""
    scenario = Scenario.load(place.scenario)
    return RequestPlanner("planner", learner_score(run, scenario), price, cool_down=cool_down(scenario))


def learner_score(run: str | Path, scenario: Scenario) -> Score:
    """Return the score of a request from a run: values of DQN, or log-odds of PPO."""
    if read_run(run).agent == dqn.AGENT:
        return dqn.DQNScore(dqn.load_network(run, scenario.config), scenario.config)
    env = make_feeds(ENV_ID, 1, scenario=scenario, users="synthetic")
    return PolicyScore(load_trained(run, env))
