"""The terms of the distillation beside brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgerec_gym.agents.distillation.losses import (
    confidence,
    embedding_loss,
    interpolated_log_loss,
    relaxed_ranking_loss,
)
from edgerec_gym.agents.rerank.losses import log_loss

seeds = st.integers(0, 2**16)


def draw(seed: int, n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, n, generator=generator, dtype=torch.float64)
    present = torch.rand(3, n, generator=generator) < 0.7
    present[:, 0] = True
    return student, teacher, present


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 8))
def test_ranking_is_the_likelihood_of_the_teachers_top(seed: int, top: int) -> None:
    student, teacher, present = draw(seed)
    total, places = 0.0, 0
    for r in range(3):
        order = [i for i in teacher[r].argsort(descending=True).tolist() if present[r, i]]
        for k, item in enumerate(order[:top]):
            left = torch.stack([student[r, i] for i in order[k:]])
            total += float(torch.logsumexp(left, 0) - student[r, item])
            places += 1
    found = relaxed_ranking_loss(student, teacher, present, top)
    assert float(found) == pytest.approx(total / places)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_nothing_is_asked_of_the_order_among_the_rest(seed: int) -> None:
    student, teacher, _ = draw(seed)
    present = torch.ones_like(teacher, dtype=torch.bool)
    order = teacher.argsort(1, descending=True)
    turned = teacher.clone()
    rest = order[:, 3:]
    turned.scatter_(1, rest, teacher.gather(1, rest.flip(1)))
    kept = relaxed_ranking_loss(student, teacher, present, 3)
    torch.testing.assert_close(relaxed_ranking_loss(student, turned, present, 3), kept)


def test_ranking_is_least_where_the_student_orders_like_the_teacher() -> None:
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    present = torch.ones(1, 4, dtype=torch.bool)
    same = relaxed_ranking_loss(9 * teacher, teacher, present, 2)
    assert float(same) < 1e-3
    assert float(relaxed_ranking_loss(-9 * teacher, teacher, present, 2)) > 5


def test_lists_with_nothing_present_have_no_loss_and_no_nan() -> None:
    student = torch.zeros(2, 4, requires_grad=True)
    present = torch.tensor([[True, True, False, False], [False] * 4])
    loss = relaxed_ranking_loss(student, torch.zeros(2, 4), present, 3)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2) / 2)
    assert torch.isfinite(student.grad).all()
    assert not student.grad[1].any()


@pytest.mark.parametrize(
    ("logits", "expected"), [([0.0, 0.0, 0.0], 0.0), ([60.0, 0.0, 0.0], 1.0), ([5.0], 0.0)]
)
def test_confidence(logits: list[float], expected: float) -> None:
    teacher = torch.tensor([[*logits, 99.0]])
    present = torch.ones(1, len(logits) + 1, dtype=torch.bool)
    present[0, -1] = False  # does not count
    assert float(confidence(teacher, present)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_interpolation_reaches_from_clicks_to_the_teachers_probabilities(seed: int) -> None:
    student, teacher, shown = draw(seed)
    click = (teacher > 0).double()
    clicks = interpolated_log_loss(student, click, shown, teacher, torch.zeros(3))
    torch.testing.assert_close(clicks, log_loss(student, click, shown))
    told = interpolated_log_loss(student, click, shown, teacher, torch.ones(3))
    soft = functional.binary_cross_entropy_with_logits(student[shown], torch.sigmoid(teacher)[shown])
    torch.testing.assert_close(told, soft)


def test_embedding_loss_is_one_for_nothing_and_zero_for_the_same() -> None:
    codes = 5 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True, False], [True, False, False]])
    assert float(embedding_loss(torch.zeros_like(codes), codes, present)) == pytest.approx(1)
    scaled = codes / codes[present].square().mean().sqrt()
    scaled[~present] = 77.0
    assert float(embedding_loss(scaled, codes, present)) == pytest.approx(0, abs=1e-9)
