"""Where all lists can be counted out, generator and evaluator together come within 1 % of the best."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import exact_k


@pytest.mark.slow
def test_generator_and_search_reach_the_best_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = exact_k.study(tmp_path, sessions=200, seeds=1, epochs=2, updates=20, requests=40)
    rows = found["rows"]
    share = {name: row["share_of_best"]["mean"] for name, row in rows.items()}
    assert found["requests"] == 40 and found["sessions"] > 3
    assert share[exact_k.ALL] < 0.85, "it matters which list it is"
    assert share[exact_k.SEARCH] >= 0.99
    assert share[exact_k.SEARCH] >= share[exact_k.SEARCH_ALONE] - 1e-9
    assert share[exact_k.GRADIENT] > 0.9 and share[exact_k.SAMPLED] > share[exact_k.ALL]
    assert all(value <= 1 + 1e-6 for value in share.values())
    exact_k.show(rows)
    assert exact_k.SEARCH in capsys.readouterr().out
