"""Train a list evaluator on exposed lists, and load it back.

A run is a folder as written by :mod:`edgerec_gym.agents.rerank.train`, with the mean loss of every epoch
instead of the GAUC, and figures of the calibrated evaluator on the early-stopping sessions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.data.exposed_lists import (
    OUTCOMES,
    ListBatch,
    PurchaseSurrogate,
    exposed_lists,
    logged_actions,
)
from edgerec_gym.agents.data.moments import RerankMoments, RerankStream, split_moments
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import EpochTrainer, Report, log_record, moment_settings
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.lists.evaluator import (
    CLICK,
    EvaluatorConfig,
    Judged,
    ListEvaluator,
    judged,
    outcome_losses,
)
from edgerec_gym.agents.rerank.train import FIXED, SCORE_BATCH
from edgerec_gym.config import Config, FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import PARAMETERS, Run, check_seed, check_sizes, find_start, read_run, write_record

AGENT = "evaluator"
Judge = TypeVar("Judge", bound=Any)  # a ListEvaluator, or a network with the same judge()
MOST_HELD = 10_000  # lists kept in memory for early stopping
NEEDED = {  # what a log must identify for an outcome to be learned
    "click": (),
    "purchase": ("page_view_actions",),
    "long_page_view": ("page_view_duration",),
    "leave": ("leave",),
}
CALIBRATION_BINS = 15


def train(
    out: str | Path,
    logs: str | Path,
    *,
    agent: str = AGENT,
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train a list evaluator and write the run's folder.

    Sessions are split as for re-rankers (:func:`~edgerec_gym.agents.rerank.train.train`). Early stopping uses
    the mean loss, and the best epoch is calibrated on the early-stopping sessions.

    Args:
        out: the run's folder.
        logs: a log folder that holds lists in display order.
        agent: name of the agent.
        seed: seed of the initial parameters, the lists drawn from each session, and their order.
        resume: continue after the last complete epoch in `out`, if any.
        threads: number of torch threads.
        progress: called with (epochs done, maximum number of epochs, text).
        **hyper: fields of :class:`~edgerec_gym.agents.lists.evaluator.EvaluatorConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if a name is unknown, a value is out of range, the log is invalid, has no clicks or does
            not record the order of its lists, or `out` is not writable or holds another run.
    """
    settings = EvaluatorConfig.from_dict(hyper)
    options: dict[str, Any] = {"seed": seed, "resume": resume, "threads": threads, "progress": progress}
    return train_judge(EvaluatorTrainer, out, LogReader(logs), agent, "rerank", settings, **options)


@one_writer("out")
def train_judge(
    trainer: type[JudgeTrainer[Any]],
    out: str | Path,
    reader: LogReader,
    agent: str,
    track: str,
    settings: Config,
    *,
    seed: int,
    resume: bool,
    threads: int,
    progress: Report | None,
) -> dict[str, Any]:
    """Train a network that judges lists with the class `trainer`; see :func:`train`."""
    check_seed(seed)
    if "order_within_page" in reader.unidentified:
        raise InputError(f"{reader.folder} cannot tell the order within a page, which an {agent} judges")
    run = make_folder(out)
    record = log_record(agent, track, reader, seed, settings) | {
        "identified": [not set(NEEDED[name]) & set(reader.unidentified) for name in OUTCOMES],
        "loss": [],
    }
    start = find_start(run, record, resume, (*FIXED, "identified"))
    with torch_threads(threads):
        training = trainer(reader, record, settings)
        training.run(run, start, "loss", progress)
        record = training.record | {"figures": training.calibrate()}
    parameters.save_parameters(run / PARAMETERS, training.best)
    write_record(run, record)
    return record


