"""Policy gradient on values: advantages are exact, probabilities are those of play, and runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.learning.rollouts import discounted
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.values import gradient
from edgerec_gym.agents.values.gradient import (
    AGENT,
    GradientConfig,
    GradientTrainer,
    against_copies,
    generalised,
)
from edgerec_gym.agents.values.play import play_labelled, session_states
from edgerec_gym.agents.values.teacher import AskedUsers
from edgerec_gym.agents.values.train import AGENT as WARM_START
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.agents.values.test_distilled_values import QUICK as WARM
from tests.agents.values.test_distilled_values import same, small_network

QUICK: dict[str, Any] = {
    "updates": 3,
    "sessions": 8,
    "batch_size": 4,
    "candidates": 3,
    "warm_up": 1,
    "select_every": 1,
    "select_sessions": 8,
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    train_agent(WARM_START, folder, scenario="lite", env_id="EdgeFeed-v0", hyper=WARM)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, warm)
    return folder


def train(out: Path, warm: Path, **hyper: Any) -> dict[str, Any]:
    return train_agent(AGENT, out, based_on=[warm], scenario="lite", resume=True, hyper=QUICK | hyper)


def test_returns_and_advantages_of_a_small_case() -> None:
    earned = np.array([[1.0, 2.0, 4.0]])
    assert discounted(earned, 0.5)[:, :-1].tolist() == [[3.0, 4.0, 4.0]]
    expected = np.array([[2.0, 1.0, 0.0]])
    # Errors 1 + .5 - 2, 2 + 0 - 1 and 4, summed with the weight .5 x .5.
    assert np.allclose(generalised(earned, expected, 0.5, 0.5), [[-0.5 + 0.25 * 2.0, 2.0, 4.0]])
    assert np.allclose(generalised(earned, expected, 0.5, 1.0), discounted(earned, 0.5)[:, :-1] - expected)


def test_copies_are_compared_with_each_other_only() -> None:
    returns = np.array([[1.0], [3.0], [5.0], [10.0], [20.0]])
    assert against_copies(returns, 3).tolist() == [[-3.0], [0.0], [3.0], [-10.0], [10.0]]
    assert against_copies(returns, 2)[-1].tolist() == [0.0]


@pytest.mark.parametrize("track", ["rerank", "joint"])
def test_the_probability_of_a_draw_is_that_of_play(lite: Scenario, track: str) -> None:
    """What training computes from whole sessions is what play drew with, and only legal cards are drawn."""
    network, users = small_network(lite), AskedUsers(lite, 4)
    env = make_feeds(track, 8, scenario=lite, users=users, copy=False)
    found = play_labelled(
        network,
        env,
        users,
        np.arange(8),
        best=1.0,
        noise=np.full(8, 0.5),
        generator=np.random.default_rng(0),
        margin=0.02,
        sample=True,
    )
    record = {"seed": 0, "steps": 0, "track": track, "price": 0.02}
    settings = GradientConfig(temperature=0.5, sessions=8, candidates=4)
    trainer = GradientTrainer(network, record, settings, lite)
    at = found.acted & (torch.arange(found.acted.shape[1]) < int(found.lengths.max()))
    with torch.inference_mode():
        state, vectors = session_states(network, found)
        told = trainer._log_probability(found.candidates[at], state[at], vectors[at])
    assert torch.allclose(told, found.drawn[at], atol=1e-4)
    assert (found.drawn[at] <= 0).all() and (found.drawn[at] < -0.1).any()
    assert torch.equal(found.candidates[found.answered][:, 0], found.cards[found.answered])
    assert np.allclose(found.earned.sum(1), found.value, atol=1e-5)
    assert found.hidden.shape[2] == users.n_hidden and (found.hidden[found.acted].abs().sum(-1) > 0).all()


@pytest.mark.slow
def test_the_gradient_raises_what_is_rewarded(lite: Scenario) -> None:
    """With an advantage of 1 for drawing the card of the highest price, that card becomes more probable."""
    network, users = small_network(lite), AskedUsers(lite, 4)
    env = make_feeds("rerank", 16, scenario=lite, users=users, copy=False)
    settings = GradientConfig(temperature=0.5, sessions=16, candidates=4, critic="none")
    trainer = GradientTrainer(
        network, {"seed": 0, "steps": 0, "track": "rerank", "price": 0.0}, settings, lite
    )
    price = lite.config.embedding_size  # the first scalar
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-2)
    rates = []
    for step in range(20):
        found = play_labelled(
            network,
            env,
            users,
            np.arange(16),
            best=1.0,
            noise=np.full(16, 0.5),
            generator=np.random.default_rng(step),
            sample=True,
        ).take(np.arange(16))
        dear = found.candidates[..., price].argmax(-1) == 0
        rates.append(float(dear[found.answered].double().mean()))
        advantage = dear.float() - rates[-1]
        loss = trainer._loss(found, advantage, advantage, only_critic=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(rates[-3:]) > np.mean(rates[:3]) + 0.05


@pytest.mark.parametrize("critic", ["privileged", "plain", "none"])
def test_a_run_is_played(lite: Scenario, tmp_path: Path, warm: Path, whole: Path, critic: str) -> None:
    out = tmp_path if critic != GradientConfig().critic else whole
    record = train(out, warm, critic=critic)
    assert record["hyper"]["critic"] == critic
    assert [figures["updates"] for figures in record["held_out"]] == [0, 1, 2, 3]
    assert record["track"] == "joint" and np.isfinite(record["loss"]).all()
    policy = find_policy(str(out), "EdgeFeed-v0", lite, "synthetic")
    assert policy.name == AGENT
    found = play(policy, env_id="EdgeFeed-v0", scenario=lite, users="synthetic", seed=0, sessions=4)
    assert found["violations"].sum() == 0 and found["value"].sum() > 0


def test_only_the_critic_learns_at_first(tmp_path: Path, warm: Path) -> None:
    train(tmp_path / "a", warm, updates=1)
    assert same(warm, tmp_path / "a")


def test_the_network_changes_after_that(tmp_path: Path, warm: Path) -> None:
    train(tmp_path / "a", warm, held_out=0, learning_rate=1e-2)
    first, second = load_file(warm / "policy.safetensors"), load_file(tmp_path / "a" / "policy.safetensors")
    assert any(not np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, warm: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run repeats, too."""
    original = gradient.GradientTrainer.update

    def dies(self: Any) -> None:
        if self.record["steps"] == 2:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(gradient.GradientTrainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", warm)
    monkeypatch.setattr(gradient.GradientTrainer, "update", original)
    assert train(tmp_path / "killed", warm) == train(whole, warm) and same(whole, tmp_path / "killed")


def test_it_needs_a_warm_start(tmp_path: Path, lite: Scenario) -> None:
    assert lite.path is not None
    uplift = lite.path / "agents" / "joint" / "runs" / "uplift-x-0"
    for based_on in ([], [uplift]):
        with pytest.raises(InputError, match="starts from one run of 'distilled-values'"):
            train_agent(AGENT, tmp_path, based_on=based_on, scenario="lite", hyper=QUICK)
