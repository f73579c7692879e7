"""List updates: losses by hand, neighbours, and training by each of them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_rerankers import build
from torch import Tensor

from edgerec_gym.agents.data.moments import split_moments
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.lists import generator as training
from edgerec_gym.agents.lists.evaluator_training import load_evaluator
from edgerec_gym.agents.lists.generator import evaluator_decisions, load_network
from edgerec_gym.agents.lists.list_updates import (
    N_RANKERS,
    best_and_worst,
    dpo_loss,
    evaluator_group,
    goalrank_loss,
    group_loss,
    neighbour_credit,
    neighbour_lists,
    neighbour_values,
    ranker_lists,
    reference_policy,
)
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.lists.policy_gradient import (
    UPDATES,
    Decisions,
    PolicyGradientConfig,
    follow,
    policy_loss,
)
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.reranker import RerankerConfig, pool_present
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario
from tests.small_generators import COMMON, same, train_start
from tests.small_pools import all_lists, moments, stir

ROWS = [3, 8, 9]
NEW = [update for update in UPDATES if update != "reinforce"]


def make(hidden: int = 8) -> PointerNet:
    network = build("pointer", Scenario.load("lite").config, RerankerConfig(hidden=hidden))
    assert isinstance(network, PointerNet)
    return network


def gradient(network: PointerNet, loss: Tensor) -> Tensor:
    network.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


class Preference:
    """Stands for an evaluator: the value of a list is known, and the order counts."""

    settings = SimpleNamespace(horizon=3)
    config = Scenario.load("lite").config
    worth = torch.linspace(0, 1, config.pool_size)
    weight = torch.tensor([1.0, 0.5, 0.25])

    def encode_pool(self, observation: dict) -> None:
        """Nothing to encode."""

    def values(self, encoded: None, rows: Tensor) -> Tensor:
        return (self.worth[rows] * self.weight * (rows >= 0)).sum(-1)

    def single_values(self, encoded: None, observation: dict) -> Tensor:
        return self.worth.expand(len(observation["pool"]), -1)


# --- losses by hand ----------------------------------------------------------------------------------------


def test_reference_policy_by_hand() -> None:
    """Values 1, 2, 3 have the mean 2 and the standard deviation 1."""
    e = math.e
    expected = torch.tensor([1 / e, 1, e]) / (1 / e + 1 + e)
    value = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])
    found = reference_policy(value)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], expected.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(reference_policy(torch.full((4,), 0.7)), torch.full((4,), 0.25))
    assert reference_policy(value, 0.01)[0].tolist() == pytest.approx([0, 0, 1])


def test_goalrank_loss_by_hand() -> None:
    """Two lists: deviations of +- 1/2, standard deviation sqrt(1/2), so +- sqrt(1/2) standardised."""
    log_p = torch.log(torch.tensor([[0.5, 0.1], [0.2, 0.2]]))
    value = torch.tensor([[0.0, 1.0], [4.0, 4.0]])
    better = 1 / (1 + math.exp(-math.sqrt(2)))
    first = -(1 - better) * math.log(0.5) - better * math.log(0.1)
    assert goalrank_loss(log_p, value).item() == pytest.approx((first - math.log(0.2)) / 2, abs=1e-5)


def test_best_meet_worst() -> None:
    value = torch.tensor([[0.3, 0.9, 0.1, 0.5], [1.0, 1.0, 1.0, 1.0]])
    assert best_and_worst(value, 1).tolist() == [[1, 2], [0, 3]]
    assert best_and_worst(value, 2).tolist() == [[1, 3, 2, 0], [0, 1, 3, 2]]


def test_dpo_loss_by_hand() -> None:
    log_p, start = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.0]])
    value = torch.tensor([[0.8, 0.2]])
    # The winner has gained 1 and the loser lost 1, times 0.5: -log sigma(1).
    assert dpo_loss(log_p, start, value, 0.5).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert dpo_loss(log_p, log_p, value, 0.5).item() == pytest.approx(math.log(2)), "nothing gained yet"
    assert dpo_loss(log_p, start, torch.ones(1, 2), 0.5).item() == 0, "no winner"
    log_p, start = torch.tensor([[-1.0, -1.0, -3.0, -1.0]]), torch.tensor([[-2.0, -1.0, -2.0, -1.0]])
    expected = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
    value = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    assert dpo_loss(log_p, start, value, 0.5).item() == pytest.approx(expected), "two pairs"


def test_first_dpo_step_pulls_winner_and_loser_apart() -> None:
    network, observation = stir(make()), moments(1, ROWS, slots=0)
    lists = all_lists(ROWS, 2)[[4, 1]].unsqueeze(0)
    log_p = follow(network, observation, lists).log_probabilities.sum(-1)
    found = gradient(network, dpo_loss(log_p, log_p.detach(), torch.tensor([[1.0, 0.0]]), 0.4))
    log_p = follow(network, observation, lists).log_probabilities.sum(-1)
    torch.testing.assert_close(found, gradient(network, 0.2 * (log_p[0, 1] - log_p[0, 0])))


@pytest.mark.slow
def test_goalrank_ends_at_the_reference_policy() -> None:
    """The group holds every list, so the generator can reach the reference policy, and then stays."""
    network, observation = make(), moments(1, ROWS, slots=0)
    lists, value = all_lists(ROWS, 2).unsqueeze(0), torch.tensor([[1.0, -0.5, 2.0, 0.3, 0.0, 0.7]])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        log_p = follow(network, observation, lists).log_probabilities.sum(-1)
        goalrank_loss(log_p, value).backward()
        optimizer.step()
    torch.testing.assert_close(log_p.exp(), reference_policy(value), atol=0.01, rtol=0)


# --- neighbours --------------------------------------------------------------------------------------------


def test_neighbours_by_hand() -> None:
    rows = torch.tensor([[4, 7, 2], [5, 6, -1]])
    cards = torch.tensor([[9, 2, 7], [8, 6, 5]])
    expected = [[[4, 9, 2], [4, 2, 7], [4, 7, 2]], [[5, 8, -1], [5, 6, -1], [6, 5, -1]]]
    assert neighbour_lists(rows, 1, cards).tolist() == expected
    assert neighbour_lists(rows, 2, cards)[1].tolist() == [[5, 6, -1]] * 3, "after the end nothing changes"
    assert rows.tolist() == [[4, 7, 2], [5, 6, -1]]


def test_credit_by_hand() -> None:
    """Cards are worth 0, .1, .2, ... and the places weigh 1, 1/2, 1/4."""
    judge = Preference()
    judge.worth = torch.arange(10) / 10
    rows = torch.tensor([[[4, 7, 2]]])
    others = torch.tensor([[[[9, 2], [3, 2], [2, 5]]]])
    value, around = judge.values(None, rows), neighbour_values(judge, None, rows, others)  # type: ignore[arg-type]
    assert value.item() == pytest.approx(0.4 + 0.35 + 0.05)
    # Place 0: card 9 brings +.5, and exchanging cards 4 and 2 brings -.2 + .2 / 4. And so on.
    expected = torch.tensor([[[[0.5, -0.15], [-0.2, -0.125], [0.0, 0.075]]]])
    torch.testing.assert_close(around - value, expected)
    torch.testing.assert_close(neighbour_credit(value, around), -expected.mean(-1))


def test_credit_of_the_last_place_is_the_exact_gradient_in_expectation() -> None:
    """Over all pairs of a card and another one, each as likely as it is."""
    network = stir(make().double())
    observation = {key: value.double() for key, value in moments(1, ROWS, slots=0).items()}
    lists, reward = torch.tensor(ROWS).view(1, 3, 1), torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    p = follow(network, observation, lists).log_probabilities[0].sum(-1).exp()
    exact, p = gradient(network, -(p * reward).sum()), p.detach()
    expected = torch.zeros_like(exact)
    for a in range(3):
        for b in range(3):
            credit = neighbour_credit(reward[:, [a]], reward[:, [b]].view(1, 1, 1, 1))
            rows = lists[:, [a]]
            drawn = Decisions(observation, rows, torch.zeros_like(credit), credit, rows >= 0)
            expected += p[a] * p[b] * gradient(network, policy_loss(network, drawn, 0.0))
    assert exact.norm() > 1e-3
    torch.testing.assert_close(expected, exact, atol=1e-10, rtol=1e-8)


def test_other_cards_come_from_the_same_distribution() -> None:
    """The list is drawn as without them; at the first place, both follow the pointer's probabilities."""
    network, observation = stir(make()), moments(1, ROWS, slots=0)
    with torch.no_grad():
        candidates = network.encode(observation).repeat(20_000)
        decoded, others = network.sample_with_others(candidates, 3, 1, torch.Generator().manual_seed(0))
        alone, none = network.sample_with_others(candidates, 3, 0, torch.Generator().manual_seed(0))
        drawn = network.sample(candidates, 3, torch.Generator().manual_seed(0))
    assert torch.equal(alone.rows, drawn.rows) and none.shape == (20_000, 3, 0)
    for row in ROWS:
        own, other = ((cards == row).float().mean().item() for cards in (decoded.rows[:, 0], others[:, 0, 0]))
        assert own == pytest.approx(other, abs=0.02)
    assert not (decoded.rows[:, 0] == others[:, 1, 0]).any(), "a card that stands above was not left"
    assert torch.equal(others[:, 2, 0], decoded.rows[:, 2]), "at the last place, only one is left"


