"""What every re-ranker promises: shapes, legal rows, no influence of padding; and what papers claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_rerankers import RERANKERS, build
from torch import Tensor

from edgerec_gym.agents.diversity import (
    DeterminantalPointProcess,
    MaximalMarginalRelevance,
    base_ctr_score,
)
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.perception.interest_match import MATCH_SCALE, InterestMatch
from edgerec_gym.agents.rerank import crban
from edgerec_gym.agents.rerank.losses import attention_rank_loss, list_softmax_loss, log_loss
from edgerec_gym.agents.rerank.reranker import (
    ABSENT,
    ListEmitter,
    ListScorer,
    Reranker,
    RerankerConfig,
    RerankPolicy,
)
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.ranking import gauc, moment_auc
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv

SMALL = RerankerConfig(hidden=8)
SCORERS = [name for name, kind in RERANKERS.items() if issubclass(kind, ListScorer)]


def make_env(lite: Scenario, env_id: str = "EdgeFeedRerank-v0", num_envs: int = 6) -> EdgeFeedVectorEnv:
    return EdgeFeedVectorEnv(num_envs, track=track_of(env_id), scenario=lite, users="synthetic")


@pytest.fixture(scope="module")
def observation() -> Observation:
    """Some slots into six sessions: holes in the pool, histories that are filled in part."""
    env = make_env(Scenario.load("lite"))
    observation, _ = env.reset(seed=5)
    for _ in range(7):
        last_legal = 19 - observation["action_mask"][:, ::-1].argmax(1)
        observation, *_ = env.step(last_legal)
    return observation


def make(lite: Scenario, agent: str, seed: int = 0, **changes: Any) -> Reranker:
    network = build(agent, lite.config, SMALL.replace(**changes), seed)
    with torch.no_grad():  # away from initial zeros, so that every part has a say
        generator = torch.Generator().manual_seed(1)
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def output(network: Reranker, observation: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        if isinstance(network, ListScorer):
            return network.score(observation)
        return network.emit(observation, observation["pool"].shape[1]).float()


@pytest.mark.parametrize("agent", RERANKERS)
@pytest.mark.parametrize("layers", [1, 3])
def test_shapes_and_masks(lite: Scenario, observation: Observation, agent: str, layers: int) -> None:
    network, tensors = make(lite, agent, layers=layers), to_tensors(observation)
    present = observation["action_mask"] > 0
    assert 0 < present.sum() < present.size
    if isinstance(network, ListEmitter):
        emitted = network.emit(tensors, 20).numpy()
        assert emitted.shape == (6, 20) and emitted.dtype == np.int64
        for rows, there in zip(emitted, present, strict=True):
            assert sorted(rows[: there.sum()]) == np.flatnonzero(there).tolist()
            assert (rows[there.sum() :] == -1).all()
        assert np.array_equal(network.emit(tensors, 3).numpy(), emitted[:, :3])
        return
    score = output(network, tensors).numpy()
    assert score.shape == (6, 20) and score.dtype == np.float32
    assert np.array_equal(score == ABSENT, ~present)
    assert len(np.unique(score[0, present[0]])) > 1


@pytest.mark.parametrize("agent", RERANKERS)
def test_sessions_do_not_see_each_other(lite: Scenario, observation: Observation, agent: str) -> None:
    network, tensors = make(lite, agent), to_tensors(observation)
    together = output(network, tensors)
    for row in range(6):
        alone = output(network, to_tensors(observation, slice(row, row + 1)))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_match_starts_as_that_of_embeddings() -> None:
    match = InterestMatch(3, 2, heads=1)
    with torch.no_grad():
        match.weight.weight.copy_(torch.tensor([[2.0, 0.0]]))
        match.weight.bias.zero_()
        match.decay.fill_(0.0)  # one event costs a factor of e
    items, actions = torch.eye(3)[None, :2], torch.tensor([[[1.0, 9.0], [0.5, 9.0]]])
    found = match(torch.eye(3)[None], items, actions, torch.ones(1, 2, dtype=torch.bool))[0, :, 0]
    interest = np.array([2 * np.exp(-1), 1.0, 0.0])
    expected = MATCH_SCALE * interest / (1 + np.linalg.norm(interest))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5)
    nothing = match(torch.eye(3)[None], items, actions, torch.zeros(1, 2, dtype=torch.bool))
    nothing.sum().backward()
    assert not nothing.any() and torch.isfinite(match.metric.grad).all()


def test_groups_of_like_length_change_nothing(
    lite: Scenario, observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tensors = make(lite, "crban", match=1), to_tensors(observation)
    tensors["exposures"] = tensors["exposures"].clone()  # not those of the other tests
    tensors["exposures"][1:4, 3:] = 0  # shorter and longer in turn
    together = output(network, tensors)
    monkeypatch.setattr(crban, "GROUP", 2)
    torch.testing.assert_close(output(network, tensors), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("agent", RERANKERS)
def test_padding_does_not_matter(lite: Scenario, observation: Observation, agent: str) -> None:
    """Histories may be padded on the left, and get more padding."""
    network, tensors = make(lite, agent), to_tensors(observation)
    moved = dict(tensors)
    for key in ("exposures", "page_views"):
        rows = tensors[key]
        order = torch.argsort((rows != 0).any(-1).to(torch.int8), dim=1, stable=True)
        moved[key] = torch.cat((torch.zeros_like(rows), rows.gather(1, order[..., None].expand_as(rows))), 1)
    torch.testing.assert_close(output(network, tensors), output(network, moved), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("agent", RERANKERS)
def test_a_session_that_begins_has_finite_scores(lite: Scenario, agent: str) -> None:
    observation, _ = make_env(lite).reset(seed=0)
    assert torch.isfinite(output(make(lite, agent), to_tensors(observation))).all()
    empty = {key: torch.zeros_like(value) for key, value in to_tensors(observation).items()}
    assert torch.isfinite(output(make(lite, agent), empty)).all()


@pytest.mark.parametrize("agent", ["dnn", "setrank"])
def test_scores_follow_a_permutation_of_the_pool(
    lite: Scenario, observation: Observation, agent: str
) -> None:
    network, tensors = make(lite, agent), to_tensors(observation)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    permuted = tensors | {"pool": tensors["pool"][:, order]}
    torch.testing.assert_close(
        output(network, permuted), output(network, tensors)[:, order], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("agent", ["crban", "dlcm", "prm"])
def test_the_clouds_order_is_part_of_the_context(
    lite: Scenario, observation: Observation, agent: str
) -> None:
    network, tensors = make(lite, agent), to_tensors(observation)
    flipped = output(network, tensors | {"pool": tensors["pool"].flip(1)}).flip(1)
    assert (flipped - output(network, tensors)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({}, []),
        ({"page_views": 0}, ["page_views"]),
        ({"exposures": 0}, ["exposures"]),
        ({"exposures": 0, "page_views": 0}, ["exposures", "page_views", "actions"]),
        ({"actions": 0}, ["actions"]),
        ({"match": 1}, []),
        ({"match": 1, "exposures": 0}, ["exposures"]),
        ({"match": 1, "actions": 0}, ["actions"]),
    ],
)
def test_ablations_leave_out_what_they_name(
    lite: Scenario, observation: Observation, changes: dict[str, int], unread: list[str]
) -> None:
    network, tensors = make(lite, "crban", **changes), to_tensors(observation)
    before = output(network, tensors)
    seen = observation["page_views"].any(axis=(1, 2))
    assert seen.any()
    for part in ("exposures", "page_views", "actions"):
        changed = dict(tensors)
        first = lite.config.n_item_features + lite.config.n_types
        columns = slice(first, None) if part == "actions" else slice(0, lite.config.embedding_size)
        for key in ("exposures", "page_views") if part == "actions" else (part,):
            rows = tensors[key].clone()
            rows[..., columns] *= -0.5
            changed[key] = rows
        moved = bool((output(network, changed) - before).abs().max() > 1e-5)
        assert moved == (part not in unread), part


@pytest.mark.parametrize("agent", SCORERS)
def test_the_residual_is_the_logit_of_the_base_ctr(
    lite: Scenario, observation: Observation, agent: str
) -> None:
    tensors = to_tensors(observation)
    with_residual, without = (output(make(lite, agent, residual=r), tensors) for r in (1, 0))
    present = torch.from_numpy(observation["action_mask"] > 0)
    expected = torch.from_numpy(base_ctr_score(observation)).float()
    torch.testing.assert_close((with_residual - without)[present], expected[present], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("agent", RERANKERS)
@pytest.mark.parametrize("env_id", ["EdgeFeedRerank-v0", "EdgeFeed-v0"])
def test_plays_the_legal_row_that_it_puts_first(lite: Scenario, agent: str, env_id: str) -> None:
    env, policy = make_env(lite, env_id), RerankPolicy(agent, make(lite, agent))
    assert isinstance(policy, Policy)
    observation, _ = env.reset(seed=1)
    policy.reset(np.ones(6, np.bool_))
    for _ in range(15):
        actions = policy.act(observation)
        assert actions.dtype == np.int64 and (actions < 20).all()
        assert observation["action_mask"][np.arange(6), actions].all()
        found = output(policy.reranker, to_tensors(observation)).numpy()
        first = found.argmax(1) if agent in SCORERS else found[:, 0]
        assert np.array_equal(actions, first)
        observation, *_ = env.step(actions)


@pytest.mark.parametrize("agent", RERANKERS)
def test_loss_ignores_what_was_not_shown(lite: Scenario, observation: Observation, agent: str) -> None:
    network, tensors = make(lite, agent), to_tensors(observation)
    shown = torch.full((6, 5), -1)
    shown[:, :3] = torch.tensor(
        [[np.flatnonzero(m)[k] for k in (0, 2, 4)] for m in observation["action_mask"]]
    )
    click = torch.zeros(6, 5)
    click[:, 1] = 1

    def loss(clicks: Tensor) -> Tensor:
        return network.loss(tensors, shown, clicks, torch.Generator().manual_seed(0))

    other = click.clone()
    other[:, 3:] = 1
    assert torch.isfinite(loss(click))
    moved = click.clone()
    moved[:, [0, 1]] = click[:, [1, 0]]
    assert not torch.equal(loss(click), loss(moved))
    assert torch.equal(loss(click), loss(other))


@pytest.mark.parametrize("agent", SCORERS)
def test_who_needs_clicks_learns_nothing_from_misses(
    lite: Scenario, observation: Observation, agent: str
) -> None:
    network, tensors = make(lite, agent), to_tensors(observation)
    shown = torch.from_numpy(np.argsort(-observation["action_mask"], axis=1, kind="stable")[:, :3])
    click = torch.zeros(6, 3)
    click[::2, 1] = 1

    def loss(rows: slice) -> Tensor:
        part = {key: values[rows] for key, values in tensors.items()}
        return network.loss(part, shown[rows], click[rows], torch.Generator())

    assert torch.allclose(loss(slice(None)), loss(slice(None, None, 2)), rtol=1e-5) is network.needs_click


def test_losses_by_hand() -> None:
    score = torch.tensor([[2.0, 0.0, 9.0], [1.0, -1.0, 0.5]])
    click = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    shown = torch.tensor([[True, True, False], [True, True, True]])
    p = 1 / (1 + np.exp(-np.array([2.0, 0.0, 1.0, -1.0, 0.5])))
    expected = -(np.log(p[0]) + np.log(1 - p[1:]).sum()) / 5
    assert log_loss(score, click, shown).item() == pytest.approx(expected, rel=1e-5)
    softmax = np.exp(2) / (np.exp(2) + 1)  # the second list has no click
    assert list_softmax_loss(score, click, shown).item() == pytest.approx(-np.log(softmax), rel=1e-5)
    assert attention_rank_loss(score, click, shown).item() == pytest.approx(-2 * np.log(softmax), rel=1e-5)
    none = torch.zeros_like(click)
    assert list_softmax_loss(score, none, shown).item() == attention_rank_loss(score, none, shown).item() == 0


def test_gauc_by_hand() -> None:
    score = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 9.0], [5.0, 4.0, 3.0]])
    click = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    shown = np.array([[True, True, True], [True, True, False], [True, True, True]])
    auc, impressions = moment_auc(score, click, shown)
    assert auc[:2].tolist() == [0.5, 0.5] and impressions.tolist() == [3, 2, 0]
    assert gauc(score * [[1, 5, 1]], click, shown) == pytest.approx((3 * 1.0 + 2 * 0.0) / 5)
    assert np.isnan(gauc(score, np.zeros((3, 3)), shown))


@pytest.mark.parametrize("kind", [MaximalMarginalRelevance, DeterminantalPointProcess])
def test_diversity_trades_score_for_difference(observation: Observation, kind: type) -> None:
    d = observation["pool"].shape[2] - 4

    def spread(relevance: float) -> float:
        rows = kind(relevance=relevance, window=0).emit(observation, 5)
        items = np.take_along_axis(observation["pool"][:, :, :d], rows[..., None], 1)
        return float((items @ items.transpose(0, 2, 1)).mean())

    assert spread(0.2) < spread(1.0) - 0.05
    best = kind(relevance=1.0).emit(observation, 20)
    score = np.where(observation["action_mask"] > 0, base_ctr_score(observation), -np.inf)
    for rows, values in zip(best, score, strict=True):
        count = int(np.isfinite(values).sum())
        assert np.array_equal(rows[:count], np.argsort(-values, kind="stable")[:count])
        assert (rows[count:] == -1).all()


@pytest.mark.parametrize("kind", [MaximalMarginalRelevance, DeterminantalPointProcess])
def test_what_was_shown_last_counts(observation: Observation, kind: type) -> None:
    """A card that repeats the one on screen comes last."""
    seen = {key: value.copy() for key, value in observation.items()}
    d = seen["pool"].shape[2] - 4
    row = observation["action_mask"].argmax(1)
    seen["pool"][np.arange(6), row, :d] = seen["screen"][:, -1, :d]
    emitted = kind(relevance=0.0, window=1).emit(seen, 20)
    for rows, twin in zip(emitted, row, strict=True):
        assert rows[rows >= 0][-1] == twin


def test_dpp_maximises_the_determinant_greedily(observation: Observation) -> None:
    """Each card it adds is the one with the largest determinant, computed anew."""
    d = observation["pool"].shape[2] - 4
    emitted = DeterminantalPointProcess(relevance=0.5, window=0).emit(observation, 4)
    for row, rows in enumerate(emitted):
        items = observation["pool"][row, :, :d].astype(np.float64)
        quality = np.exp(base_ctr_score(observation)[row])
        kernel = (1 + items @ items.T) / 2
        np.fill_diagonal(kernel, 1.0)
        legal = set(np.flatnonzero(observation["action_mask"][row]))
        for k in range(4):
            values = {}
            for j in sorted(legal - set(rows[:k])):
                chosen = [*rows[:k], j]
                values[j] = np.linalg.det(kernel[np.ix_(chosen, chosen)]) * quality[chosen].prod()
            assert rows[k] == max(values, key=values.__getitem__)


@pytest.mark.parametrize("kind", [MaximalMarginalRelevance, DeterminantalPointProcess])
def test_diversity_takes_any_score(lite: Scenario, observation: Observation, kind: type) -> None:
    policy = RerankPolicy("dnn", make(lite, "dnn"))
    alone = kind(relevance=1.0, scorer=policy.scores)
    assert np.array_equal(alone.act(observation), policy.act(observation))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relevance": 1.5}, "relevance = 1.5 is out of range"),
        ({"window": 0.5}, "window = 0.5 must be a whole"),
    ],
)
def test_diversity_checks_its_options(options: dict[str, Any], message: str) -> None:
    for kind in (MaximalMarginalRelevance, DeterminantalPointProcess):
        with pytest.raises(InputError, match=message):
            kind(**options)


def test_heads_divide_hidden() -> None:
    with pytest.raises(InputError, match="heads = 3 must divide hidden = 32"):
        RerankerConfig(heads=3)
