"""LightGCN, SASRec and DeepFM beside exact references, and on data made so that they must learn it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec_gym.agents.teachers.deepfm import DeepFM, second_order
from edgerec_gym.agents.teachers.light_gcn import EdgeSampler, LightGCN, normalised_adjacency, train_epoch
from edgerec_gym.agents.teachers.sasrec import CausalEncoder, SASRec


def four_nodes(layers: int = 2) -> tuple[LightGCN, torch.Tensor]:
    """Users 0 and 1, items 0 and 1; user 0 chose both, user 1 chose item 1."""
    users, items = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])  # the last edge appears twice
    model = LightGCN(normalised_adjacency(users, items, 2, 2), 2, dim=3, layers=layers)
    a = torch.zeros(4, 4)
    for user, item in ((0, 0), (0, 1), (1, 1)):
        a[user, 2 + item] = a[2 + item, user] = 1
    degree = a.sum(1)
    return model, a / torch.sqrt(degree[:, None] * degree)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_propagation_is_the_mean_of_powers_of_the_normalised_graph(layers: int) -> None:
    model, dense = four_nodes(layers)
    expected = sum(torch.linalg.matrix_power(dense, k) @ model.embedding for k in range(layers + 1))
    torch.testing.assert_close(model.propagate(), expected / (layers + 1))
    users, items = model()
    torch.testing.assert_close(torch.cat((users, items)), model.propagate())


def test_gradient_of_the_propagation_is_that_of_the_dense_product() -> None:
    model, dense = four_nodes()
    weight = torch.arange(12.0).reshape(4, 3)
    (model.propagate() * weight).sum().backward()
    e = model.embedding.detach().clone().requires_grad_()
    (sum(torch.linalg.matrix_power(dense, k) @ e for k in range(3)) / 3 * weight).sum().backward()
    torch.testing.assert_close(model.embedding.grad, e.grad)


def test_triples_are_edges_and_their_negatives_are_not() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(5, size=30), rng.integers(20, size=30)
    edges = set(zip(users.tolist(), items.tolist(), strict=True))
    user, positive, negative = EdgeSampler(users, items, 20).epoch(rng)
    assert set(zip(user.tolist(), positive.tolist(), strict=True)) == edges
    assert not edges & set(zip(user.tolist(), negative.tolist(), strict=True))


def test_light_gcn_ranks_what_alike_users_chose() -> None:
    rng = np.random.default_rng(0)
    chosen = [(u, i) for u in range(20) for i in range(20) if u % 2 == i % 2 and rng.random() < 0.7]
    users, items = (np.array(values) for values in zip(*chosen, strict=True))
    torch.manual_seed(0)
    model = LightGCN(normalised_adjacency(users, items, 20, 20), 20, dim=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    sampler = EdgeSampler(users, items, 20)
    losses = [train_epoch(model, sampler, optimizer, rng, 64, 1e-4) for _ in range(20)]
    own, other = model()
    score = (own @ other.T).detach().numpy()
    same = np.arange(20)[:, None] % 2 == np.arange(20) % 2
    unseen = same.copy()
    unseen[users, items] = False
    assert losses[-1] < losses[0] / 2
    assert score[unseen].min() > score[~same].max()  # also those that were never chosen


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**16))
def test_the_future_never_leaks(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    encoder = CausalEncoder(8, 8, blocks=2, heads=2, dropout=0.5).eval()
    places = torch.randn(2, length, 8, generator=generator)
    present = torch.rand(2, length, generator=generator) < 0.7
    before = encoder(places, present)
    cut = int(torch.randint(length, (), generator=generator))
    changed, shown = places.clone(), present.clone()
    changed[:, cut + 1 :] += 1
    shown[:, cut + 1 :] = ~shown[:, cut + 1 :]
    torch.testing.assert_close(encoder(changed, shown)[:, : cut + 1], before[:, : cut + 1])


def test_absent_places_tell_nothing() -> None:
    torch.manual_seed(0)
    encoder = CausalEncoder(4, 8, blocks=1, heads=1, dropout=0.0).eval()
    places = torch.randn(1, 4, 8)
    present = torch.tensor([[False, True, False, True]])
    changed = places.clone()
    changed[:, [0, 2]] = 9.0
    torch.testing.assert_close(encoder(changed, present)[present], encoder(places, present)[present])


def test_sasrec_learns_a_cycle() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.integers(7, size=64)[:, None] + 3 * np.arange(9)) % 7 + 1  # the next item is 3 further
    sequence, following = torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])
    torch.manual_seed(0)
    model = SASRec(7, length=8, dim=16, blocks=1, heads=1, dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(sequence, following).backward()
        optimizer.step()
    model.eval()
    short = torch.nn.functional.pad(sequence[:, :3], (5, 0))  # padded in front
    assert (model.score(short).argmax(1) + 1 == following[:, 2]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**16))
def test_second_order_is_the_sum_over_all_pairs(fields: int, dim: int, seed: int) -> None:
    v = torch.randn(3, fields, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = [(v[:, i] * v[:, j]).sum(1) for i in range(fields) for j in range(i)]
    expected = torch.stack(pairs).sum(0) if pairs else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(second_order(v), expected)


def test_deepfm_means_several_values_and_ignores_absent_ones() -> None:
    torch.manual_seed(0)
    model = DeepFM((3, 4), dim=2, hidden=(4,)).eval()
    values = torch.tensor([[[1, -1], [0, 2]]])
    v = model.embedding.weight
    first, second = v[1], (v[3] + v[5]) / 2
    deep, _ = model.deep(torch.cat((first, second)))
    torch.testing.assert_close(model(values)[0], first @ second + deep)  # the first order starts at 0


def test_deepfm_learns_an_interaction_that_no_field_tells_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(2, size=(400, 2, 1))
    click = torch.from_numpy((values[:, 0, 0] ^ values[:, 1, 0]).astype(np.float32))
    torch.manual_seed(0)
    model = DeepFM((2, 2), dim=4, hidden=(8,), dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        logit = model(torch.from_numpy(values))
        torch.nn.functional.binary_cross_entropy_with_logits(logit, click).backward()
        optimizer.step()
    assert ((model(torch.from_numpy(values)) > 0) == (click > 0.5)).all()
