"""The uplift estimators on a table with one row per unit, for example a published experiment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from edgerec_gym.agents.data.decisions import DecisionBatch
from edgerec_gym.agents.learning.tensors import torch_threads
from edgerec_gym.agents.requests.train import UpliftConfig, UpliftTrainer, make_model
from edgerec_gym.agents.requests.uplift_models import ESTIMATORS, TableEncoder, UpliftModel
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.uplift import check_experiment
from edgerec_gym.runs import check_seed

STOPPING_SHARE = 10  # one row in this many is used for early stopping


class TableRows:
    """Rows of a table as decisions: features (n, k), treated, outcome and propensity (n,)."""

    def __init__(
        self, features: np.ndarray, treated: np.ndarray, outcome: np.ndarray, propensity: np.ndarray
    ) -> None:
        columns = (features, treated, outcome, propensity)
        self.features, self.treated, self.outcome, self.propensity = (
            np.asarray(values, np.float32) for values in columns
        )

    def __len__(self) -> int:
        return len(self.treated)

    def batch(self, index: np.ndarray) -> DecisionBatch:
        """Return the rows `index` (B,)."""
        return DecisionBatch(
            {"features": self.features[index]},
            self.treated[index],
            self.outcome[index, None],
            self.propensity[index],
            index,
        )

    def chunks(self) -> Iterator[TableRows]:
        """Yield all rows as one chunk."""
        yield self


def fit_table(
    agent: str,
    features: np.ndarray,
    treated: np.ndarray,
    outcome: np.ndarray,
    propensity: np.ndarray,
    *,
    seed: int = 0,
    threads: int = 1,
    **hyper: Any,
) -> UpliftModel:
    """Train an estimator on a table; its input is {"features": (B, k)}.

    Args:
        agent: a name of :data:`~edgerec_gym.agents.requests.uplift_models.ESTIMATORS`.
        features: (n, k) float, at least 20 rows.
        treated: (n,) 0 or 1.
        outcome: (n,) float.
        propensity: (n,) probability of a treatment.
        seed: seed of initial parameters and of the rows' order.
        threads: torch threads.
        **hyper: fields of :class:`~edgerec_gym.agents.requests.train.UpliftConfig`.

    Raises:
        InputError: unknown names, values out of range or not finite, no treated or no untreated rows,
            a propensity of 0 or 1.
    """
    if agent not in ESTIMATORS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(ESTIMATORS)}")
    check_seed(seed)
    settings = UpliftConfig.from_dict(hyper)
    if features.ndim != 2 or len(features) < 2 * STOPPING_SHARE or not np.isfinite(features).all():
        raise InputError(f"table: features must be {2 * STOPPING_SHARE} rows or more of finite numbers")
    check_experiment(treated, outcome, propensity, "table")
    order = np.random.default_rng(seed).permutation(len(features))
    stop, train = order[: len(order) // STOPPING_SHARE], order[len(order) // STOPPING_SHARE :]
    rows = [TableRows(*(part[k] for part in (features, treated, outcome, propensity))) for k in (train, stop)]
    reference = torch.from_numpy(rows[0].features)
    network = make_model(agent, lambda: TableEncoder(reference), settings, float(np.mean(propensity)), seed)
    record = {"seed": seed, "steps": 0, "residual_loss": []}
    with torch_threads(threads):
        held = [rows[1].batch(np.arange(len(rows[1])))]
        trainer = UpliftTrainer(network, record, settings, rows[0], held, np.ones(1, np.float32))
        while not trainer.done:
            trainer.run_epoch()
    return trainer.best.eval()
