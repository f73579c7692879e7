"""Generators in training: rollouts are the environment's, runs repeat, resume, and are played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_rerankers import build

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.list_policy import EmittedList, SlateBySlate, SlotBySlot, order_of
from edgerec_gym.agents.lists import generator as training
from edgerec_gym.agents.lists.generator import AGENTS, GENERATORS, SEARCH
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.lists.policy_gradient import plan_decisions
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.reranker import RerankerConfig, RerankPolicy
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv
from tests.small_generators import COMMON, same, train_start
from tests.small_pools import stir

QUICK: dict[str, Any] = {"updates": 4, "batch_size": 8, "samples": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, an evaluator, and a generator that has learned from clicks."""
    return train_start(tmp_path_factory.mktemp("runs"))


def train(runs: Path, agent: str, out: Path, **hyper: Any) -> dict[str, Any]:
    based_on = [runs / "pointer"] + ([] if agent == "pointer-users" else [runs / "evaluator"])
    return train_agent(
        agent,
        out,
        logs=None if agent == SEARCH else runs / "logs",
        based_on=based_on,
        hyper=({"samples": 1} if agent == SEARCH else QUICK) | hyper,
        scenario="lite",
        users="synthetic",
        **COMMON,
    )


def whole(runs: Path, agent: str) -> tuple[Path, dict[str, Any]]:
    """An undisturbed run; trained once, since a finished run is resumed as it stands."""
    out = runs / "whole" / agent
    return out, train(runs, agent, out)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_is_loaded_back_and_played(runs: Path, lite: Scenario, agent: str) -> None:
    out, record = whole(runs, agent)
    if agent in GENERATORS:
        assert record["steps"] == 4 and len(record["reward"]) == 4 and min(record["reward"]) > 0
        assert not same(out, runs / "pointer"), "it has learned something"
        assert record["network"]["hidden"] == 8, "as large as the generator that it starts from"
    for env_id in ("EdgeFeedSlate-v0", "EdgeFeedRerank-v0"):
        policy = find_policy(str(out), env_id, lite, "synthetic")
        assert policy.name == agent
        options: dict[str, Any] = {"env_id": env_id, "scenario": lite, "users": "synthetic", "seed": 0}
        found, again = (play(policy, sessions=4, **options) for _ in range(2))
        assert found["violations"].sum() == 0 and found["value"].sum() > 0
        assert np.array_equal(found["value"], again["value"]), "it does not draw at evaluation"


@pytest.mark.parametrize("agent", GENERATORS)
def test_rewards_start_from_a_sharpened_generator(runs: Path, tmp_path: Path, agent: str) -> None:
    train(runs, agent, tmp_path, updates=1, sharpness=3.0)
    expected = 1.0 if agent == "pointer-distilled" else 3.0
    assert load_file(tmp_path / "policy.safetensors")["sharpness"] == expected


