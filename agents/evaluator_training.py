"""Train a list evaluator or ESAN on exposed lists, and load it back.

A run is a folder as :mod:`edgerec_gym.agents.supervised` writes it, with the mean loss of every epoch instead
of the GAUC, and figures of the calibrated evaluator on the sessions that decided when to stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents import checkpoint
from edgerec_gym.agents.epochs import EpochTrainer, Report, log_record, request_settings
from edgerec_gym.agents.esan import ESAN, ESANConfig
from edgerec_gym.agents.evaluator import (
    CLICK,
    EvaluatorConfig,
    Judged,
    ListEvaluator,
    judged,
    outcome_losses,
)
from edgerec_gym.agents.exposed_lists import OUTCOMES, ListBatch, exposed_lists
from edgerec_gym.agents.rerank_data import Requests, RequestStream, split_requests
from edgerec_gym.agents.reranker import torch_threads
from edgerec_gym.agents.supervised import FIXED, SCORE_BATCH
from edgerec_gym.agents.surrogate import PurchaseSurrogate, logged_actions
from edgerec_gym.atomic import make_folder
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import PARAMETERS, check_seed, check_sizes, find_start, read_run, write_record

AGENT, INSERTER = "evaluator", "esan"
AGENTS = (AGENT, INSERTER)
Settings = EvaluatorConfig | ESANConfig
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
    """Train a list evaluator or ESAN and write the run's folder.

    Sessions are split as for re-rankers (:func:`~edgerec_gym.agents.supervised.train`); the mean loss of the
    stopping sessions decides when to stop, and the best epoch is calibrated on them.

    Args:
        out: the run's folder.
        logs: a log folder whose lists stand in the order in which they were shown.
        agent: "evaluator", or "esan", which needs lists with mix-in cards.
        seed: of initial parameters, of the lists drawn from each session and of their order.
        resume: go on after the last complete epoch in `out`, if there is one.
        threads: torch threads.
        progress: called with (epochs done, epochs at most, text).
        **hyper: fields of :class:`~edgerec_gym.agents.evaluator.EvaluatorConfig` or of
            :class:`~edgerec_gym.agents.esan.ESANConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, a log that is bad, has no clicks, or cannot tell the
            order of its lists, `out` not writable or in use by another run.
    """
    if agent not in AGENTS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(AGENTS)}")
    check_seed(seed)
    settings: Settings = (ESANConfig if agent == INSERTER else EvaluatorConfig).from_dict(hyper)
    reader = LogReader(logs)
    if "order_within_page" in reader.unidentified:
        raise InputError(f"{reader.folder} cannot tell the order within a page, which an {agent} judges")
    if agent == INSERTER and "cards" in reader.unidentified:
        raise InputError(f"{reader.folder} has no mix-in cards, whose insertion {agent} learns")
    run = make_folder(out)
    record = log_record(agent, "mix" if agent == INSERTER else "rerank", reader, seed, settings) | {
        "identified": [not set(NEEDED[name]) & set(reader.unidentified) for name in OUTCOMES],
        "loss": [],
    }
    start = find_start(run, record, resume, (*FIXED, "identified"))
    with torch_threads(threads):
        trainer = EvaluatorTrainer(reader, record, settings)
        trainer.run(run, start, "loss", progress)
        record = trainer.record | {"figures": trainer.calibrate()}
    checkpoint.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, record)
    return record


class EvaluatorTrainer(EpochTrainer[ListEvaluator | ESAN]):
    """One evaluator or ESAN in training; the loss on the stopping sessions' lists decides when to stop.

    Args:
        reader: the log.
        record: content of policy.json; steps and loss grow.
        settings: hyper-parameters.
    """

    figure, sign = "loss", -1

    def __init__(self, reader: LogReader, record: dict[str, Any], settings: Settings) -> None:
        network = build(reader.config, settings, tuple(record["identified"]), record["seed"])
        train, stop, _ = split_requests(reader, **request_settings(settings, record["seed"]))
        super().__init__(network, record, settings, train)
        judges = isinstance(settings, EvaluatorConfig)
        self.purchase = PurchaseSurrogate.fit(logged_actions(train)) if judges else None
        self.stopping = held_lists(stop, network.list_size)
        if not any(batch.outcomes[..., CLICK].any() for batch in self.stopping):
            raise InputError(
                f"{reader.folder} has no clicked list among the sessions that decide when to stop; "
                "an evaluator needs more sessions"
            )

    def loss(self, chunk: Requests, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Mean loss of the lists that follow the requests `index` (B,) of a chunk.

        An evaluator sees every other list as a search would that has got to a place of it.
        """
        lists = exposed_lists(chunk, index, self.network.list_size, self.purchase)
        if isinstance(self.network, ESAN):
            return self._loss(self.network.judge(lists))
        cut = torch.randint(1, 2 * self.network.list_size, (len(index),), generator=generator)
        found = self.network.judge(lists, cut)
        return self._loss(found) + self.network.settings.ranking * order_loss(found)

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


def order_loss(found: Judged) -> Tensor:
    """Cross-entropy of the clicks with the softmax of their logits in a list, a place (list softmax)."""
    logits, click = found.logits[..., CLICK], found.outcomes[..., CLICK] * found.answered
    log_p = logits.masked_fill(~found.answered, torch.finfo(logits.dtype).min).log_softmax(-1)
    return -(click * log_p).sum() / found.answered.sum().clamp(min=1)


def held_lists(stream: RequestStream, horizon: int, most: int = MOST_HELD) -> list[ListBatch]:
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


def judge_all(network: ListEvaluator | ESAN, batches: list[ListBatch]) -> Judged:
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


@overload
def build(
    config: FeedConfig, settings: EvaluatorConfig, identified: tuple[bool, ...], seed: int = 0
) -> ListEvaluator: ...
@overload
def build(config: FeedConfig, settings: ESANConfig, identified: tuple[bool, ...], seed: int = 0) -> ESAN: ...
def build(
    config: FeedConfig, settings: Settings, identified: tuple[bool, ...], seed: int = 0
) -> ListEvaluator | ESAN:
    """Make a network with initial parameters drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(settings, ESANConfig):
            return ESAN(config, settings, identified)
        return ListEvaluator(config, settings, identified)


def load_evaluator(folder: str | Path, config: FeedConfig) -> ListEvaluator:
    """Load an evaluator that :func:`train` wrote; InputError if files are broken or made for other sizes."""
    folder, record = _read(folder, AGENT, config)
    network = build(config, EvaluatorConfig.from_dict(record["hyper"]), tuple(record["identified"]))
    checkpoint.load_parameters(folder / PARAMETERS, network)
    return network.eval()


def load_esan(folder: str | Path, config: FeedConfig) -> ESAN:
    """Load an ESAN that :func:`train` wrote, as :func:`load_evaluator` does."""
    folder, record = _read(folder, INSERTER, config)
    network = build(config, ESANConfig.from_dict(record["hyper"]), tuple(record["identified"]))
    checkpoint.load_parameters(folder / PARAMETERS, network)
    return network.eval()


def _read(folder: str | Path, agent: str, config: FeedConfig) -> tuple[Path, dict[str, Any]]:
    run = read_run(folder)
    if run.agent != agent:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, not an {agent}")
    check_sizes(run, config)
    return run
