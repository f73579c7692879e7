"""Train an estimator of a request's uplift on the decisions of a log, or on a table, and load it back.

A run is a folder in the format of :mod:`edgerec_gym.agents.rerank.train`, with the residual loss of every
epoch instead of the GAUC. It also holds quantiles of the estimated uplift in the stopping sessions, which
give the price of a budget (:mod:`edgerec_gym.agents.requests.planner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.data.decisions import DecisionBatch, DecisionStream, split_decisions
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import EpochTrainer, Report, Stream, log_record
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.requests.feed_encoder import FeedEncoder
from edgerec_gym.agents.requests.uplift_models import (
    ESTIMATORS,
    DragonNet,
    Effect,
    Encoder,
    UpliftModel,
    residual_loss,
)
from edgerec_gym.agents.rerank.train import FIXED
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation, check_observation
from edgerec_gym.runs import (
    PARAMETERS,
    Run,
    check_seed,
    check_sizes,
    find_start,
    is_finished,
    read_run,
    write_record,
)

MOST_HELD = 20_000  # decisions kept in memory for early stopping
SCORE_BATCH = 1024  # decisions scored at once
N_QUANTILES = 201  # number of quantiles of the replayed uplift
SCALE_SAMPLE = 4096  # decisions from which the scale of the inputs is taken


@dataclass(frozen=True)
class UpliftConfig(Config):
    """Hyper-parameters of the estimators and of their training."""

    learning_rate: float = bounded(2e-3, 1e-7, 1.0)  # learning rate of AdamW
    batch_size: int = bounded(2048, 1, 1_000_000)  # decisions in a gradient step
    epochs: int = bounded(5, 1, 10_000)  # maximum number of epochs
    patience: int = bounded(3, 1, 10_000)  # epochs without a smaller residual loss after which training stops
    weight_decay: float = bounded(5.0, 0.0, 1e3)  # decoupled (AdamW); large, as effects are small
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    horizon: int = bounded(15, 1, 1000)  # n, slots that an outcome looks ahead
    controls: float = bounded(1.0, 0.01, 1e6)  # decisions without a request kept for each request
    click: float = bounded(1.0, 0.0, 1e3)  # weight of a click in the outcome
    purchase: float = bounded(5.0, 0.0, 1e3)  # weight of a purchase in the outcome
    surrogate: int = bounded(1, 0, 1)  # 1 replaces purchases by their mean given page view length
    behaviour: int = bounded(8, 0, 4096)  # width of the behaviour encoders; 0 leaves behaviour out
    layers: int = bounded(1, 1, 10)  # number of GRU layers
    hidden: int = bounded(16, 2, 4096)  # width of the heads
    alpha: float = bounded(0.1, 0.0, 1e3)  # DragonNet: weight of the propensity's loss
    beta: float = bounded(0.1, 0.0, 1e3)  # DragonNet: weight of the targeted regularisation

    @property
    def share(self) -> float:
        """Share of treated decisions that `controls` aims at."""
        return 1 / (1 + self.controls)


@one_writer("out")
def train(
    out: str | Path,
    logs: str | Path,
    *,
    agent: str = "uplift-x",
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train an estimator and write the run's folder.

    Sessions are split as for re-rankers (:func:`~edgerec_gym.agents.rerank.train.train`); the residual loss
    of the stopping sessions is used for early stopping.

    Args:
        out: the run's folder.
        logs: a log folder whose requests were randomised.
        agent: a name of :data:`~edgerec_gym.agents.requests.uplift_models.ESTIMATORS`.
        seed: seed of initial parameters, of the decisions drawn from the log and of their order.
        resume: continue after the last complete epoch in `out`, if there is one.
        threads: torch threads.
        progress: called with (epochs done, maximum epochs, text).
        **hyper: fields of :class:`UpliftConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, a bad log, one without randomised requests, or `out`
            is not writable or in use by another run.
    """
    if agent not in ESTIMATORS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(ESTIMATORS)}")
    check_seed(seed)
    settings = UpliftConfig.from_dict(hyper)
    if settings.click == settings.purchase == 0:
        raise InputError("click = 0 and purchase = 0 leave no outcome; give one of them a weight")
    reader = LogReader(logs)
    run = make_folder(out)
    record = log_record(agent, "request", reader, seed, settings) | {"residual_loss": []}
    start = find_start(run, record, resume, FIXED)
    if start is not None and is_finished(run):
        return read_run(run).record  # finished: same settings, so the same end
    with torch_threads(threads):
        drawn = {name: getattr(settings, name) for name in ("horizon", "controls")}
        stream, stop, _ = split_decisions(reader, surrogate=bool(settings.surrogate), seed=seed, **drawn)
        network = build(agent, reader.config, settings, seed)
        standardise(network, stream)
        weights = np.array([settings.click, settings.purchase], np.float32)
        trainer = UpliftTrainer(network, record, settings, stream, held_decisions(stop), weights)
        trainer.run(run, start, "residual loss", progress)
        record = trainer.record | {"quantiles": trainer.quantiles()}
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, record)
    return record