# --- groups ------------------------------------------------------------------------------------------------


def test_a_group_holds_draws_and_rankers() -> None:
    network, judge, observation = stir(make()), Preference(), moments(4, slots=0)
    settings = PolicyGradientConfig(update="goalrank", samples=5)
    arguments: tuple[Any, ...] = (network, judge, observation)
    group, mean = evaluator_group(*arguments, settings, torch.Generator().manual_seed(0), None)
    assert group.rows.shape == (4, 5 + N_RANKERS, 3) and group.value.shape == (4, 5 + N_RANKERS)
    assert mean == pytest.approx(group.value[:, :5].mean().item()), "rankers are no draws"
    assert torch.equal(group.rows[:, 5], network.emit(observation, 3))
    present = pool_present(observation)
    for session, there in zip(group.rows[:, 6:].tolist(), present, strict=True):
        assert session[0] == there.nonzero()[:3, 0].tolist(), "the cloud's order"
        assert session[2] == there.nonzero().flip(0)[:3, 0].tolist(), "the best cards alone are the last"
    few, _ = evaluator_group(*arguments, settings.replace(rankers=0), torch.Generator().manual_seed(0), None)
    assert torch.equal(few.rows, group.rows[:, :5])
    part = group.take(torch.tensor([2]))
    assert len(part) == 1 and torch.equal(part.rows[0], group.rows[2])
    assert torch.equal(part.value[0], group.value[2])


