"""Agents read feeds with named responses (like, hate, ...), whose histories are wider."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from small_rerankers import RERANKERS, build
from small_responses import Responding
from small_table import Place, table

from edgerec_gym.agents.baselines import DeviceGreedy
from edgerec_gym.agents.list_policy import ScoredList, SlotBySlot
from edgerec_gym.agents.perception.live_interest import LiveInterest
from edgerec_gym.agents.perception.perception import Perception
from edgerec_gym.agents.ppo.pointer_policy import PointerNetwork
from edgerec_gym.agents.registry import AGENTS
from edgerec_gym.agents.rerank.reranker import ListScorer, RerankerConfig
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.commands.policies import _note_responses
from edgerec_gym.spaces import ObservationSizes
from edgerec_gym.vector_env import EdgeFeedVectorEnv

NAMES = ("like", "hate", "follow")


def played(slots: int = 9, names: tuple[str, ...] = NAMES) -> tuple[EdgeFeedVectorEnv, dict[str, np.ndarray]]:
    env = EdgeFeedVectorEnv(3, track="rerank", scenario="lite", users=Responding(), responses=names)
    observation, _ = env.reset(seed=0)
    for _ in range(slots):
        observation, *_ = env.step(observation["action_mask"].argmax(axis=1))
    return env, observation


def changed(observation: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same observation with other responses."""
    tensors = {key: torch.from_numpy(value.copy()) for key, value in observation.items()}
    given = tensors["exposures"][..., -4:-1]
    given[:] = (1 - given) * (tensors["exposures"] != 0).any(-1, keepdim=True)  # padding stays zero
    return tensors


def test_sizes_are_read_from_the_space() -> None:
    env, _ = played(0)
    assert ObservationSizes.from_space(env.single_observation_space).n_responses == 3
    assert ObservationSizes.from_space(played(0, ())[0].single_observation_space).n_responses == 0


def test_perception_reads_the_responses() -> None:
    env, observation = played()
    torch.manual_seed(0)
    perception = Perception(env.config, 8).eval()
    tensors = {key: torch.from_numpy(value.copy()) for key, value in observation.items()}
    with torch.no_grad():
        before, after = perception(tensors), perception(changed(observation))
    assert (before["exposures"].values != after["exposures"].values).any()
    assert torch.equal(before["exposures"].items, after["exposures"].items)


@pytest.mark.parametrize("agent", RERANKERS)
def test_every_reranker_scores_such_a_feed(agent: str) -> None:
    env, observation = played()
    network = build(agent, env.config, RerankerConfig(hidden=8)).eval()
    tensors = {key: torch.from_numpy(value.copy()) for key, value in observation.items()}
    n_pool = env.config.pool_size
    with torch.no_grad():
        found = network.score(tensors) if isinstance(network, ListScorer) else network.emit(tensors, n_pool)
    assert found.shape == (3, n_pool) and torch.isfinite(found).any(dim=1).all()


def test_dwell_and_deletions_are_found_at_their_columns() -> None:
    (_, wide), (_, plain) = played(), played(names=())
    np.testing.assert_array_equal(LiveInterest().interest(wide), LiveInterest().interest(plain))
    for names in (NAMES, ()):
        policy = SlotBySlot(ScoredList(DeviceGreedy(), 10))
        (env, observation), why = played(0, names), set()
        policy.reset(np.ones(3, np.bool_))
        for _ in range(8):
            observation, *_ = env.step(policy.act(observation))
            why |= set(policy._why.tolist())
        assert ("deletion" in why) == bool(names)  # a hate counts as a deletion


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_pointer_network_reads_the_responses(recurrent: bool) -> None:
    env, observation = played()
    torch.manual_seed(0)
    n_actions = int(env.single_action_space.n)  # type: ignore[attr-defined]
    network = PointerNetwork(env.single_observation_space, n_actions, "rerank", 8, 2, recurrent).eval()
    tensors = {key: torch.from_numpy(value.copy()) for key, value in observation.items()}
    with torch.no_grad():
        before, after = network(tensors), network(changed(observation))
    assert before.shape == (3, n_actions + 8) and (before != after).any()


def test_the_value_network_reads_the_responses() -> None:
    env, observation = played()
    torch.manual_seed(0)
    network = ValueNetwork(env.config, ValueConfig()).eval()
    tensors = {key: torch.from_numpy(value.copy()) for key, value in observation.items()}
    with torch.no_grad():
        before, after = network.score(tensors), network.score(changed(observation))
    assert before.shape == (3, env.config.pool_size) and (before != after).any()


def test_whoever_learns_clicks_alone_says_so_where_responses_count(tmp_path, capsys) -> None:
    place = Place(tmp_path)
    frame = table().with_columns(like=pl.col("rank") % 2, hate=pl.col("rank") // 4)
    place.run(frame, responses={"like": "like", "hate": "hate"}, feed={"reward": {"responses": {"hate": -2}}})
    whole = {name for name, agent in AGENTS.items() if not agent.clicks_alone}
    assert whole == {"pointer-ppo", "flat-ppo", "values-pg", "request-dqn"}
    for name in AGENTS:
        _note_responses(AGENTS[name], place.out, "lite")
        said = capsys.readouterr().err
        assert ("hate (-2) count in the reward" in said and f"but {name} learns" in said) == (
            name not in whole
        )
        assert said.count("\n") <= 1 and "like" not in said
    place.run(frame, out="plain", responses={"like": "like", "hate": "hate"})  # nothing weighs
    _note_responses(AGENTS["dnn"], place.out, "lite")
    assert not capsys.readouterr().err
