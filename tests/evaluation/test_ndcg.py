"""NDCG beside brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec_gym.evaluation.ranking import ndcg


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**16))
def test_ndcg(size: int, cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, gain = rng.integers(4, size=(3, size)).astype(float), rng.random((3, size)).round(1)
    shown = rng.random((3, size)) < 0.8
    found = ndcg(score, gain, shown, cut)
    for r in range(3):
        there = [i for i in range(size) if shown[r, i]]
        order = sorted(there, key=lambda i: -score[r, i])[:cut]  # stable: of equal scores the first
        best = sorted((gain[r, i] for i in there), reverse=True)[:cut]
        dcg = sum(gain[r, i] / math.log2(k + 2) for k, i in enumerate(order))
        ideal = sum(g / math.log2(k + 2) for k, g in enumerate(best))
        if ideal == 0:
            assert math.isnan(found[r])
        else:
            assert found[r] == pytest.approx(dcg / ideal)
