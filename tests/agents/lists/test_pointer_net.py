"""The generator: probabilities add up, masks hold, beams are exact, gradients are right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_rerankers import build

from edgerec_gym.agents.lists.generator import distillation_loss, evaluator_decisions
from edgerec_gym.agents.lists.pointer_net import PointerNet, demonstration_loss
from edgerec_gym.agents.lists.policy_gradient import (
    Decisions,
    PolicyGradientConfig,
    leave_one_out,
    policy_loss,
)
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario
from tests.small_pools import all_lists, moments, stir

ROWS = [3, 8, 9]


def make(seed: int = 0, hidden: int = 8) -> PointerNet:
    network = build("pointer", Scenario.load("lite").config, RerankerConfig(hidden=hidden), seed)
    assert isinstance(network, PointerNet)
    return network


@pytest.fixture(scope="module")
def network() -> PointerNet:
    return stir(make())


def probabilities(network: PointerNet, observation: dict, lists: torch.Tensor) -> torch.Tensor:
    candidates = network.encode(observation).repeat(len(lists))
    return network.forced(candidates, lists).log_probabilities.sum(1).exp()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_probabilities_of_all_lists_add_up_to_one(network: PointerNet, k: int) -> None:
    lists = all_lists(ROWS, k)
    p = probabilities(network, moments(1, ROWS), lists)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.max() - p.min() > 0.01, "the network prefers some lists"


def test_draws_follow_the_probabilities(network: PointerNet) -> None:
    observation, lists = moments(1, ROWS), all_lists(ROWS, 2)
    with torch.no_grad():
        drawn = network.sample(
            network.encode(observation).repeat(20_000), 2, torch.Generator().manual_seed(0)
        )
        expected = probabilities(network, observation, lists)
    share = (drawn.rows.unsqueeze(1) == lists).all(-1).float().mean(0)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)
    forced = network.forced(network.encode(observation).repeat(20_000), drawn.rows)
    torch.testing.assert_close(forced.log_probabilities, drawn.log_probabilities)


def test_entropy_is_that_of_the_next_card(network: PointerNet) -> None:
    observation = moments(1, ROWS)
    first = probabilities(network, observation, torch.tensor(ROWS).unsqueeze(1))
    decoded = network.greedy(network.encode(observation), 3)
    assert decoded.entropies[0, 0].item() == pytest.approx(-(first * first.log()).sum().item(), abs=1e-5)
    assert decoded.entropies[0, 2].item() == pytest.approx(0, abs=1e-6), "the last card is no choice"


@pytest.mark.parametrize("k", [2, 3])
def test_beams_as_wide_as_all_lists_find_the_best(network: PointerNet, k: int) -> None:
    rows = [1, 3, 8, 9]
    observation, lists = moments(4, rows), all_lists(rows, k)
    with torch.no_grad():
        candidates = network.encode(observation)
        found, log_p = network.beams(candidates, k, len(lists))
        for session in range(4):
            one = type(candidates)(*(part[session : session + 1] for part in candidates))
            p = network.forced(one.repeat(len(lists)), lists).log_probabilities.sum(1)
            order = p.argsort(descending=True)
            torch.testing.assert_close(log_p[session], p[order], atol=1e-4, rtol=0)
            assert found[session, 0].tolist() == lists[order[0]].tolist()
            assert {tuple(r) for r in found[session].tolist()} == {tuple(r) for r in lists.tolist()}


def test_one_beam_is_greedy(network: PointerNet) -> None:
    candidates = network.encode(moments(5))
    assert torch.equal(network.beams(candidates, 6, 1)[0][:, 0], network.greedy(candidates, 6).rows)


@settings(max_examples=25, deadline=None)
@given(
    masks=st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=2, max_size=4),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_masks_hold(masks: list[list[bool]], k: int, seed: int) -> None:
    network, observation = stir(make(), seed, 1.0), moments(len(masks), slots=0)
    present = torch.tensor(masks)
    observation["pool"] = observation["pool"] * present.unsqueeze(-1)
    present &= (observation["pool"] != 0).any(-1)
    with torch.no_grad():
        candidates = network.encode(observation)
        beams, total = network.beams(candidates, k, 3)
        found = [network.greedy(candidates, k).rows, beams[:, 0]]
        found.append(network.sample(candidates, k, torch.Generator().manual_seed(seed)).rows)
    assert torch.isfinite(total[:, 0]).all()
    for rows in found:
        for session, there in zip(rows.tolist(), present, strict=True):
            chosen = [row for row in session if row >= 0]
            assert len(chosen) == len(set(chosen)) == min(k, int(there.sum()))
            assert session[len(chosen) :] == [-1] * (k - len(chosen))
            assert all(there[row] for row in chosen)


def test_greedy_lists_and_seeded_draws_repeat(network: PointerNet) -> None:
    observation = moments(6)
    with torch.no_grad():
        candidates = network.encode(observation)
        assert torch.equal(network.emit(observation, 5), network.emit(observation, 5))
        draws = [
            network.sample(candidates, 5, torch.Generator().manual_seed(seed)).rows for seed in (1, 1, 2)
        ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_sharper_draws_come_closer_to_the_same_greedy_list() -> None:
    observation, network = moments(200), stir(make())
    with torch.no_grad():
        greedy = network.emit(observation, 3)
        agreed = []
        for _ in range(3):
            drawn = network.sample(network.encode(observation), 3, torch.Generator().manual_seed(0))
            agreed.append((drawn.rows == greedy).float().mean().item())
            network.sharpen(10.0)
            assert torch.equal(network.emit(observation, 3), greedy)
    assert agreed[0] < agreed[1] < agreed[2] and agreed[2] > 0.9, agreed


@pytest.mark.parametrize("column", ["exposures", "page_views"])
def test_with_match_only_similar_behaviour_lifts_a_card(column: str) -> None:
    """The rest of the network is switched off: what is left is the match with each history."""
    config = Scenario.load("lite").config
    network = build("pointer", config, RerankerConfig(hidden=8, match=1))
    assert isinstance(network, PointerNet)
    observation, d = moments(1), config.embedding_size
    observation[column] = torch.zeros_like(observation[column])
    observation[column][:, -1] = 1.0
    found = []
    for sign in (1.0, -1.0):
        observation[column][:, -1, :d] = sign * observation["pool"][:, 3, :d]
        with torch.no_grad():
            found.append(network.match(observation, observation["pool"])[0])
    assert found[0].shape == (config.pool_size, network.match.size)
    changed = (found[0] - found[1])[3].abs() > 1e-3
    heads = network.match.size // 2
    expected = torch.zeros(2, heads, dtype=torch.bool)
    expected[["exposures", "page_views"].index(column)] = True
    assert torch.equal(changed.view(2, heads), expected)


def test_an_untrained_pointer_follows_the_base_ctr() -> None:
    observation, network = moments(4), make()
    base = observation["pool"][..., network.config.embedding_size + 1]
    present = (observation["pool"] != 0).any(-1)
    order = torch.argsort(base.masked_fill(~present, -1), dim=1, descending=True, stable=True)[:, :5]
    assert torch.equal(network.emit(observation, 5), order)


# --- policy gradients: counted out ---------------------------------------------------------------


def gradient(network: PointerNet, loss: torch.Tensor) -> torch.Tensor:
    network.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def counted() -> SimpleNamespace:
    """Six lists of two of three cards, with a reward each, in double precision."""
    network = stir(make().double())
    observation = {key: value.double() for key, value in moments(1, ROWS).items()}
    lists = all_lists(ROWS, 2)
    reward = torch.tensor([1.0, -0.5, 2.0, 0.3, 0.0, 0.7], dtype=torch.float64)
    p = probabilities(network, observation, lists)
    exact = gradient(network, -(p * reward).sum())
    return SimpleNamespace(
        network=network, observation=observation, lists=lists, reward=reward, p=p.detach(), exact=exact
    )


def decisions_of(c: SimpleNamespace, index: list[int], advantage: torch.Tensor) -> Decisions:
    rows = c.lists[index].unsqueeze(0)
    candidates = c.network.encode(c.observation).repeat(len(index))
    old = c.network.forced(candidates, rows[0]).log_probabilities.detach().unsqueeze(0)
    spread = advantage.view(1, -1, 1).expand(1, len(index), 2)
    return Decisions(c.observation, rows, old, spread, torch.ones_like(rows, dtype=torch.bool))


@pytest.mark.parametrize("clip", [None, 0.2])
def test_leave_one_out_is_the_exact_gradient_in_expectation(
    counted: SimpleNamespace, clip: float | None
) -> None:
    """Over all pairs of lists, each as likely as it is; PPO's first step is REINFORCE."""
    c, expected = counted, torch.zeros_like(counted.exact)
    for a in range(6):
        for b in range(6):
            decisions = decisions_of(c, [a, b], leave_one_out(c.reward[[a, b]]))
            expected += c.p[a] * c.p[b] * gradient(c.network, policy_loss(c.network, decisions, 0.0, clip))
    assert c.exact.norm() > 1e-3
    torch.testing.assert_close(expected, c.exact, atol=1e-10, rtol=1e-8)


