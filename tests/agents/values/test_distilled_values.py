"""Distilled values: what is asked is what would have been answered, and runs learn, repeat and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.values import train as training
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.agents.values.play import LabelledSessions, loss_of, play_labelled, session_states
from edgerec_gym.agents.values.teacher import AskedUsers, _swapped
from edgerec_gym.agents.values.train import AGENT, make_network
from edgerec_gym.answers import FOCUSED
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

SMALL: dict[str, Any] = {"hidden": 8, "keys": 4, "heads": 2, "queries": 2}
QUICK: dict[str, Any] = SMALL | {
    "updates": 4,
    "sessions": 8,
    "batch_size": 4,
    "select_every": 2,
    "select_sessions": 8,
}


def small_network(lite: Scenario) -> ValueNetwork:
    network = make_network(lite.config, ValueConfig(**SMALL))
    stir(network)
    return network


def played(
    lite: Scenario, network: ValueNetwork, rows: int = 8, track: str = "rerank", **options: Any
) -> LabelledSessions:
    users = AskedUsers(lite, 4, **options)
    env = make_feeds(track, rows, scenario=lite, users=users, copy=False)
    generator = np.random.default_rng(0)
    return play_labelled(
        network, env, users, np.arange(rows), best=0.5, noise=np.zeros(rows), generator=generator
    )


def test_the_placed_candidate_is_answered_as_in_play(lite: Scenario) -> None:
    """Asking neither changes the session nor differs from what it is told."""
    network = small_network(lite)
    found = played(lite, network)
    told = lite.config.reward.value(found.click[..., 0], found.purchase[..., 0]).sum(1)
    assert np.allclose(told, found.value, atol=1e-5) and (found.value > 0).all()
    unasked = play(
        training.RerankPolicy(AGENT, network),
        env_id="rerank",
        scenario=lite,
        users="learned",
        sessions=8,
        seed=0,
        split="train",
    )
    assert np.allclose(unasked["value"], found.value, atol=1e-5)
    assert (unasked["exposures"] == found.lengths).all()


def test_candidates_are_different_cards_of_the_pool(lite: Scenario) -> None:
    found = played(lite, small_network(lite))
    asked = found.candidates[found.answered][:, :, :16]
    distance = (asked[:, :, None] - asked[:, None]).abs().sum(-1) + torch.eye(4)
    assert (distance > 0).all()
    assert torch.equal(found.candidates[found.answered][:, 0], found.cards[found.answered])


def test_cards_are_asked_about_and_placed_where_they_may(lite: Scenario) -> None:
    """In EdgeFeed-v0, the candidate asked about first is the card that was placed, of whatever type."""
    found = played(lite, small_network(lite), track="joint")
    at = found.answered
    assert torch.equal(found.candidates[at][:, 0], found.cards[at])
    types = found.candidates[at][..., -lite.config.n_types :].argmax(-1)
    assert (types > 0).any() and (types == 0).any()
    told = lite.config.reward.value(found.click[..., 0], found.purchase[..., 0]).sum(1)
    assert np.allclose(told, found.value, atol=1e-5)


def test_a_candidate_never_stands_next_to_itself(lite: Scenario) -> None:
    cards = np.arange(15, dtype=np.float32).reshape(1, 5, 3)
    windows = _swapped(cards, cards[:, FOCUSED + 1][:, None])
    assert np.array_equal(windows[0, FOCUSED], cards[0, FOCUSED + 1])
    assert np.array_equal(windows[0, FOCUSED + 1], cards[0, FOCUSED])


def test_caution_lowers_what_is_told(lite: Scenario) -> None:
    network = small_network(lite)
    mean, cautious = (played(lite, network, pessimism=k, members=[0, 1, 2]) for k in (0.0, 1.0))
    at = mean.answered
    assert torch.equal(mean.candidates, cautious.candidates), "targets do not change what is played"
    assert (cautious.click[at] <= mean.click[at]).all() and (cautious.click[at] < mean.click[at]).any()


def test_training_sees_what_play_sees(lite: Scenario) -> None:
    """The states of a whole session at once are those that the observations give one by one."""
    network = small_network(lite)
    found = played(lite, network)
    seen: list[torch.Tensor] = []
    original = network.states

    def recorded(*arguments: Any) -> Any:
        state, vectors = original(*arguments)
        seen.append(torch.cat((state[:, 0], vectors[:, 0].flatten(1)), -1))
        return state, vectors

    network.states = recorded  # type: ignore[method-assign, assignment]
    env = make_feeds("rerank", 1, scenario=lite, users="learned", copy=False, split="train")
    observation, _ = env.reset(seed=3)
    with torch.inference_mode():
        for _ in range(int(found.lengths[3])):
            score = network.score(to_tensors(observation)).numpy()
            observation, *_ = env.step(score.argmax(1))
    network.states = original  # type: ignore[method-assign]
    with torch.inference_mode():
        state, vectors = session_states(network, found)
    wanted = torch.cat((state[3], vectors[3].flatten(1)), -1)[: len(seen)]
    assert torch.allclose(torch.cat(seen), wanted, atol=1e-5)


def test_the_loss_falls(lite: Scenario) -> None:
    network = make_network(lite.config, ValueConfig(**SMALL))
    found = played(lite, network, rows=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = loss_of(network, found, purchase_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0 < losses[-1] < 0.6 * losses[0]


def train(out: Path, **hyper: Any) -> dict[str, Any]:
    return train_agent(AGENT, out, scenario="lite", resume=True, hyper=QUICK | hyper)


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / "policy.safetensors"), load_file(b / "policy.safetensors")
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, pessimism=0.5)
    return folder


def test_a_run_is_loaded_back_and_played(lite: Scenario, whole: Path) -> None:
    record = train(whole, pessimism=0.5)
    assert [figures["updates"] for figures in record["held_out"]] == [2, 4]
    for env_id in ("EdgeFeedSlate-v0", "EdgeFeedRerank-v0", "EdgeFeed-v0"):
        policy = find_policy(str(whole), env_id, lite, "synthetic")
        assert policy.name == AGENT
        found = play(policy, env_id=env_id, scenario=lite, users="synthetic", seed=0, sessions=4)
        assert found["violations"].sum() == 0 and found["value"].sum() > 0


def test_a_run_of_the_joint_track_inserts_cards(lite: Scenario, tmp_path: Path) -> None:
    record = train_agent(AGENT, tmp_path, scenario="lite", env_id="EdgeFeed-v0", hyper=QUICK)
    assert record["track"] == "joint" and record["price"] in training.MARGINS
    policy = find_policy(str(tmp_path), "EdgeFeed-v0", lite, "synthetic")
    policy.margin = 0.0  # type: ignore[attr-defined]
    found = play(policy, env_id="EdgeFeed-v0", scenario=lite, users="synthetic", seed=0, sessions=8)
    assert found["violations"].sum() == 0
    assert sum(found[f"cards_{name}"].sum() for name in lite.config.card_types) > 0
    explained = policy.explain(0)  # type: ignore[attr-defined]
    assert explained is not None and explained.scores is not None
    assert explained.scores.shape == (lite.config.pool_size,)
    order = find_policy(str(tmp_path), "EdgeFeedRerank-v0", lite, "synthetic")
    play(order, env_id="EdgeFeedRerank-v0", scenario=lite, users="synthetic", seed=0, sessions=2)
    with pytest.raises(InputError, match="learns the tracks rerank, joint, not 'mix'"):
        train_agent(AGENT, tmp_path / "mix", scenario="lite", env_id="EdgeFeedMix-v0", hyper=QUICK)


def test_requests_come_from_an_uplift_estimator(lite: Scenario, tmp_path: Path) -> None:
    """Its run is copied, so that the folder can be moved; pages are requested where they pay."""
    assert lite.path is not None
    uplift = lite.path / "agents" / "joint" / "runs" / "uplift-x-0"
    options: dict[str, Any] = {"scenario": "lite", "env_id": "EdgeFeed-v0", "hyper": QUICK}
    train_agent(AGENT, tmp_path / "a", based_on=[uplift], **options)
    (tmp_path / "a").rename(tmp_path / "moved")
    policy = find_policy(str(tmp_path / "moved"), "EdgeFeed-v0", lite, "synthetic")
    found = play(policy, env_id="EdgeFeed-v0", scenario=lite, users="synthetic", seed=0, sessions=8)
    assert found["requests"].sum() > 0 and found["violations"].sum() == 0
    with pytest.raises(InputError, match="requests pages in EdgeFeed-v0 only"):
        train_agent(AGENT, tmp_path / "b", based_on=[uplift], scenario="lite", env_id="rerank")
    with pytest.raises(InputError, match="nothing or on one run of an uplift estimator"):
        train_agent(AGENT, tmp_path / "c", based_on=[tmp_path / "moved"], **options)


def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run repeats, too."""
    state = torch.get_rng_state()
    original = training.ValueTrainer.update

    def dies(self: Any) -> None:
        if self.record["steps"] == 3:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(training.ValueTrainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", pessimism=0.5)
    monkeypatch.setattr(training.ValueTrainer, "update", original)
    assert train(tmp_path / "killed", pessimism=0.5) == train(whole, pessimism=0.5)
    assert same(whole, tmp_path / "killed")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_someone_must_be_left_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="held_out = 5 leaves none of the 5"):
        train(tmp_path, held_out=5)
    record = train(tmp_path / "all", held_out=0, updates=1)
    assert record["held_out"] == []


def test_a_log_may_come_first(lite: Scenario, tmp_path: Path) -> None:
    """Without updates, the network is what the log has taught."""
    logs = tmp_path / "logs"
    collect(logs, scenario="lite", users="synthetic", sessions=100, seed=0)
    options: dict[str, Any] = {"scenario": "lite", "logs": logs}
    quick = QUICK | {"log_epochs": 1}
    alone = train_agent(AGENT, tmp_path / "alone", hyper=quick | {"updates": 0}, **options)
    assert alone["steps"] == 0 and len(alone["start"]["loss"]) == 1 and len(alone["held_out"]) == 1
    both = train_agent(AGENT, tmp_path / "both", hyper=quick, **options)
    assert both["start"] == alone["start"] and both["logs"]["sessions"] == 100
    assert train_agent(AGENT, tmp_path / "both", hyper=quick, resume=True, **options) == both
    with pytest.raises(InputError, match="learns nothing with updates = 0 and no logs"):
        train(tmp_path / "none", updates=0)
