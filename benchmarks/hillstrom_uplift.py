"""Our estimators on a real randomised experiment, compared with a library: Hillstrom's e-mail test.

    python -m benchmarks.hillstrom_uplift hillstrom.csv.gz [--seeds 3]

64,000 customers got an e-mail for men, one for women, or none; the outcome is a visit within two weeks. The
estimators are trained on one half of the customers and rank the other: Qini per treated customer, 95 %
bootstrap over customers, and the paired difference to scikit-learn T-learners (a logistic regression or trees
per arm).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sklearn
import torch
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.uplift_tables import fit_table
from edgerec_gym.agents.requests.train import uplift
from edgerec_gym.agents.requests.uplift_models import ESTIMATORS
from edgerec_gym.evaluation.cache import row, save_rows
from edgerec_gym.evaluation.uplift import RankedSample, interval

ARMS = {"men's e-mail": "Mens E-Mail", "women's e-mail": "Womens E-Mail"}
NONE = "No E-Mail"
HYPER: dict[str, Any] = {"epochs": 15, "patience": 5, "batch_size": 512}


def library_t_learner(
    kind: str, seed: int, x: np.ndarray, t: np.ndarray, y: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Effects at the rows `at` of a T-learner of scikit-learn models."""

    def probability(arm: int) -> np.ndarray:
        model = (
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            if kind == "logistic"
            else HistGradientBoostingClassifier(
                max_iter=100, learning_rate=0.05, max_leaf_nodes=8, random_state=seed
            )
        )
        return model.fit(x[t == arm], y[t == arm]).predict_proba(at)[:, 1]

    return probability(1) - probability(0)


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, k), segment (n,), visit (n,)."""
    table = pl.read_csv(path)
    numbers = table.select("recency", pl.col("history").log1p(), "mens", "womens", "newbie").to_numpy()
    places = table.select("zip_code", "channel").to_dummies().to_numpy()
    features = np.concatenate([numbers, places], axis=1).astype(np.float64)
    return features, table["segment"].to_numpy(), table["visit"].to_numpy().astype(np.float64)


def arm_rows(arm: str, x: np.ndarray, t: np.ndarray, y: np.ndarray, seeds: int) -> list[dict[str, Any]]:
    """Rows for one e-mail against none."""
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    e = np.full(len(x), t.mean())
    scores: dict[str, list[np.ndarray]] = {}
    for kind in ("logistic", "trees"):
        scores[f"scikit-learn T-learner, {kind}"] = [
            library_t_learner(kind, seed, x[train], t[train], y[train], x[test]) for seed in range(seeds)
        ]
    for agent in ESTIMATORS:
        models = [
            fit_table(agent, x[train], t[train], y[train], e[train], seed=s, **HYPER) for s in range(seeds)
        ]
        features = {"features": x[test].astype(np.float32)}
        scores[agent] = [uplift(model, features).tau.double().numpy() for model in models]
    ranked = {name: [RankedSample(s, t[test], y[test]) for s in found] for name, found in scores.items()}
    customers, reference = np.arange(len(test)), ranked["scikit-learn T-learner, logistic"]

    def qini(samples: list[RankedSample], weight: np.ndarray) -> float:
        return float(np.mean([sample.qini(weight) for sample in samples]))

    rows = []
    for name, samples in ranked.items():
        own = interval(lambda w, s=samples: qini(s, w), customers)  # type: ignore[misc]
        rows.append(row(name, "qini", own, seeds, len(test), arm=arm))
        if samples is not reference:
            apart = interval(lambda w, s=samples: qini(s, w) - qini(reference, w), customers)  # type: ignore[misc]
            rows.append(row(name, "qini_over_logistic_t_learner", apart, seeds, len(test), arm=arm))
    return rows


def main() -> None:
    """Fit, rank, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="hillstrom.csv or hillstrom.csv.gz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/hillstrom_uplift.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, segment, y = read(arguments.data)
    rows = []
    table = Table("e-mail", "estimator", "Qini", "over the logistic T-learner", title="Hillstrom, visits")
    for arm, name in ARMS.items():
        kept = np.isin(segment, (name, NONE))
        found = arm_rows(arm, x[kept], (segment[kept] == name).astype(float), y[kept], arguments.seeds)
        rows += found
        cells = {
            (r["policy"], r["metric"]): f"{r['mean']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]" for r in found
        }
        for policy in dict.fromkeys(r["policy"] for r in found):
            over = cells.get((policy, "qini_over_logistic_t_learner"), "")
            table.add_row(arm, policy, cells[policy, "qini"], over)
    Console(width=130).print(table)
    about = {
        "data": "hillstrom",
        "seeds": arguments.seeds,
        "scikit-learn": sklearn.__version__,
        "hyper": HYPER,
    }
    save_rows(arguments.results, rows, about, same=("data",))


if __name__ == "__main__":
    main()