class UpliftTrainer(EpochTrainer[UpliftModel]):
    """Training of one estimator; it stops early on the residual loss of held-out decisions.

    Args:
        network: with initial parameters.
        record: content of policy.json; steps and residual_loss are updated.
        settings: hyper-parameters.
        stream: chunks with a method `batch(index) -> DecisionBatch`.
        stopping: held-out decisions, not trained on.
        weights: weights of the outcomes, (k,) float32.
    """

    figure, sign = "residual_loss", -1

    def __init__(
        self,
        network: UpliftModel,
        record: dict[str, Any],
        settings: UpliftConfig,
        stream: Stream,
        stopping: list[DecisionBatch],
        weights: np.ndarray,
    ) -> None:
        super().__init__(network, record, settings, stream)
        # Decoupled decay: Adam divides an L2 penalty by the gradients' size, which here is that of the noise.
        self.optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.weights = weights
        self.stopping = [self._tensors(batch) for batch in stopping]

    def _tensors(self, batch: DecisionBatch) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        numbers = (batch.treated, batch.outcome @ self.weights, batch.propensity)
        treated, outcome, propensity = (torch.from_numpy(values) for values in numbers)
        return tensors(batch.observation), treated, outcome, propensity

    def loss(self, chunk: Any, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Mean loss of the decisions `index` (B,) of a chunk."""
        return self.network.loss(*self._tensors(chunk.batch(index)))

    def quantiles(self) -> list[float]:
        """Evenly spaced quantiles of the best epoch's uplift at the stopping decisions without a request."""
        self.best.eval()
        with torch.inference_mode():
            parts = [
                self.best.uplift(observation).tau[treated == 0] for observation, treated, *_ in self.stopping
            ]
        return torch.cat(parts).double().quantile(torch.linspace(0, 1, N_QUANTILES).double()).tolist()

    def stopping_figure(self) -> float:
        """Residual loss of the stopping decisions."""
        self.network.eval()
        with torch.inference_mode():
            losses = [
                (residual_loss(self.network.uplift(observation), *rest).item(), len(rest[0]))
                for observation, *rest in self.stopping
            ]
        return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def tensors(observation: Observation, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Convert some rows of an observation to float32 tensors."""
    return {
        key: torch.from_numpy(np.array(values[rows], np.float32, order="C"))
        for key, values in observation.items()
    }


def standardise(network: UpliftModel, stream: DecisionStream) -> None:
    """Set the input scale of the network's encoders from the first decisions."""
    sample = held_decisions(stream, SCALE_SAMPLE)
    keys = sample[0].observation
    observation = tensors({key: np.concatenate([batch.observation[key] for batch in sample]) for key in keys})
    for module in network.modules():
        if isinstance(module, FeedEncoder):
            module.standardise(observation)


def held_decisions(stream: DecisionStream, most: int = MOST_HELD) -> list[DecisionBatch]:
    """Read the first `most` decisions of a stream, in batches."""
    batches: list[DecisionBatch] = []
    left = most
    for chunk in stream.chunks():
        count = min(left, len(chunk))
        batches += [
            chunk.batch(np.arange(at, min(at + SCORE_BATCH, count))) for at in range(0, count, SCORE_BATCH)
        ]
        left -= count
        if not left:
            break
    return batches


def make_model(agent: str, encoder: Encoder, settings: UpliftConfig, share: float, seed: int) -> UpliftModel:
    """Make an estimator with initial parameters drawn from `seed`; the global generator is left untouched."""
    kind = ESTIMATORS[agent]
    with torch_seed(seed):
        if kind is DragonNet:
            return DragonNet(encoder, settings.hidden, share, settings.alpha, settings.beta)
        return kind(encoder, settings.hidden, share)


def build(agent: str, config: FeedConfig, settings: UpliftConfig, seed: int = 0) -> UpliftModel:
    """Make an estimator for the feed."""

    def encoder() -> FeedEncoder:
        return FeedEncoder(config, settings.behaviour, settings.layers)

    return make_model(agent, encoder, settings, settings.share, seed)


def load_model(folder: str | Path | Run, config: FeedConfig) -> UpliftModel:
    """Load what :func:`train` wrote; InputError if the files are broken or made for other sizes."""
    run = read_run(folder)
    if run.agent not in ESTIMATORS:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}; estimators: {', '.join(ESTIMATORS)}")
    check_sizes(run, config)
    network = build(run.agent, config, UpliftConfig.from_dict(run.record["hyper"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def effects_alone(network: UpliftModel, observation: Observation, threads: int = 1) -> np.ndarray:
    """Estimate only tau, which is all a planner needs, of a batch of observations, (B,) float32."""
    return torch.cat(_in_parts(network.tau, observation, threads)).numpy()


def uplift(network: UpliftModel, observation: Observation, threads: int = 1) -> Effect:
    """Estimate tau, mu0 and mu1 of a batch of observations (B, ...).

    Raises:
        InputError: values that are not finite.
    """
    parts = _in_parts(network.uplift, observation, threads)
    return Effect(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _in_parts(
    estimate: Callable[[dict[str, Tensor]], Any], observation: Observation, threads: int
) -> list[Any]:
    """Estimates of a part of the batch at a time."""
    check_observation(observation)
    n_rows = len(next(iter(observation.values())))
    with torch_threads(threads), torch.inference_mode():
        return [
            estimate(tensors(observation, slice(at, at + SCORE_BATCH)))
            for at in range(0, n_rows, SCORE_BATCH)
        ]