class JudgeTrainer(EpochTrainer[Judge]):
    """Train a network that judges lists, with early stopping by loss.

    A subclass builds the network and may change the loss.

    Args:
        reader: the log.
        record: content of policy.json; steps and loss are updated.
        settings: hyper-parameters.
    """

    figure, sign = "loss", -1
    purchase: PurchaseSurrogate | None = None  # replaces logged purchases as labels

    def __init__(self, reader: LogReader, record: dict[str, Any], settings: Any) -> None:
        network = self.build(reader.config, settings, tuple(record["identified"]), record["seed"])
        self.training, stop, _ = split_moments(reader, **moment_settings(settings, record["seed"]))
        super().__init__(network, record, settings, self.training)
        self.stopping = held_lists(stop, network.list_size)
        if not any(batch.outcomes[..., CLICK].any() for batch in self.stopping):
            raise InputError(
                f"{reader.folder} has no list with a click among its early-stopping sessions; "
                "an evaluator needs more sessions"
            )

    def build(self, config: FeedConfig, settings: Any, identified: tuple[bool, ...], seed: int) -> Judge:
        """Build the network with parameters initialised from `seed`."""
        raise NotImplementedError

    def loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of the lists that follow the moments `index` (B,) of a chunk."""
        return self._loss(
            self.network.judge(exposed_lists(chunk, index, self.network.list_size, self.purchase))
        )

    def stopping_figure(self) -> float:
        """Return the mean loss on the early-stopping sessions."""
        return self._loss(judge_all(self.network, self.stopping)).item()

    def _loss(self, found: Judged) -> Tensor:
        return outcome_losses(found, self.network.identified).sum()

    def calibrate(self) -> dict[str, dict[str, float]]:
        """Fit the best epoch's Platt scaling, and return figures on the early-stopping sessions.

        Returns:
            For every outcome that the log identifies: places judged, log-loss, log-loss of the constant rate,
            and the calibration error (15 bins with equally many places) before and after.
        """
        logits, outcomes, answered, _ = judge_all(self.best, self.stopping)
        where = judged(outcomes, answered, self.best.identified)
        figures = {}
        for head, name in enumerate(OUTCOMES):
            logit, outcome = (part[..., head][where[..., head]] for part in (logits, outcomes))
            if outcome.unique().numel() < 2:
                continue
            scale, shift = platt_scaling(logit, outcome)
            with torch.no_grad():
                self.best.scale[head], self.best.shift[head] = scale, shift
            calibrated = logit * scale + shift
            rate = torch.logit(outcome.mean()).expand_as(outcome)
            loss = torch.nn.functional.binary_cross_entropy_with_logits
            figures[name] = {
                "places": len(outcome),
                "log_loss": loss(calibrated, outcome).item(),
                "log_loss_of_rate": loss(rate, outcome).item(),
                "calibration_error_before": calibration_error(logit, outcome),
                "calibration_error": calibration_error(calibrated, outcome),
            }
        return figures


class EvaluatorTrainer(JudgeTrainer[ListEvaluator]):
    """Train one list evaluator."""

    def __init__(self, reader: LogReader, record: dict[str, Any], settings: EvaluatorConfig) -> None:
        super().__init__(reader, record, settings)
        self.purchase = PurchaseSurrogate.fit(logged_actions(self.training))

    def build(
        self, config: FeedConfig, settings: EvaluatorConfig, identified: tuple[bool, ...], seed: int
    ) -> ListEvaluator:
        """Build the evaluator."""
        return build(config, settings, identified, seed)

    def loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of lists; about half are cut at a random place, as a search sees prefixes."""
        lists = exposed_lists(chunk, index, self.network.list_size, self.purchase)
        cut = torch.randint(1, 2 * self.network.list_size, (len(index),), generator=generator)
        found = self.network.judge(lists, cut)
        return self._loss(found) + self.network.settings.ranking * order_loss(found)


def order_loss(found: Judged) -> Tensor:
    """Return the list softmax cross-entropy of the clicks per place."""
    logits, click = found.logits[..., CLICK], found.outcomes[..., CLICK] * found.answered
    log_p = logits.masked_fill(~found.answered, torch.finfo(logits.dtype).min).log_softmax(-1)
    return -(click * log_p).sum() / found.answered.sum().clamp(min=1)


def held_lists(stream: RerankStream, horizon: int, most: int = MOST_HELD) -> list[ListBatch]:
    """Read the first `most` lists of a stream, in batches."""
    batches: list[ListBatch] = []
    left = most
    for chunk in stream.chunks():
        index = np.arange(min(left, len(chunk)))
        batches += [
            exposed_lists(chunk, index[at : at + SCORE_BATCH], horizon)
            for at in range(0, len(index), SCORE_BATCH)
        ]
        left -= len(index)
        if not left:
            break
    return batches


def judge_all(network: Any, batches: list[ListBatch]) -> Judged:
    """Judge many lists without gradients."""
    network.eval()
    with torch.inference_mode():
        parts = [network.judge(batch) for batch in batches]
    return Judged(*(torch.cat(part).clone() for part in zip(*parts, strict=True)))


def platt_scaling(logit: Tensor, outcome: Tensor) -> tuple[float, float]:
    """Return scale > 0 and shift (Platt, 1999) that minimise the log-loss of `scale * logit + shift`."""
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the scale, shift
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")
    logit, outcome = logit.double(), outcome.double()

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = parameters[0].exp() * logit + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled, outcome)
        # Slight regularisation: a head that cannot separate outcomes has no best scale.
        loss = loss + 1e-6 * parameters.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    log_scale, shift = parameters.detach().tolist()
    return float(np.exp(log_scale)), shift


def calibration_error(logit: Tensor, outcome: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Return the mean absolute difference of predicted and true rates over bins of equal size."""
    order = torch.argsort(logit)
    p, y = torch.sigmoid(logit)[order], outcome[order]
    parts = zip(p.tensor_split(bins), y.tensor_split(bins), strict=True)
    return sum(abs((a - b).sum().item()) for a, b in parts) / len(logit)


def build(
    config: FeedConfig, settings: EvaluatorConfig, identified: tuple[bool, ...], seed: int = 0
) -> ListEvaluator:
    """Build an evaluator with parameters initialised from `seed`, leaving the global generator unchanged."""
    with torch_seed(seed):
        return ListEvaluator(config, settings, identified)


def load_evaluator(folder: str | Path | Run, config: FeedConfig) -> ListEvaluator:
    """Load an evaluator from a run; raise InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    if run.agent != AGENT:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, not an {AGENT}")
    check_sizes(run, config)
    settings = EvaluatorConfig.from_dict(run.record["hyper"])
    network = build(config, settings, tuple(run.record["identified"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()
