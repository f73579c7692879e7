"""Estimators recover a known effect from tables, the same seed gives the same one, bad tables are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.uplift_tables import fit_table
from edgerec_gym.agents.requests.train import uplift
from edgerec_gym.agents.requests.uplift_models import ESTIMATORS, Effect, residual_loss
from edgerec_gym.errors import InputError

HYPER = {"epochs": 8, "patience": 8, "batch_size": 128, "learning_rate": 1e-2, "weight_decay": 0.1}


def experiment(share: float = 0.5, rows: int = 4000) -> tuple[np.ndarray, ...]:
    """Features, treated, outcome, propensity, and the effect: positive where x0 is, negative elsewhere."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    tau = 1.5 * x[:, 0]
    treated = (rng.random(rows) < share).astype(float)
    outcome = x[:, 1] + tau * treated + 0.5 * rng.normal(size=rows)
    return x, treated, outcome, np.full(rows, share), tau


@pytest.mark.slow
@pytest.mark.parametrize("agent", ESTIMATORS)
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_recovers_the_effect_and_both_outcomes(agent: str, share: float) -> None:
    x, treated, outcome, propensity, tau = experiment(share)
    effect = uplift(fit_table(agent, x, treated, outcome, propensity, **HYPER), {"features": x})
    found = effect.tau.numpy()
    assert np.corrcoef(found, tau)[0, 1] > 0.9
    assert 0.7 < found.std() / tau.std() < 1.3
    assert np.corrcoef(effect.mu0.numpy(), x[:, 1])[0, 1] > 0.8
    assert np.corrcoef(effect.mu1.numpy(), x[:, 1] + tau)[0, 1] > 0.8


@pytest.mark.parametrize("agent", ESTIMATORS)
def test_one_seed_one_estimate(agent: str) -> None:
    x, treated, outcome, propensity, _ = experiment(rows=400)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    found = [
        uplift(fit_table(agent, x, treated, outcome, propensity, seed=seed, epochs=2), {"features": x}).tau
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dragonnet_learns_who_was_treated() -> None:
    """Where treatment follows x2, which drives the outcome too, the propensity head finds it."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4000, 3))
    p = 1 / (1 + np.exp(-x[:, 2]))
    treated = (rng.random(len(x)) < p).astype(float)
    outcome = x[:, 2] + treated
    network = fit_table("uplift-dragon", x, treated, outcome, p, alpha=1.0, **HYPER)
    features = {"features": torch.from_numpy(x.astype(np.float32))}
    with torch.inference_mode():
        estimated = torch.sigmoid(network.propensity(network._code(features))[:, 0]).numpy()
        effect = network.uplift(features).tau.mean().item()
    assert np.corrcoef(estimated, p)[0, 1] > 0.95
    assert effect == pytest.approx(1.0, abs=0.15)


def test_residual_loss_by_hand() -> None:
    effect = Effect(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([3.0]))
    half = torch.tensor([0.5])
    # The mean outcome is 2; treated, the effect adds (1 - 1/2) 2.
    assert residual_loss(effect, torch.ones(1), torch.tensor([3.0]), half).item() == 0
    assert residual_loss(effect, torch.zeros(1), torch.tensor([3.0]), half).item() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"treated": np.zeros(40)}, "no treated rows"),
        ({"propensity": np.ones(40)}, "propensity 1 is not between"),
        ({"outcome": np.full(40, np.nan)}, "outcome holds values that are not finite"),
        ({"features": np.full((40, 4), np.inf)}, "features must be"),
        ({"agent": "uplift-s"}, "unknown agent 'uplift-s'; allowed: uplift-t, uplift-x"),
    ],
)
def test_bad_tables(change: dict, message: str) -> None:
    x, treated, outcome, propensity, _ = experiment(rows=40)
    given = {"features": x, "treated": treated, "outcome": outcome, "propensity": propensity}
    with pytest.raises(InputError, match=message):
        fit_table(**({"agent": "uplift-t"} | given | change))