def test_a_greedy_baseline_keeps_the_gradient_and_lowers_its_variance(counted: SimpleNamespace) -> None:
    c = counted
    best = c.network.greedy(c.network.encode(c.observation), 2).rows[0]
    baseline = c.reward[(c.lists == best).all(1)]
    found = {}
    for name, shift in (("plain", 10.0), ("self-critical", 10.0 - (baseline + 10.0))):
        single = torch.stack(
            [
                gradient(
                    c.network, policy_loss(c.network, decisions_of(c, [a], c.reward[[a]] + shift), 0.0, None)
                )
                for a in range(6)
            ]
        )
        mean = (c.p.unsqueeze(1) * single).sum(0)
        torch.testing.assert_close(mean, c.exact, atol=1e-9, rtol=1e-7)
        found[name] = (c.p.unsqueeze(1) * (single - mean).square()).sum().item()
    assert found["self-critical"] < found["plain"]


def test_clipping_stops_what_has_gone_far_enough(counted: SimpleNamespace) -> None:
    c = counted
    decisions = decisions_of(c, [0], torch.ones(1, dtype=torch.float64))
    further = Decisions(
        decisions.observation, decisions.rows, decisions.log_probabilities - 1.0, decisions.advantage,
        decisions.counted,
    )  # fmt: skip
    assert gradient(c.network, policy_loss(c.network, further, 0.0, 0.2)).norm().item() == 0
    assert gradient(c.network, policy_loss(c.network, decisions, 0.0, 0.2)).norm().item() > 0


