from __future__ import annotations

import numpy as np
import pytest

from benchmarks.attainable import calibration, figures, watch
from edgerec_gym.agents.attainable.policy import NAMES


@pytest.mark.parametrize("policy", NAMES)
def test_the_belief_is_calibrated(policy: str) -> None:
    rows = calibration(watch("lite", NAMES[policy], sessions=64, particles=128), policy)
    found = {row["metric"]: row for row in rows if "decile" not in row}
    assert 0.84 < found["category_in_set"]["mean"] < 0.95
    assert 0.86 < found["logit_in_interval"]["mean"] < 0.94
    assert found["predicted_clicks"]["mean"] == pytest.approx(found["true_clicks"]["mean"], rel=0.2)
    deciles = [row["mean"] for row in rows if row["metric"] == "true_by_decile"]
    assert np.mean(deciles[5:]) > 1.3 * np.mean(deciles[:5])


def test_shares_of_both_gaps() -> None:
    def sessions(value: float) -> dict[str, np.ndarray]:
        return {"value": np.full(5, value)}

    values = {"keep": 1.0, "device-greedy": 1.5, "attainable": 2.0, "oracle": 3.0}
    rows = figures({(name, None): sessions(value) for name, value in values.items()})
    found = {(row["policy"], row["metric"]): row["mean"] for row in rows}
    assert found["device-greedy", "gap_closed"] == 0.25
    assert found["device-greedy", "attainable_gap_closed"] == 0.5
    assert found["attainable", "below_oracle"] == 1.0
