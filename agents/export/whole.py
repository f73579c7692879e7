"""Agents that decide more than an order, or an order alone, as parts of a device model.

For each agent, a function loads all that a run plays with, and another turns that into parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from torch import nn

from edgerec_gym.agents.device.settings import (
    EdgeRecSettings,
    InsertionSettings,
    PolicySettings,
    ValueSettings,
)
from edgerec_gym.agents.edgerec import load as edgerec
from edgerec_gym.agents.edgerec.network import EdgeRecNetwork
from edgerec_gym.agents.edgerec.rules import FILE, Rules, load_rules
from edgerec_gym.agents.export.insertion_graphs import edgerec_graphs, esan_graphs
from edgerec_gym.agents.export.list_graphs import scorer_graphs, seq2slate_graphs
from edgerec_gym.agents.export.parts import Parts
from edgerec_gym.agents.export.ppo_graphs import flat_graphs, pointer_graphs
from edgerec_gym.agents.export.request_graphs import dqn_graphs, uplift_graphs
from edgerec_gym.agents.export.value_graphs import value_graphs
from edgerec_gym.agents.insertion import train as insertion
from edgerec_gym.agents.insertion.esan import ESAN
from edgerec_gym.agents.ppo import trained_policy as ppo
from edgerec_gym.agents.ppo.pointer_policy import PointerNetwork
from edgerec_gym.agents.requests import dqn
from edgerec_gym.agents.requests import train as requests
from edgerec_gym.agents.requests.uplift_models import UpliftModel
from edgerec_gym.agents.rerank.dlcm import DLCM
from edgerec_gym.agents.rerank.dnn import DNN
from edgerec_gym.agents.rerank.prm import PRM
from edgerec_gym.agents.rerank.seq2slate import Seq2Slate
from edgerec_gym.agents.rerank.set_rank import SetRank
from edgerec_gym.agents.values import train as values
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.config import FeedConfig
from edgerec_gym.runs import Run
from edgerec_gym.spaces import action_space, observation_space


def scorer_parts(network: DNN | DLCM | PRM | SetRank, places: int) -> Parts:
    """Graphs of a re-ranker that reads no behaviour."""
    return Parts({"scorer": scorer_graphs(network)})


def seq2slate_parts(network: Seq2Slate, places: int) -> Parts:
    """Graphs of Seq2Slate, which writes lists as the generators do."""
    return Parts({"generator": seq2slate_graphs(network)})


@dataclass(frozen=True)
class WholeValues:
    """A run of values, with its estimator of requests if it has one."""

    network: ValueNetwork
    uplift: UpliftModel | None
    settings: ValueSettings


def load_values(run: Run, config: FeedConfig) -> WholeValues:
    """Load a run of distilled-values or values-pg."""
    network, uplift = values.load_network(run, config), None
    if run.record["track"] == "joint" and (run.root / values.UPLIFT).is_dir():
        uplift = requests.load_model(run.root / values.UPLIFT, config)
    margin = run.record.get("price", network.settings.margin)
    return WholeValues(network, uplift, ValueSettings(track=run.record["track"], margin=margin))


def values_parts(whole: WholeValues, places: int) -> Parts:
    """Graphs of values and, if requests are made, of what they gain."""
    graphs = {"values": value_graphs(whole.network)}
    if whole.uplift is not None:
        graphs["uplift"] = uplift_graphs(whole.uplift, whole.network.config)
    return Parts(graphs, settings={"values": msgspec.to_builtins(whole.settings)})


@dataclass(frozen=True)
class WholeInsertion:
    """A run of ESAN and its price of a card."""

    network: ESAN
    settings: InsertionSettings


def load_insertion(run: Run, config: FeedConfig) -> WholeInsertion:
    """Load a run of esan or esan-pg."""
    settings = InsertionSettings(price=run.record.get("price", 0.0))
    return WholeInsertion(insertion.load_network(run, config), settings)


def insertion_parts(whole: WholeInsertion, places: int) -> Parts:
    """Graphs of ESAN; a plan looks ahead to the end of a page."""
    graphs = esan_graphs(whole.network, whole.network.config.page_size)
    return Parts({"esan": graphs}, settings={"esan": msgspec.to_builtins(whole.settings)})


@dataclass(frozen=True)
class WholeUplift:
    """An uplift estimator and its feed."""

    network: UpliftModel
    config: FeedConfig


def load_uplift(run: Run, config: FeedConfig) -> WholeUplift:
    """Load a run of an uplift estimator."""
    return WholeUplift(requests.load_model(run, config), config)


def uplift_parts(whole: WholeUplift, places: int) -> Parts:
    """Graphs of the estimated effect."""
    return Parts({"uplift": uplift_graphs(whole.network, whole.config)})


def load_dqn(run: Run, config: FeedConfig) -> nn.Module:
    """Load a run of request-dqn."""
    return dqn.load_network(run, config)


def dqn_parts(network: Any, places: int) -> Parts:
    """The graph of a request's value beyond keeping."""
    return Parts({"dqn": dqn_graphs(network.q_net)})


@dataclass(frozen=True)
class WholePolicy:
    """A policy trained by MaskablePPO, and its feed."""

    network: nn.Module
    config: FeedConfig
    settings: PolicySettings


def load_ppo(run: Run, config: FeedConfig) -> WholePolicy:
    """Load a run of pointer-ppo or flat-ppo."""
    track = run.record["track"]
    network = ppo.load_network(run, observation_space(config, track), action_space(config, track))
    if isinstance(network.features_extractor, PointerNetwork):
        settings = PolicySettings(track=track, groups=list(network.features_extractor.group_sizes))
    else:
        settings = PolicySettings(track=track, keys=list(network.features_extractor.extractors))
    return WholePolicy(network, config, settings)


def ppo_parts(whole: WholePolicy, places: int) -> Parts:
    """The graph of the logits of all actions."""
    network: Any = whole.network
    if whole.settings.keys:
        graphs = flat_graphs(network, network.features_extractor.features_dim)
    else:
        graphs = pointer_graphs(network.features_extractor, whole.config)
    return Parts({"ppo": graphs}, settings={"ppo": msgspec.to_builtins(whole.settings)})


@dataclass(frozen=True)
class WholeAgent:
    """A run of edgerec and its rules."""

    network: EdgeRecNetwork
    rules: Rules


def load_agent(run: Run, config: FeedConfig) -> WholeAgent:
    """Load a run of edgerec; InputError if its rules do not fit the feed."""
    file = run.root / FILE
    rules = load_rules(file) if file.is_file() else Rules()
    rules.feed(config)
    return WholeAgent(edgerec.load_network(run, config), rules)


def agent_parts(whole: WholeAgent, places: int) -> Parts:
    """Graphs of the whole agent, what it has learned besides them, and its rules."""
    network = whole.network
    settings = EdgeRecSettings(
        page_views=network.page_views,
        prices=_numbers(network.prices()),
        plan=_numbers(network.plan) if network.plan.any() else [],
        plan_spread=[_numbers(row) for row in network.plan_spread] if network.plan.any() else [],
    )
    return Parts(
        {"edgerec": edgerec_graphs(network, min(network.config.page_size, network.config.pool_size))},
        settings={"edgerec": msgspec.to_builtins(settings)},
        files={FILE: whole.rules.to_toml().encode()},
    )


def _numbers(values: Any) -> list[float]:
    found: list[float] = values.detach().numpy().astype(np.float64).tolist()
    return found
