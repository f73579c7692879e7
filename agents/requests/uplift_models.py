"""Estimators of a treatment's effect: T-learner, X-learner, class transformation, DragonNet.

All of them read a batch of observations through their own encoders, learn from (treated, outcome,
propensity), and answer `uplift(observation) -> tau, mu0, mu1`. An encoder is a torch module with an
attribute `size`, observation -> (B, size); so the same estimators work on the feed (feed_encoder.py) and on
tables (:class:`TableEncoder`). Losses are squared errors, also for binary outcomes: they predict a mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Encoder = Callable[[], nn.Module]
CLIP = 0.01  # minimum distance of an estimated propensity from 0 and 1


class Effect(NamedTuple):
    """Estimates, (B,) float32 each.

    Attributes:
        tau: outcome with the treatment minus outcome without it.
        mu0: expected outcome without the treatment.
        mu1: expected outcome with it.
    """

    tau: Tensor
    mu0: Tensor
    mu1: Tensor


class TableEncoder(nn.Module):
    """Standardise the columns of a table: observation {"features": (B, n)} -> (B, n).

    Args:
        features: (R, n) float32 rows from which mean and scale are taken.
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.size = features.shape[1]
        scale = features.std(0)
        self.mean = nn.Parameter(features.mean(0), requires_grad=False)
        self.scale = nn.Parameter(torch.where(scale > 0, scale, 1.0), requires_grad=False)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Standardise a batch."""
        return (observation["features"] - self.mean) / self.scale


class Regressor(nn.Module):
    """An encoder with a one-hidden-layer head and a linear skip: observation -> (B, outputs)."""

    def __init__(self, encoder: Encoder, hidden: int, outputs: int = 1) -> None:
        super().__init__()
        self.encoder = encoder()
        size = int(self.encoder.size)  # type: ignore[arg-type]
        self.hidden = nn.Linear(size, hidden)
        self.linear = nn.Linear(size, outputs)
        self.out = nn.Linear(hidden, outputs, bias=False)
        for parameter in (self.out.weight, self.linear.weight):  # effects are small: start at zero
            nn.init.zeros_(parameter)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Predict."""
        code = self.encoder(observation)
        return self.linear(code) + self.out(torch.relu(self.hidden(code)))


