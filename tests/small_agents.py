"""An untrained agent of every kind, as its torch policy and as what is exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from small_rerankers import build

from edgerec_gym.agents.device.settings import InsertionSettings, PolicySettings, ValueSettings
from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.judges import JointNetwork
from edgerec_gym.agents.edgerec.load import EdgeRecConfig, make_network
from edgerec_gym.agents.edgerec.rules import Rules
from edgerec_gym.agents.export.whole import WholeAgent, WholeInsertion, WholePolicy, WholeUplift, WholeValues
from edgerec_gym.agents.insertion.esan import ESAN, ESANConfig
from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.policies import InsertionPlan
from edgerec_gym.agents.insertion.policies import policy_of as insertion_policy
from edgerec_gym.agents.insertion.train import build as build_esan
from edgerec_gym.agents.ppo.trained_policy import (
    POINTER,
    PPOConfig,
    TrainedPolicy,
    policy_class,
    policy_kwargs,
)
from edgerec_gym.agents.requests import train as requests
from edgerec_gym.agents.requests.dqn import DQNScore
from edgerec_gym.agents.requests.dqn import make_network as make_dqn
from edgerec_gym.agents.requests.planner import RequestPlanner
from edgerec_gym.agents.requests.scores import UpliftScore
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.agents.rerank.train import policy_of
from edgerec_gym.agents.values.network import ValueConfig
from edgerec_gym.agents.values.policy import ValuePolicy
from edgerec_gym.agents.values.scores import ValueScore
from edgerec_gym.agents.values.train import make_network as make_values
from edgerec_gym.policy import Policy
from tests.small_pools import stir

HIDDEN = 8
Made = tuple[Any, Policy]  # what is exported, and the torch policy
PRICE = 0.02


def reranker(agent: str, env: Any, **settings: Any) -> Made:
    network = stir(build(agent, env.config, RerankerConfig(hidden=HIDDEN, **settings)))
    return network, policy_of(agent, network, env)


def uplift_model(agent: str, config: Any, seed: int = 1, **settings: Any) -> Any:
    hyper = requests.UpliftConfig(**{"behaviour": 4, "hidden": HIDDEN, **settings})
    return stir(requests.build(agent, config, hyper), seed, 0.2)


def values(agent: str, env: Any, **settings: Any) -> Made:
    config = env.config
    network = stir(make_values(config, ValueConfig(hidden=HIDDEN, keys=4, heads=3, **settings)))
    uplift = uplift_model("uplift-x", config)
    told = ValueSettings(track="joint", margin=PRICE)
    if env.track != "joint":
        return WholeValues(network, uplift, told), policy_of(agent, network, env)
    price, age = -config.reward.request, config.request_latency
    policy = ValuePolicy(agent, config, ValueScore(network), PRICE, UpliftScore(uplift), price, age)
    return WholeValues(network, uplift, told), policy


def esan_network(config: Any, **settings: Any) -> ESAN:
    network: ESAN = stir(
        build_esan(config, ESANConfig(hidden=HIDDEN, horizon=5, **settings), (True,) * 4), size=0.2
    )
    return network


def esan(agent: str, env: Any, **settings: Any) -> Made:
    network = esan_network(env.config, **settings)
    plan = InsertionPlan(agent, NetworkValues(network), env.config, price=PRICE)
    return WholeInsertion(network, InsertionSettings(price=PRICE)), insertion_policy(plan, env.track)


def uplift(agent: str, env: Any, **settings: Any) -> Made:
    network = uplift_model(agent, env.config, **settings)
    policy = RequestPlanner(agent, UpliftScore(network), -env.config.reward.request)
    return WholeUplift(network, env.config), policy


def dqn(agent: str, env: Any) -> Made:
    network = stir(make_dqn(env.config, HIDDEN))
    return network, RequestPlanner(agent, DQNScore(network, env.config), 0.0)


def ppo(agent: str, env: Any, **settings: Any) -> Made:
    hyper = PPOConfig(hidden=HIDDEN, **settings)
    spaces: Any = (env.single_observation_space, env.single_action_space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = policy_class(agent)(*spaces, hyper.schedule, **policy_kwargs(agent, env.track, hyper))
    stir(network, size=0.2).set_training_mode(False)
    if agent == POINTER:
        if env.track == "request":
            torch.nn.init.constant_(network.features_extractor.request_scorer.bias, 2.0)  # ask now and then
        told = PolicySettings(track=env.track, groups=list(network.features_extractor.group_sizes))
    else:
        told = PolicySettings(track=env.track, keys=list(network.features_extractor.extractors))
    return WholePolicy(network, env.config, told), TrainedPolicy(agent, network)


def edgerec(agent: str, env: Any, joint: bool = False, **settings: Any) -> Made:
    network = stir(make_network(esan_network(env.config), EdgeRecConfig(hidden=HIDDEN, **settings)), size=0.2)
    rules = Rules.from_dict({"decide": {"joint": joint}, "insert": {"price": PRICE}})
    if joint:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            network.plan.copy_(torch.randn(network.plan.shape, generator=generator))
            network.plan_spread.copy_(0.01 * torch.randn(network.plan_spread.shape, generator=generator))
    return WholeAgent(network, rules), EdgeRec(JointNetwork(network), env.config, rules)


MAKERS: dict[str, Callable[..., Made]] = {
    **{name: reranker for name in ("dnn", "dlcm", "prm", "setrank", "seq2slate", "crban", "pointer")},
    **{name: values for name in ("distilled-values", "values-pg")},
    **{name: esan for name in ("esan", "esan-pg")},
    **{name: uplift for name in ("uplift-t", "uplift-x", "uplift-class", "uplift-dragon")},
    **{name: ppo for name in ("pointer-ppo", "flat-ppo")},
    "request-dqn": dqn,
    "edgerec": edgerec,
}
