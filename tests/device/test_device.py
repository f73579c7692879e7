"""Exported re-rankers: what ONNX Runtime gives on the device is what torch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_devices import PLACES, crban, evaluator, exported, followed, one, pointer, search

from edgerec_gym.agents.device.policy import load_policy
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.reranker import Reranker
from edgerec_gym.agents.rerank.train import policy_of
from edgerec_gym.device.session import DeviceSession
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": 2, "actions": 0},
        {"exposures": 0, "raw_inputs": 0, "residual": 0},
        {"page_views": 0, "layers": 3},
        {"exposures": 0, "page_views": 0},
        {"match": 1},
        {"match": 1, "exposures": 0, "actions": 0},
    ],
)
def test_crban_scores_as_in_torch(tmp_path: Path, settings: dict[str, int]) -> None:
    network = crban(**settings)
    model = exported(network, tmp_path)
    for slots in (0, 3, 12):
        observation = moments(8, slots=slots)
        with torch.no_grad():
            expected = network.score(observation).numpy()
        for k in range(8):
            session = followed(model, one(observation, k))
            score = session.scores(one(observation, k))
            np.testing.assert_allclose(score, expected[k], rtol=1e-5, atol=1e-5)
            order = np.argsort(-expected[k], kind="stable")[:PLACES]
            assert session.rerank(one(observation, k)).tolist() == order.tolist()


@pytest.mark.parametrize("settings", [{}, {"layers": 2, "residual": 0}, {"match": 1}])
def test_the_generator_writes_the_same_lists(tmp_path: Path, settings: dict[str, int]) -> None:
    network = pointer(**settings)
    model = exported(network, tmp_path, 15)
    for slots in (0, 3, 12):
        observation = moments(8, slots=slots)
        with torch.no_grad():
            expected = network.emit(observation, 15).numpy()
            codes = network.encode(observation).codes.numpy()
        for k in range(8):
            session = followed(model, one(observation, k))
            assert session.rerank(one(observation, k)).tolist() == expected[k].tolist()
            left = (one(observation, k)["pool"] != 0).any(1)
            found = session.run(one(observation, k))["generator.encode"]
            np.testing.assert_allclose(found, codes[k, left], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"generator": False, "stability": 1.0},
        {"samples": 0, "beams": 1, "candidates": 3},
        {"beams": 30, "candidates": 20, "stability": 1.0, "seed": 3},
        {"identified": (True, False, True, False), "stability": 0.8},
        {"identified": (True, True, False, True)},
        {"match": 1},
    ],
)
def test_the_search_finds_the_same_lists(tmp_path: Path, settings: dict[str, Any]) -> None:
    network = search(**settings)
    model = exported(network, tmp_path)
    differ = set()
    for slots in (0, 3, 12):
        observation = moments(8, slots=slots)
        for k in range(8):
            alone = {key: values[k : k + 1] for key, values in observation.items()}
            with torch.no_grad():
                expected = network.search(alone, PLACES)
            found = followed(model, one(observation, k)).search(one(observation, k))
            rows = np.flatnonzero((one(observation, k)["pool"] != 0).any(1))
            assert rows[found.cards].tolist() == expected.rows[0].tolist()
            assert found.value == pytest.approx(expected.value.item(), rel=1e-5, abs=1e-6)
            assert found.stopped == expected.stopped.item()
            differ.add(tuple(found.cards))
    assert len(differ) > 5


def test_without_lookahead_a_card_is_judged_by_what_is_above(tmp_path: Path) -> None:
    config = Scenario.load("lite").config.replace(lookahead=0)
    network = SequenceSearch(config, evaluator(config), None, SearchConfig(stability=1.0)).eval()
    model = exported(network, tmp_path, config=config)
    observation = moments(6)
    screen = {"screen": observation["screen"][:, :0]}
    for k in range(6):
        with torch.no_grad():
            alone = {key: values[k : k + 1] for key, values in (observation | screen).items()}
            expected = network.search(alone, PLACES)
        found = followed(model, one(observation, k)).rerank(one(observation, k))
        assert found.tolist() == expected.rows[0].tolist()


@pytest.mark.parametrize("make", [crban, pointer, search])
def test_it_goes_on_after_a_restart_of_the_app(tmp_path: Path, make: Any) -> None:
    """Also when the ring of kept codes has gone round: events from the first on count."""
    model = exported(make(), tmp_path)
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (60, model.sizes["exposures"][1])).astype(np.float32)
    observation = one(moments(1), 0)
    whole, parted = DeviceSession(model), DeviceSession(model)
    for k, row in enumerate(rows):
        whole.append("exposures", row)
        parted.append("exposures", row)
        if k % 25 == 10:
            parted.save(tmp_path / "state")
            parted = DeviceSession(model)
            parted.restore(tmp_path / "state")
    assert parted.count == {"exposures": 60, "page_views": 0}
    assert parted.rerank(observation).tolist() == whole.rerank(observation).tolist()
    for key, kept in whole.kept.items():
        for field, values in vars(kept).items():
            assert np.array_equal(getattr(parted.kept[key], field), values)
    fresh = DeviceSession(model)
    for row in rows[-20:]:
        fresh.append("exposures", row)
    key = next(iter(whole.kept))
    ring = np.roll(whole.kept[key].keys, -(60 % len(whole.kept[key].keys)), axis=0)
    assert not np.allclose(fresh.kept[key].keys, ring, atol=1e-4), "the older events are remembered"


def test_interest_ages_with_the_events_since(tmp_path: Path) -> None:
    """Also when the ring has gone round: the last L events are those that a shorter session would keep."""
    model = exported(crban(match=1), tmp_path)
    length, width = model.sizes["exposures"]
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (length + 7, width)).astype(np.float32)
    kept = []
    for start in (0, 7):
        session = DeviceSession(model)
        for row in rows[start:]:
            session.append("exposures", row)
        read = session.kept["crban", "exposures"].read()
        assert sorted(read["ages"]) == list(range(length))
        kept.append(read["interests"][np.argsort(read["ages"])])
    np.testing.assert_allclose(kept[0], kept[1], rtol=1e-6)
    assert not np.allclose(kept[0][0], kept[0][1])


def test_codes_are_those_of_the_incremental_perception(tmp_path: Path) -> None:
    """Events beyond the history's length, too: the last L codes of cards, compared as the attention does."""
    network = crban()
    session = DeviceSession(exported(network, tmp_path))
    length, width = session.model.sizes["exposures"]
    rows = torch.rand(2 * length + 5, width, generator=torch.Generator().manual_seed(0))
    state = network.perception.start(1)
    for row in rows:
        network.perception.append(state, "exposures", torch.tensor([0]), row.unsqueeze(0))
        session.append("exposures", row.numpy())
    with torch.no_grad():
        key = network.attention["exposures"].key(state["exposures"].items[0])  # type: ignore[union-attr,operator]
    np.testing.assert_allclose(session.kept["crban", "exposures"].keys, key.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env_id", ["EdgeFeedSlate-v0", "EdgeFeedRerank-v0", "EdgeFeed-v0"])
@pytest.mark.parametrize("agent", ["crban", "pointer", "sequence-search"])
def test_it_plays_as_the_torch_policy_does(tmp_path: Path, lite: Scenario, env_id: str, agent: str) -> None:
    """As long as histories hold all that has happened; without draws, since they depend on the batch."""
    k = lite.config.slate_size
    network: Reranker = {"crban": crban, "pointer": pointer, "sequence-search": lambda: search(samples=0)}[
        agent
    ]()
    export_network(network, tmp_path / "device", find_agent(agent), "lite", lite.config, k)
    options: dict[str, Any] = {"scenario": lite, "users": "synthetic", "max_slots": 20}
    env = make_feeds(env_id, 6, **options)
    torch_policy, device_policy = policy_of(agent, network, env), load_policy(tmp_path / "device", env)
    for policy in (torch_policy, device_policy):
        policy.reset(np.ones(6, np.bool_))
    observation, _ = env.reset(seed=0)
    for _ in range(4 if env_id == "EdgeFeedSlate-v0" else 15):
        action, expected = device_policy.act(observation), torch_policy.act(observation)
        if isinstance(expected, dict):
            first = (np.argsort(-part["order"], axis=1, kind="stable")[:, :k] for part in (action, expected))
            assert np.array_equal(*first)
        else:
            assert np.array_equal(action, expected)
        observation, _, terminated, truncated, _ = env.step(action)
        for policy in (torch_policy, device_policy):
            policy.reset(terminated | truncated)
