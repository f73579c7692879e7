"""The share of the attainable gap that runs close."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.attainable_share import measure
from edgerec_gym.bench.shipped import shipped_folder


def test_a_few_sessions_of_a_shipped_run(tmp_path: Path) -> None:
    run = shipped_folder("rerank", "lite") / "runs" / "crban-0"
    figures = measure([run, run], "lite", "EdgeFeedRerank-v0", 12, None, 0, tmp_path)
    assert list(figures) == ["keep", "device-greedy", "crban", "attainable", "oracle"]
    assert figures["oracle"]["gap_closed"]["mean"] == pytest.approx(1)
    assert figures["attainable"]["attainable_gap_closed"]["mean"] == pytest.approx(1)
    assert {"exploitation_gap", "gain_over_device-greedy"} <= figures["crban"].keys()
    own, keep = figures["crban"]["value"]["mean"], figures["keep"]["value"]["mean"]
    assert figures["crban"]["gain_over_keep"]["mean"] == pytest.approx(own - keep)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert measure([run, run], "lite", "EdgeFeedRerank-v0", 12, None, 0, tmp_path) == figures
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written  # not played again


def test_shifted_users_need_no_learned_ones(tmp_path: Path) -> None:
    run = shipped_folder("rerank", "lite") / "runs" / "crban-0"
    figures = measure([run], "lite", "EdgeFeedRerank-v0", 8, "impatient", 0, tmp_path)
    assert "exploitation_gap" not in figures["crban"]