def test_rankers_end_with_the_pool() -> None:
    network, judge, observation = make(), Preference(), moments(2, [2, 5], slots=0)
    with torch.no_grad():
        found = ranker_lists(network, judge, observation, network.encode(observation), None)  # type: ignore[arg-type]
    assert (found[..., 2] == -1).all()
    assert found[:, 1].tolist() == [[2, 5, -1]] * 2 and found[:, 3].tolist() == [[5, 2, -1]] * 2


def test_pairs_keep_their_values_and_start() -> None:
    network, start, judge, observation = stir(make()), make(), Preference(), moments(4, slots=0)
    settings = PolicyGradientConfig(update="dpo", samples=6, pairs=2)
    generator = torch.Generator().manual_seed(0)
    group, mean = evaluator_group(network, judge, observation, settings, generator, start)  # type: ignore[arg-type]
    assert group.rows.shape == (4, 4, 3)
    assert torch.equal(judge.values(None, group.rows), group.value)
    best, second, worst, second_worst = group.value.T
    assert (best >= second).all() and (second >= second_worst).all() and (second_worst >= worst).all()
    assert group.value.min() < mean < group.value.max()
    with torch.no_grad():
        expected = follow(start, observation, group.rows).log_probabilities.sum(-1)
    torch.testing.assert_close(group.start, expected)


@pytest.mark.slow
@pytest.mark.parametrize("update", NEW)
def test_learns_the_best_order(update: Any) -> None:
    """Row numbers are not seen: cards are told apart by their features, in sessions that stay the same."""
    rows, network, judge = [2, 5, 11, 17], make(hidden=16), Preference()
    start, observation = make(hidden=16), moments(2, rows, slots=0)
    settings = PolicyGradientConfig(update=update, samples=8, entropy=0.001, beta=0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    before = judge.values(None, network.emit(observation, 3))
    rewards = []
    for _ in range(80):
        optimizer.zero_grad()
        if update == "nlgr":
            decisions, reward = evaluator_decisions(
                network, judge, observation, 8, False, generator, 1  # type: ignore[arg-type]
            )  # fmt: skip
            loss = policy_loss(network, decisions, settings.entropy)
        else:
            group, reward = evaluator_group(network, judge, observation, settings, generator, start)  # type: ignore[arg-type]
            loss = group_loss(network, group, settings)
        loss.backward()
        optimizer.step()
        rewards.append(reward)
    assert network.emit(observation, 3).tolist() == [[17, 11, 5]] * 2
    assert (judge.values(None, network.emit(observation, 3)) > before).all()
    assert np.mean(rewards[-20:]) > np.mean(rewards[:20]) + 0.05


# --- training ----------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"updates": 4, "batch_size": 8, "samples": 4, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, an evaluator, and a generator that has learned from clicks."""
    return train_start(tmp_path_factory.mktemp("runs"))


def plain(runs: Path, update: str) -> Path:
    """The undisturbed run of an update; trained once, since a finished run is resumed as it stands."""
    train(runs, runs / "plain" / update, update=update)
    return runs / "plain" / update


def train(runs: Path, out: Path, agent: str = "pointer-evaluator", **hyper: Any) -> dict[str, Any]:
    based_on = [runs / "pointer"] + ([] if agent == "pointer-users" else [runs / "evaluator"])
    place = {"scenario": "lite", "users": "synthetic"}
    hyper = QUICK | hyper
    return train_agent(agent, out, logs=runs / "logs", based_on=based_on, hyper=hyper, **COMMON, **place)


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES)
def test_the_evaluator_values_the_lists_more(runs: Path, tmp_path: Path, update: str) -> None:
    record = train(
        runs, tmp_path / "run", update=update, updates=40, samples=8, batch_size=16,
        learning_rate=1e-2, demonstrations=0.0, sharpness=1.0,
    )  # fmt: skip
    assert record["hyper"]["update"] == update and len(record["reward"]) == 40
    reader = LogReader(runs / "logs")
    chunk = next(split_moments(reader, horizon=10, no_click=10, per_session=8, seed=0)[0].chunks())
    observation = to_tensors(chunk.batch(np.arange(200)).observation)
    evaluator = load_evaluator(runs / "evaluator", reader.config)
    start = load_reranker(runs / "pointer", reader.config)
    values = []
    with torch.no_grad():
        for network in (start, load_network(tmp_path / "run", reader.config)):
            assert isinstance(network, PointerNet)
            candidates = network.encode(observation).repeat(4)
            drawn = network.sample(candidates, 10, torch.Generator().manual_seed(0)).rows
            values.append(evaluator.list_values(observation, drawn.view(-1, 4, 10)).mean().item())
    assert values[1] > 1.04 * values[0], values


