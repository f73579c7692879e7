"""The study of the item table's columns."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.item_table import explained, show, study


def test_what_is_explained() -> None:
    rng = np.random.default_rng(0)
    told, noise = rng.normal(size=(2, 5000))
    weight = rng.random(5000)
    assert explained([told], told + noise, weight) == pytest.approx(0.5, abs=0.05)
    assert explained([told], 3 * told - 1, weight) == pytest.approx(1)
    assert explained([], told, weight) == pytest.approx(0, abs=1e-9)


def test_a_small_study(tmp_path, capsys) -> None:
    found = study("lite", tmp_path / "logs", 20, 0, log_sessions=150)
    assert found["log_sessions"] == 150
    told = found["knowledge"]["attractiveness"]
    assert 0 < told["shipped"] < told["+ all lifts"] <= 1
    assert list(found["policies"])[-2:] == ["item-greedy", "oracle"]
    show("lite", found)
    assert "share of keep -> oracle" in capsys.readouterr().out
