"""Train a list evaluator on exposed lists, and load it back.

A run is a folder as :mod:`edgerec_gym.agents.rerank.train` writes it, with the mean loss of every epoch
instead of the GAUC, and figures of the calibrated evaluator on the sessions that decided when to stop.
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
from edgerec_gym.agents.learning.tensors import torch_threads
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
from edgerec_gym.files import make_folder
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import PARAMETERS, Run, check_seed, check_sizes, find_start, read_run, write_record

AGENT = "evaluator"
Judge = TypeVar("Judge", bound=Any)  # a ListEvaluator, or a network with the same judge()
MOST_HELD = 10_000  # lists kept in memory to decide when to stop
NEEDED = {  # what a log must be able to tell for an outcome to be learned
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

    Sessions are split as for re-rankers (:func:`~edgerec_gym.agents.rerank.train.train`). The mean loss of
    the stopping sessions decides when to stop, and the best epoch is calibrated on them.

    Args:
        out: the run's folder.
        logs: a log folder whose lists stand in the order in which they were shown.
        agent: its name.
        seed: of initial parameters, of the lists drawn from each session and of their order.
        resume: go on after the last complete epoch in `out`, if there is one.
        threads: torch threads.
        progress: called with (epochs done, epochs at most, text).
        **hyper: fields of :class:`~edgerec_gym.agents.lists.evaluator.EvaluatorConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, a log that is bad, has no clicks, or cannot tell the
            order of its lists, `out` not writable or in use by another run.
    """
    settings = EvaluatorConfig.from_dict(hyper)
    options: dict[str, Any] = {"seed": seed, "resume": resume, "threads": threads, "progress": progress}
    return train_judge(EvaluatorTrainer, out, LogReader(logs), agent, "rerank", settings, **options)


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
    """Train a network that judges lists, see :func:`train`; `trainer` says which."""
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
    """A network in training that judges lists; the loss on the stopping sessions' lists decides when to stop.

    A subclass makes the network, and may change the loss.

    Args:
        reader: the log.
        record: content of policy.json; steps and loss grow.
        settings: hyper-parameters.
    """

    figure, sign = "loss", -1
    purchase: PurchaseSurrogate | None = None  # labels of purchases, in place of the purchases themselves

    def __init__(self, reader: LogReader, record: dict[str, Any], settings: Any) -> None:
        network = self.build(reader.config, settings, tuple(record["identified"]), record["seed"])
        self.training, stop, _ = split_moments(reader, **moment_settings(settings, record["seed"]))
        super().__init__(network, record, settings, self.training)
        self.stopping = held_lists(stop, network.list_size)
        if not any(batch.outcomes[..., CLICK].any() for batch in self.stopping):
            raise InputError(
                f"{reader.folder} has no clicked list among the sessions that decide when to stop; "
                "an evaluator needs more sessions"
            )

    def build(self, config: FeedConfig, settings: Any, identified: tuple[bool, ...], seed: int) -> Judge:
        """Make the network with initial parameters drawn from `seed`."""
        raise NotImplementedError

    def loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Mean loss of the lists that follow the requests `index` (B,) of a chunk."""
        return self._loss(
            self.network.judge(exposed_lists(chunk, index, self.network.list_size, self.purchase))
        )

    def stopping_figure(self) -> float:
        """Mean loss of the stopping sessions' lists."""
        return self._loss(judge_all(self.network, self.stopping)).item()

    def _loss(self, found: Judged) -> Tensor:
        return outcome_losses(found, self.network.identified).sum()

    def calibrate(self) -> dict[str, dict[str, float]]:
        """Fit the best epoch's Platt scaling, and return figures on the stopping sessions.

        Returns:
            For every outcome that the log can tell: places judged, log-loss, that of the plain rate, and the
            calibration error (of 15 bins with equally many places) before and after.
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
    """One list evaluator in training."""

    def __init__(self, reader: LogReader, record: dict[str, Any], settings: EvaluatorConfig) -> None:
        super().__init__(reader, record, settings)
        self.purchase = PurchaseSurrogate.fit(logged_actions(self.training))

    def build(
        self, config: FeedConfig, settings: EvaluatorConfig, identified: tuple[bool, ...], seed: int
    ) -> ListEvaluator:
        """Make the evaluator."""
        return build(config, settings, identified, seed)

    def loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Mean loss of lists; every other list is seen as a search would that has got to a place of it."""
        lists = exposed_lists(chunk, index, self.network.list_size, self.purchase)
        cut = torch.randint(1, 2 * self.network.list_size, (len(index),), generator=generator)
        found = self.network.judge(lists, cut)
        return self._loss(found) + self.network.settings.ranking * order_loss(found)


def order_loss(found: Judged) -> Tensor:
    """Cross-entropy of the clicks with the softmax of their logits in a list, a place (list softmax)."""
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
    """Judge many lists, without gradients."""
    network.eval()
    with torch.inference_mode():
        parts = [network.judge(batch) for batch in batches]
    return Judged(*(torch.cat(part).clone() for part in zip(*parts, strict=True)))


def platt_scaling(logit: Tensor, outcome: Tensor) -> tuple[float, float]:
    """Scale > 0 and shift (Platt, 1999) that minimise the log-loss of `scale * logit + shift`."""
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the scale, shift
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")
    logit, outcome = logit.double(), outcome.double()

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = parameters[0].exp() * logit + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled, outcome)
        # A hair of regularisation: a head that does not tell outcomes apart has no best scale.
        loss = loss + 1e-6 * parameters.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    log_scale, shift = parameters.detach().tolist()
    return float(np.exp(log_scale)), shift


def calibration_error(logit: Tensor, outcome: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Mean absolute difference of predicted and true rates over bins with equally many places."""
    order = torch.argsort(logit)
    p, y = torch.sigmoid(logit)[order], outcome[order]
    parts = zip(p.tensor_split(bins), y.tensor_split(bins), strict=True)
    return sum(abs((a - b).sum().item()) for a, b in parts) / len(logit)


def build(
    config: FeedConfig, settings: EvaluatorConfig, identified: tuple[bool, ...], seed: int = 0
) -> ListEvaluator:
    """Make an evaluator with initial parameters drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ListEvaluator(config, settings, identified)


def load_evaluator(folder: str | Path | Run, config: FeedConfig) -> ListEvaluator:
    """Load an evaluator that :func:`train` wrote; InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    if run.agent != AGENT:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, not an {AGENT}")
    check_sizes(run, config)
    settings = EvaluatorConfig.from_dict(run.record["hyper"])
    network = build(config, settings, tuple(run.record["identified"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()
