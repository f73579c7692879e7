"""The share of the attainable gap that runs close."""

from __future__ import annotations

import pytest

from benchmarks.attainable_share import measure
from edgerec_gym.bench.shipped import shipped_folder


def test_a_few_sessions_of_a_shipped_run() -> None:
    run = shipped_folder("rerank", "lite") / "runs" / "crban-0"
    figures = measure([run, run], "lite", "EdgeFeedRerank-v0", 12, None, 0)
    assert list(figures) == ["keep", "device-greedy", "crban", "attainable", "oracle"]
    assert figures["oracle"]["gap_closed"]["mean"] == pytest.approx(1)
    assert figures["attainable"]["attainable_gap_closed"]["mean"] == pytest.approx(1)
    assert {"exploitation_gap", "gain_over_device-greedy"} <= figures["crban"].keys()
    own, keep = figures["crban"]["value"]["mean"], figures["keep"]["value"]["mean"]
    assert figures["crban"]["gain_over_keep"]["mean"] == pytest.approx(own - keep)


def test_shifted_users_need_no_learned_ones() -> None:
    run = shipped_folder("rerank", "lite") / "runs" / "crban-0"
    figures = measure([run], "lite", "EdgeFeedRerank-v0", 8, "impatient", 0)
    assert "exploitation_gap" not in figures["crban"]