@pytest.mark.parametrize("agent", GENERATORS)
def test_a_killed_run_ends_as_if_it_had_not_been(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    undisturbed, record = whole(runs, agent)
    original = training.GeneratorTrainer.update

    def dies(self: Any) -> None:
        if self.record["steps"] == 3:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(training.GeneratorTrainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(runs, agent, tmp_path / "killed")
    monkeypatch.setattr(training.GeneratorTrainer, "update", original)
    assert train(runs, agent, tmp_path / "killed") == record
    assert same(undisturbed, tmp_path / "killed")


def test_a_search_plans_lists_everywhere(runs: Path, lite: Scenario, tmp_path: Path) -> None:
    """Its evaluator judges a card by its neighbours: a list of one card would not show what it knows."""
    train(runs, SEARCH, tmp_path, every=3)
    policy = find_policy(str(tmp_path), "EdgeFeedRerank-v0", lite, "synthetic")
    assert isinstance(policy, SlotBySlot) and policy.every == 3
    asked, emitter = [], policy.list_policy.emitter  # type: ignore[attr-defined]
    original = emitter.lists
    emitter.lists = lambda observation, k: asked.append(k) or original(observation, k)
    play(policy, env_id="EdgeFeedRerank-v0", scenario=lite, users="synthetic", seed=0, sessions=2)
    assert set(asked) == {lite.config.slate_size}


def test_the_seed_decides(runs: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name in ("a", "b"):
        train(runs, "pointer-evaluator", tmp_path / name, ppo_epochs=2, self_critical=1)
    assert same(tmp_path / "a", tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    train(runs, "pointer-evaluator", tmp_path / "c", ppo_epochs=2, self_critical=1, entropy=1.0)
    assert not same(tmp_path / "a", tmp_path / "c")


def generator() -> PointerNet:
    network = stir(build("pointer", Scenario.load("lite").config, RerankerConfig(hidden=8)))
    assert isinstance(network, PointerNet)
    return network


def slates(lite: Scenario, rows: int, split: str = "train", **config: Any) -> EdgeFeedSlateVectorEnv:
    return EdgeFeedSlateVectorEnv(rows, scenario=lite, users="synthetic", split=split, copy=False, **config)


def test_rollouts_earn_what_the_evaluation_counts(lite: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    network = generator()
    policy = SlateBySlate(EmittedList(RerankPolicy("pointer", network), lite.config.slate_size))
    options: dict[str, Any] = {"env_id": "EdgeFeedSlate-v0", "scenario": lite, "users": "synthetic"}
    expected = play(policy, sessions=12, seed=0, **options)["value"]
    monkeypatch.setattr(PointerNet, "sample", lambda self, candidates, k, _: self.greedy(candidates, k))
    decisions, reward = plan_decisions(
        network, slates(lite, 24, "eval"), range(12), 2, False, 0.9, torch.Generator()
    )
    assert reward == pytest.approx(expected.mean(), rel=1e-6)
    assert decisions.advantage.abs().max() < 1e-9, "copies that plan alike share their luck"


@pytest.mark.parametrize("self_critical", [False, True])
def test_advantages_of_the_first_place(lite: Scenario, self_critical: bool) -> None:
    """With discount 1 they are differences of whole sessions; places that were not played do not count."""
    env = slates(lite, 10 * (3 + self_critical))
    decisions, _ = plan_decisions(
        generator(), env, range(10), 3, self_critical, 1.0, torch.Generator().manual_seed(0)
    )
    assert decisions.rows.shape[1] == 1 and decisions.counted.any(-1).all()
    assert not decisions.counted.all(), "some plans stop early"
    first = decisions.advantage[:30, 0, 0].view(10, 3)
    assert first.abs().max() > 0.01
    if not self_critical:
        torch.testing.assert_close(first.sum(1), torch.zeros(10), atol=1e-5, rtol=0)
    slot = decisions.observation["context"][:, 0]
    assert (slot[:30] == 0).all() and (slot[30:] > 0).all()


def test_without_a_future_only_the_slot_itself_counts(lite: Scenario) -> None:
    """Lookahead is 2: what is placed first is answered two slots later, so discount 0 gives it nothing."""
    decisions, _ = plan_decisions(
        generator(), slates(lite, 20), range(10), 2, False, 0.0, torch.Generator().manual_seed(0)
    )
    first = decisions.advantage[:20, 0]
    assert (first[:, :2] == 0).all() and first[:, 2].abs().max() > 0


def test_order_of_puts_lists_first() -> None:
    order = order_of(np.array([[4, 0, 2], [1, -1, -1]]), 6)
    assert order.dtype == np.float32 and order.min() >= -1 and order.max() <= 1
    assert np.argsort(-order, axis=1, kind="stable").tolist() == [[4, 0, 2, 1, 3, 5], [1, 0, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("agent", "changes", "message"),
    [
        ("pointer-evaluator", {"based_on": []}, "needs an evaluator: give its run's folder with --based-on"),
        ("pointer-evaluator", {"logs": None}, "'pointer-evaluator' learns from logs"),
        ("pointer-users", {"based_on": ["evaluator"]}, "is rewarded by users; leave the evaluator"),
        ("pointer-distilled", {"based_on": ["evaluator", "evaluator"]}, "both hold evaluators; give one"),
        ("sequence-search", {}, "reads no logs"),
        ("sequence-search", {"logs": None, "hyper": {"beams": 0}}, "beams = 0 is out of range"),
        ("pointer", {}, "'pointer' cannot be based on other runs"),
        ("pointer-users", {"based_on": [], "hyper": {"samples": 1}}, "no other list to compare with"),
        ("pointer-evaluator", {"seed": -1}, "seed = -1 is out of range"),
    ],
)
def test_bad_input(runs: Path, tmp_path: Path, agent: str, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logs": runs / "logs", "hyper": {}, "based_on": ["evaluator"]}
    arguments |= COMMON | {"scenario": "lite", "users": "learned"} | changes
    arguments["based_on"] = [runs / name for name in arguments["based_on"]]
    with pytest.raises(InputError, match=message):
        train_agent(agent, tmp_path, **arguments)


def test_what_does_not_play_or_fit_says_so(runs: Path, lite: Scenario, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="judges lists but does not play"):
        find_policy(str(runs / "evaluator"), "EdgeFeedSlate-v0", lite, "synthetic")
    train(runs, SEARCH, tmp_path)
    with pytest.raises(InputError, match="re-ranks; it plays the tracks joint, rerank, slate"):
        find_policy(str(tmp_path), "EdgeFeedMix-v0", lite, "synthetic")
    with pytest.raises(InputError, match="this environment has"):
        find_policy(str(tmp_path), "EdgeFeedSlate-v0", "default", "synthetic")
    with pytest.raises(InputError, match="was logged with other sizes"):
        training.train(
            tmp_path / "x", agent="pointer-users", logs=runs / "logs", scenario="default", users="synthetic"
        )


@pytest.mark.parametrize("agent", ["dnn", "seq2slate"])
def test_every_re_ranker_plans_lists(lite: Scenario, agent: str) -> None:
    from edgerec_gym.agents.rerank.train import policy_of

    env = make_feeds("EdgeFeedSlate-v0", 6, scenario=lite, users="synthetic")
    policy = policy_of(agent, build(agent, lite.config, RerankerConfig(hidden=8)), env)
    observation, _ = env.reset(seed=0)
    policy.reset(np.ones(6, np.bool_))
    for _ in range(3):
        observation, *_, infos = env.step(policy.act(observation))
        assert not infos["invalid_action"].any()
