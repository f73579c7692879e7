"""Off-policy estimates on real clicks: the Open Bandit Dataset (Saito et al., NeurIPS 2021, datasets track).

ZOZOTOWN showed fashion items under two policies in the same week: uniformly at random, and Bernoulli Thompson
sampling (BTS). The random log gives an estimate of BTS's click rate, and BTS's own log gives the truth. BTS
changes with time; its probabilities at a position are its frequencies there, in its own log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.off_policy import ESTIMATORS, LoggedDecisions, off_policy_estimates

CAMPAIGNS = ("all", "men", "women")
POSITIONS = (1, 2, 3)


def load_open_bandit(folder: str | Path) -> pl.DataFrame:
    """Read exposures.csv.gz: policy, campaign, item_id, position, click, propensity_score."""
    path = Path(folder) / "exposures.csv.gz"
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    columns = ["policy", "campaign", "item_id", "position", "click", "propensity_score"]
    return pl.read_csv(path, columns=columns)


def random_decisions(exposures: pl.DataFrame, campaign: str, positions: tuple[int, ...]) -> LoggedDecisions:
    """Rows of the random log as sessions, with how often BTS showed each item at each position."""
    chosen = exposures.filter(pl.col("campaign") == campaign, pl.col("position").is_in(positions))
    logged, bts = (chosen.filter(pl.col("policy") == name) for name in ("random", "bts"))
    item, position = logged["item_id"].to_numpy(), logged["position"].to_numpy()
    n_items = int(chosen["item_id"].max()) + 1  # type: ignore[arg-type]
    shown = np.zeros((len(POSITIONS), n_items))
    np.add.at(shown, (bts["position"].to_numpy() - 1, bts["item_id"].to_numpy()), 1.0)
    shown[[p - 1 for p in positions]] /= shown[[p - 1 for p in positions]].sum(axis=1, keepdims=True)
    propensity = logged["propensity_score"].to_numpy()
    if not np.allclose(propensity, 1 / n_items, atol=1e-6):
        raise InputError(f"campaign {campaign!r}: the random log is not uniform over {n_items} items")
    return LoggedDecisions(
        session=np.arange(len(item)),
        action=item,
        logging=np.full((len(item), n_items), 1 / n_items),
        target=shown[position - 1],
        reward=logged["click"].to_numpy().astype(np.float64),
        before=np.zeros(len(item)),
        features=(position[:, None] == np.array(positions)).astype(np.float64),
    )


def open_bandit_rows(folder: str | Path) -> list[dict[str, Any]]:
    """Value of BTS by campaign, at each position and overall: rows {campaign, position, estimator, ...}."""
    exposures = load_open_bandit(folder)
    rows: list[dict[str, Any]] = []
    for campaign in CAMPAIGNS:
        for positions in (POSITIONS, *((p,) for p in POSITIONS)):
            decisions = random_decisions(exposures, campaign, positions)
            bts = exposures.filter(
                pl.col("policy") == "bts", pl.col("campaign") == campaign, pl.col("position").is_in(positions)
            )
            true = mean_interval(bts["click"].to_numpy().astype(np.float64))
            found = off_policy_estimates(decisions)
            place = {"campaign": campaign, "position": positions[0] if len(positions) == 1 else "all"}
            rows.append({**place, "estimator": "on-policy", **true, "rows": len(bts)})
            for name in (*ESTIMATORS, "logged"):
                error = found[name]["mean"] / true["mean"] - 1
                rows.append({**place, "estimator": name, **found[name], "relative_error": error})
            rows[-1]["rows"], rows[-1]["effective_rows"] = found["sessions"], found["effective_sessions"]
    return rows