class Preference:
    """Stands for an evaluator: the value of a list is known, and sees the order."""

    settings = SimpleNamespace(horizon=3)
    config = Scenario.load("lite").config
    worth = torch.linspace(0, 1, 20)
    weight = torch.tensor([1.0, 0.5, 0.25])

    def encode_pool(self, observation: dict) -> None:
        """Nothing to encode."""

    def values(self, encoded: None, rows: torch.Tensor) -> torch.Tensor:
        return (self.worth[rows] * self.weight).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize(("self_critical", "ppo_epochs"), [(False, 0), (True, 0), (False, 2)])
def test_learns_the_best_order(self_critical: bool, ppo_epochs: int) -> None:
    """Row numbers are not seen: cards are told apart by their features, in sessions that stay the same."""
    rows, network = [2, 5, 11, 17], make(hidden=16)
    observation = moments(2, rows, slots=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    before = Preference().values(None, network.emit(observation, 3))
    for _ in range(120):
        decisions, _ = evaluator_decisions(
            network, Preference(), observation, 8, self_critical, generator  # type: ignore[arg-type]
        )  # fmt: skip
        for _ in range(max(1, ppo_epochs)):
            optimizer.zero_grad()
            policy_loss(network, decisions, 0.001, 0.2 if ppo_epochs else None).backward()
            optimizer.step()
    assert network.emit(observation, 3).tolist() == [[17, 11, 5]] * 2
    assert (Preference().values(None, network.emit(observation, 3)) > before).all()


def test_demonstrations_put_clicked_cards_first() -> None:
    network, observation = make(hidden=16), moments(2, slots=0)
    shown = torch.tensor([[0, 4, 7, -1], [2, 3, 5, 9]])
    click = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 1]])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        demonstration_loss(network, network.encode(observation), shown, click, generator).backward()
        optimizer.step()
    place = -network.rank_scores(observation, shown.clamp(min=0))
    assert place[0, 2] < min(place[0, 0], place[0, 1])
    assert max(place[1, 1], place[1, 3]) < min(place[1, 0], place[1, 2])
    none = demonstration_loss(network, network.encode(observation), shown, torch.zeros_like(click), generator)
    assert none.item() == 0 and none.requires_grad


def test_distillation_copies_the_picked_list() -> None:
    network, observation = make(hidden=16), moments(2, slots=0)
    picked = torch.tensor([[9, 2, 4], [1, 0, -1]])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        distillation_loss(network, observation, picked).backward()
        optimizer.step()
    assert network.emit(observation, 3)[0].tolist() == [9, 2, 4]
    assert network.emit(observation, 2)[1].tolist() == [1, 0]


def test_hyper_parameters() -> None:
    with pytest.raises(InputError, match="samples = 1 has no other list"):
        PolicyGradientConfig(samples=1)
    assert PolicyGradientConfig(samples=1, self_critical=1).samples == 1
    s = PolicyGradientConfig(updates=10, demonstrations=0.4, fade=0.5)
    assert [s.demonstration_weight(n) for n in (0, 5, 9)] == [0.4, 0, 0]
    assert s.demonstration_weight(2) == pytest.approx(0.24)
    assert s.replace(fade=0.0).demonstration_weight(0) == 0