def squared_error(prediction: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean squared error of the rows where `where` (B,) is 1; 0 if there are none."""
    return ((prediction - target).square() * where).sum() / where.sum().clamp(min=1)


class TLearner(nn.Module):
    """Two models, one per arm; the effect is their difference (Künzel et al., PNAS 2019)."""

    def __init__(self, encoder: Encoder, hidden: int, share: float) -> None:
        super().__init__()
        self.without, self.treated = Regressor(encoder, hidden), Regressor(encoder, hidden)

    def uplift(self, observation: dict[str, Tensor]) -> Effect:
        """Estimate the effects."""
        mu0, mu1 = self.without(observation)[:, 0], self.treated(observation)[:, 0]
        return Effect(mu1 - mu0, mu0, mu1)

    def tau(self, observation: dict[str, Tensor]) -> Tensor:
        """Estimate only the effect, (B,)."""
        return self.uplift(observation).tau

    def loss(
        self, observation: dict[str, Tensor], treated: Tensor, outcome: Tensor, propensity: Tensor
    ) -> Tensor:
        """Squared error of each arm's model on its own arm; all (B,)."""
        _, mu0, mu1 = self.uplift(observation)
        return squared_error(mu0, outcome, 1 - treated) + squared_error(mu1, outcome, treated)


class XLearner(nn.Module):
    """Two outcome models impute the missing outcome of each arm; two more learn the differences.

    D1 = y - mu0(x) on the treated, D0 = mu1(x) - y on the others; tau = e tau0(x) + (1 - e) tau1(x)
    (Künzel et al., PNAS 2019). Both stages learn at once, the second from the current state of the first.

    Args:
        encoder: makes an encoder; each outcome model has its own, the two effect models share one.
        hidden: width of the heads.
        share: e, the share of treated rows.
    """

    def __init__(self, encoder: Encoder, hidden: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.outcome = TLearner(encoder, hidden, share)
        self.effects = Regressor(encoder, hidden, 2)  # tau0, tau1

    def uplift(self, observation: dict[str, Tensor]) -> Effect:
        """Estimate the effects."""
        _, mu0, mu1 = self.outcome.uplift(observation)
        return Effect(self.tau(observation), mu0, mu1)

    def tau(self, observation: dict[str, Tensor]) -> Tensor:
        """Estimate only the effect, (B,); the outcome models are not evaluated."""
        tau0, tau1 = self.effects(observation).unbind(1)
        return self.share * tau0 + (1 - self.share) * tau1

    def loss(
        self, observation: dict[str, Tensor], treated: Tensor, outcome: Tensor, propensity: Tensor
    ) -> Tensor:
        """Squared errors of both stages; all (B,)."""
        _, mu0, mu1 = self.outcome.uplift(observation)
        tau0, tau1 = self.effects(observation).unbind(1)
        first = squared_error(mu0, outcome, 1 - treated) + squared_error(mu1, outcome, treated)
        missing = squared_error(tau0, mu1.detach() - outcome, 1 - treated)
        return first + missing + squared_error(tau1, outcome - mu0.detach(), treated)


class ClassTransformation(nn.Module):
    """One model of the transformed outcome z = y (t - e) / (e (1 - e)), whose mean is the effect.

    With e = 1/2 and a binary outcome this is Jaskowski & Jaroszewicz (2012); Athey & Imbens (2016) give the
    general form. A second model learns the plain outcome, m = e mu1 + (1 - e) mu0; both give the arms.
    """

    def __init__(self, encoder: Encoder, hidden: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.effect, self.outcome = Regressor(encoder, hidden), Regressor(encoder, hidden)

    def uplift(self, observation: dict[str, Tensor]) -> Effect:
        """Estimate the effects."""
        tau, mean = self.tau(observation), self.outcome(observation)[:, 0]
        return Effect(tau, mean - self.share * tau, mean + (1 - self.share) * tau)

    def tau(self, observation: dict[str, Tensor]) -> Tensor:
        """Estimate only the effect, (B,); the outcome model is not evaluated."""
        return self.effect(observation)[:, 0]

    def loss(
        self, observation: dict[str, Tensor], treated: Tensor, outcome: Tensor, propensity: Tensor
    ) -> Tensor:
        """Squared errors of both models; all (B,)."""
        transformed = outcome * (treated - propensity) / (propensity * (1 - propensity))
        everywhere = torch.ones_like(outcome)
        error = squared_error(self.outcome(observation)[:, 0], outcome, everywhere)
        return error + squared_error(self.effect(observation)[:, 0], transformed, everywhere)


class DragonNet(nn.Module):
    """One trunk for both arms and the propensity, with targeted regularisation (Shi et al., NeurIPS'19).

    loss = (y - mu_t)^2 + a BCE(t, g) + b (y - mu_t - c (t / g - (1 - t) / (1 - g)))^2, where g is the
    estimated propensity and c one learned number.

    Args:
        encoder: makes the trunk's encoder.
        hidden: width of trunk and heads.
        share: share of treated rows, the initial value of g.
        alpha: weight of the propensity's loss.
        beta: weight of the targeted regularisation.
    """

    def __init__(
        self, encoder: Encoder, hidden: int, share: float, alpha: float = 0.1, beta: float = 0.1
    ) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.encoder = encoder()
        size = int(self.encoder.size)  # type: ignore[arg-type]
        self.trunk = nn.Linear(size, hidden)
        width = hidden + size
        self.without, self.treated, self.propensity = (
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)),
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)),
            nn.Linear(width, 1),
        )
        self.epsilon = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.propensity.weight)
        with torch.no_grad():
            self.propensity.bias.fill_(torch.logit(torch.tensor(share)).item())

    def _code(self, observation: dict[str, Tensor]) -> Tensor:
        code = self.encoder(observation)
        return torch.cat((torch.relu(self.trunk(code)), code), -1)

    def uplift(self, observation: dict[str, Tensor]) -> Effect:
        """Estimate the effects."""
        return self._effect(self._code(observation))

    def tau(self, observation: dict[str, Tensor]) -> Tensor:
        """Estimate only the effect, (B,)."""
        return self.uplift(observation).tau

    def _effect(self, code: Tensor) -> Effect:
        mu0, mu1 = self.without(code)[:, 0], self.treated(code)[:, 0]
        return Effect(mu1 - mu0, mu0, mu1)

    def loss(
        self, observation: dict[str, Tensor], treated: Tensor, outcome: Tensor, propensity: Tensor
    ) -> Tensor:
        """The loss above, mean over (B,)."""
        code = self._code(observation)
        _, mu0, mu1 = self._effect(code)
        logit = self.propensity(code)[:, 0]
        g = torch.sigmoid(logit).clamp(CLIP, 1 - CLIP)
        factual = torch.where(treated > 0, mu1, mu0)
        targeted = factual + self.epsilon * (treated / g - (1 - treated) / (1 - g))
        error = (outcome - factual).square().mean()
        assigned = nn.functional.binary_cross_entropy_with_logits(logit, treated)
        return error + self.alpha * assigned + self.beta * (outcome - targeted).square().mean()


UpliftModel = TLearner | XLearner | ClassTransformation | DragonNet
ESTIMATORS: dict[str, type[UpliftModel]] = {
    "uplift-t": TLearner,
    "uplift-x": XLearner,
    "uplift-class": ClassTransformation,
    "uplift-dragon": DragonNet,
}


def residual_loss(effect: Effect, treated: Tensor, outcome: Tensor, propensity: Tensor) -> Tensor:
    """Squared error of what the effect explains of the outcome (the R-loss, Nie & Wager 2021); all (B,).

    It compares estimators by their effects; the error of the outcome itself would compare outcome models.
    """
    mean = propensity * effect.mu1 + (1 - propensity) * effect.mu0
    return (outcome - mean - (treated - propensity) * effect.tau).square().mean()