@pytest.mark.parametrize("update", NEW)
def test_updates_repeat_resume_and_differ(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    """A killed run that is resumed ends as the undisturbed one."""
    whole = read_run(plain(runs, update)).record
    original = training.GeneratorTrainer.update

    def dies(self: Any) -> None:
        if self.record["steps"] == 3:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(training.GeneratorTrainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(runs, tmp_path / "killed", update=update)
    monkeypatch.setattr(training.GeneratorTrainer, "update", original)
    assert train(runs, tmp_path / "killed", update=update) == whole
    assert same(plain(runs, update), tmp_path / "killed")
    assert not same(plain(runs, update), plain(runs, "reinforce"))


@pytest.mark.parametrize(
    ("update", "changes"),
    [
        ("goalrank", {"temperature": 0.1}),
        ("goalrank", {"rankers": 0}),
        ("dpo", {"beta": 10.0}),
        ("dpo", {"pairs": 2}),
        ("nlgr", {"neighbours": 3}),
        ("nlgr", {"ppo_epochs": 2}),
    ],
)
def test_every_setting_has_an_effect(
    runs: Path, tmp_path: Path, update: str, changes: dict[str, Any]
) -> None:
    train(runs, tmp_path / "changed", update=update, **changes)
    assert not same(plain(runs, update), tmp_path / "changed")


def test_reinforce_is_the_default(runs: Path, tmp_path: Path) -> None:
    train(runs, tmp_path / "a", temperature=9.0, beta=9.0, pairs=9, neighbours=9)
    assert same(tmp_path / "a", plain(runs, "reinforce"))


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"update": "ppo"}, "update must be one of reinforce, goalrank, dpo, nlgr, got 'ppo'"),
        ({"update": 1}, "update must be one of"),
        ({"update": "goalrank", "samples": 1}, "no other list to compare with"),
        ({"update": "nlgr", "self_critical": 1}, "'nlgr' has no baseline; leave self_critical at 0"),
        ({"update": "dpo", "ppo_epochs": 2}, "'dpo' has no ratio to clip; leave ppo_epochs at 0"),
        ({"update": "dpo", "pairs": 3, "samples": 5}, "pairs = 3 needs at least 6 samples, got 5"),
        ({"update": "dpo", "beta": 0.0}, "beta = 0.0 is out of range"),
        ({"update": "goalrank", "temperature": 0.0}, "temperature = 0.0 is out of range"),
        ({"update": "nlgr", "neighbours": 0}, "neighbours = 0 is out of range"),
    ],
)
def test_bad_settings(runs: Path, tmp_path: Path, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(runs, tmp_path, **hyper)


@pytest.mark.parametrize("agent", ["pointer-users", "pointer-distilled"])
def test_only_an_evaluator_compares_lists(runs: Path, tmp_path: Path, agent: str) -> None:
    with pytest.raises(InputError, match=f"agent '{agent}' has no update = 'goalrank'"):
        train(runs, tmp_path, agent, update="goalrank")


def test_one_list_is_enough_for_credit() -> None:
    assert PolicyGradientConfig(update="nlgr", samples=1).samples == 1
