"""How well a network predicts what users do: log-losses for fitting, figures on held-out sessions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgerec_gym.answers import CLICK, DWELL_BUCKETS, LEAVE, PAGE_VIEW, PAGE_VIEW_BUCKETS
from edgerec_gym.evaluation.ranking import auc, grouped_auc
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream
from edgerec_gym.simulator.dataset import padded, plan_batches
from edgerec_gym.simulator.inputs import N_ACTIONS
from edgerec_gym.simulator.model import HEADS, LEVELS, MOST_LEVELS, UserNetwork

# Weights of the heads in the loss: everything else depends on the click, and exposures are frequent.
HEAD_WEIGHTS = {"dwell": 1.0, "exposure": 0.3, "click": 2.0, "page_view": 1.0, "signs": 1.0, "leave": 2.0}
HEAD_WEIGHTS |= {"responses": 1.0, "ranking": 1.0}
UNFITTED = {  # what a log may not identify, and the heads that it then cannot teach
    "exposure_actions": ("dwell", "exposure"),
    "page_view_duration": ("page_view",),
    "page_view_actions": ("signs",),
    "leave": ("leave",),
}
MOST_HELD_OUT = 1_000_000  # answered slots that figures are computed on, approximately at most
CALIBRATION_BINS = 15
FLOOR_LEVEL = 0.95  # quantile of a figure under chance alone
BATCH_SLOTS = 8000


def fitted_heads(unidentified: frozenset[str], n_responses: int = 0) -> list[str]:
    """Return the heads that a log with so many named responses can teach."""
    unfitted = {head for reason in unidentified & UNFITTED.keys() for head in UNFITTED[reason]}
    heads = [head for head in HEADS if head not in unfitted]
    heads += ["responses"] if n_responses else []
    # If the cards of a page are answered at once, which of them is clicked says more than how many are.
    return [*heads, "ranking"] if "order_within_page" in unidentified else heads


def log_losses(logits: dict[str, Tensor], rows: Tensor, heads: list[str]) -> dict[str, Tensor]:
    """Compute the negative log-likelihood of the observed actions, by head.

    Args:
        logits: logits from :meth:`UserNetwork.forward_sequence`.
        rows: (N, 19 + R) response rows up to `leave`, then the named responses, which may be fractions.
        heads: heads to compute.

    Returns:
        (N,) each, in nats. Page-view heads and "ranking" (which card of the page is clicked, a softmax over
        the page) are 0 without a click.
    """
    click = rows[:, CLICK]

    def dwell() -> Tensor:
        return functional.cross_entropy(logits["dwell"], _level(rows[:, 0], DWELL_BUCKETS), reduction="none")

    def exposure() -> Tensor:
        target = (rows[:, 1:CLICK] * (torch.tensor(LEVELS) - 1)).round().long()
        levels = logits["exposure"].view(-1, MOST_LEVELS)
        loss = functional.cross_entropy(levels, target.flatten(), reduction="none")
        return loss.view(-1, len(LEVELS)).sum(1)

    def page_view() -> Tensor:
        target = _level(rows[:, PAGE_VIEW], PAGE_VIEW_BUCKETS)
        return click * functional.cross_entropy(logits["page_view"], target, reduction="none")

    def signs() -> Tensor:
        return click * _binary(logits["signs"], rows[:, PAGE_VIEW + 1 : N_ACTIONS]).sum(1)

    def ranking() -> Tensor:
        pages, page = torch.unique(logits["page"], return_inverse=True)
        score = logits["click"][:, 0]
        highest = torch.full((len(pages),), -torch.inf).scatter_reduce(0, page, score.detach(), "amax")
        total = torch.zeros(len(pages)).index_add(0, page, torch.exp(score - highest[page]))
        return click * (torch.log(total)[page] + highest[page] - score)

    losses = {
        "dwell": dwell,
        "exposure": exposure,
        "click": lambda: _binary(logits["click"][:, 0], click),
        "page_view": page_view,
        "signs": signs,
        "leave": lambda: _binary(logits["leave"][:, 0], rows[:, LEAVE]),
        "responses": lambda: _binary(logits["responses"], rows[:, LEAVE + 1 :]).sum(1),
        "ranking": ranking,
    }
    return {head: losses[head]() for head in heads}


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _level(value: Tensor, levels: int) -> Tensor:
    return (value * (levels - 1)).round().long()


def objective(losses: dict[str, Tensor], weight: Tensor) -> Tensor:
    """Return the weighted mean over slots (N,) of the weighted sum over heads; a scalar."""
    total = torch.stack([HEAD_WEIGHTS[head] * loss for head, loss in losses.items()]).sum(0)
    return (total * weight).sum() / weight.sum()


@torch.no_grad()
def held_out_loss(network: UserNetwork, sessions: LoggedSessions, heads: list[str]) -> float:
    """Return the objective on held-out sessions, with equal weights of all slots."""
    total, slots = 0.0, 0
    for index in _fixed_batches(sessions):
        logits, rows = network.forward_sequence(padded(sessions, index, np.ones(len(index))))
        total += float(objective(log_losses(logits, rows, heads), torch.ones(len(rows)))) * len(rows)
        slots += len(rows)
    return total / slots


def _fixed_batches(sessions: LoggedSessions) -> Iterator[np.ndarray]:
    yield from plan_batches(sessions.answered, BATCH_SLOTS, np.random.default_rng(0))


@torch.no_grad()
def held_out_figures(
    networks: list[UserNetwork], stream: SessionStream, heads: list[str], names: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Compute the fidelity of an ensemble on held-out sessions; `names` are those of the named responses.

    Returns:
        `log_loss` by head (nats per slot, mean over members) and, for comparison, `click_log_loss_constant`
        of always predicting the average. For the ensemble's mean click probability: `click_auc`,
        `impression_auc` (mean over pages), `click_ece` (expected calibration error) and
        `click_rate_predicted`. For comparison: `click_auc_member`, the mean of the members' own AUCs, the
        AUCs of the shipped base ctr alone (`_base`), and the observed `click_rate`. `sessions` and `slots`
        count what all this was computed on. `responses` holds the figures of each named response, given the
        rest of the answer (:func:`response_figures`). A figure that is not defined is None.
    """
    sums = dict.fromkeys(heads, 0.0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("click", "page", "base", "probability")}
    told: dict[str, list[np.ndarray]] = {"given": [], "foreseen": []}  # named responses, (slots, R)
    n_sessions = slots = pages = 0
    for chunk, index in _held_out_batches(stream):
        batch = padded(chunk, index, np.ones(len(index)))
        probability, expected = [], []
        for network in networks:
            logits, rows = network.forward_sequence(batch)
            if names:
                expected.append(torch.sigmoid(logits["responses"]).numpy())
            probability.append(logits["click_probability"].numpy())
            for head, loss in log_losses(logits, rows, heads).items():
                sums[head] += float(loss.sum()) / len(networks)
        placed = chunk.answered_rows(index)
        ends = np.cumsum([pages, *(chunk.page[chunk.starts[index + 1] - 1] + 1)])  # page numbers, made unique
        parts["page"].append(chunk.page[placed] + np.repeat(ends[:-1], chunk.answered[index]))
        parts["click"].append(rows[:, CLICK].numpy() > 0)
        parts["base"].append(chunk.scalars[placed, 1])
        parts["probability"].append(np.stack(probability))
        if names:
            told["given"].append(rows[:, LEAVE + 1 :].numpy())
            told["foreseen"].append(np.mean(expected, axis=0))
        n_sessions, slots, pages = n_sessions + len(index), slots + len(placed), int(ends[-1])
    click, page, base = (np.concatenate(parts[name]) for name in ("click", "page", "base"))
    members = np.concatenate(parts["probability"], axis=1)  # (members, slots)
    mean = members.mean(0)
    rate = float(np.clip(click.mean(), 1e-6, 1 - 1e-6))
    figures = {
        "log_loss": {head: total / slots for head, total in sums.items()},
        "click_log_loss_constant": float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate)),
        "click_auc": auc(mean, click),
        "click_auc_member": float(np.mean([auc(p, click) for p in members])),
        "click_auc_base": auc(base, click),
        "impression_auc": grouped_auc(mean, click, page),
        "impression_auc_base": grouped_auc(base, click, page),
        "click_ece": calibration_error(reliability(mean, click)),
        "click_rate": float(click.mean()),
        "click_rate_predicted": float(mean.mean()),
        "sessions": n_sessions,
        "slots": slots,
    }
    if names:
        given, foreseen = (np.concatenate(told[part]) for part in ("given", "foreseen"))
        figures["responses"] = {
            name: response_figures(foreseen[:, r], given[:, r]) for r, name in enumerate(names)
        }
    # An AUC is not defined for sessions without clicks.
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in figures.items()}


def response_figures(probability: np.ndarray, given: np.ndarray) -> dict[str, float | None]:
    """Judge the predictions (n,) of a response, of which each log entry (n,) lies in 0..1.

    Returns:
        `auc` (of responses above a half; None without both outcomes); `log_loss`, and `log_loss_constant` of
        always predicting the average; `ece` (expected calibration error), `rate` and `rate_predicted`.
    """
    yes = given > 0.5
    return {
        "auc": auc(probability, yes) if yes.any() and not yes.all() else None,
        "log_loss": cross_entropy(probability, given),
        "log_loss_constant": cross_entropy(np.full(len(given), given.mean()), given),
        "ece": calibration_error(reliability(probability, given)),
        "rate": float(given.mean()),
        "rate_predicted": float(probability.mean()),
    }


def cross_entropy(probability: np.ndarray, happened: np.ndarray) -> float:
    """Return the mean log-loss (nats) of probabilities (n,) for outcomes (n,) in 0..1."""
    p = np.clip(probability.astype(np.float64), 1e-9, 1 - 1e-9)
    return float(-(happened * np.log(p) + (1 - happened) * np.log(1 - p)).mean())


def _held_out_batches(stream: SessionStream) -> Iterator[tuple[LoggedSessions, np.ndarray]]:
    """Yield chunks and batches of their sessions, until there are enough slots."""
    slots = 0
    for chunk in stream.chunks():
        for index in _fixed_batches(chunk):
            yield chunk, index
            slots += int(chunk.answered[index].sum())
            if slots >= MOST_HELD_OUT:
                return


def reliability(probability: np.ndarray, happened: np.ndarray) -> list[dict[str, float]]:
    """Compute a reliability curve over bins of equally many slots.

    Args:
        probability: (n,) predicted probabilities.
        happened: (n,) bool or 0 and 1.

    Returns:
        `predicted` and `observed` mean rates and the number of `slots` by bin, in order of `predicted`.
    """
    bins = np.array_split(np.argsort(probability, kind="stable"), CALIBRATION_BINS)
    return [
        {"predicted": float(probability[b].mean()), "observed": float(happened[b].mean()), "slots": len(b)}
        for b in bins
        if len(b)
    ]


def calibration_error(curve: list[dict[str, float]]) -> float:
    """Return the mean distance of predicted and observed rates over the bins of :func:`reliability`."""
    slots = sum(b["slots"] for b in curve)
    return float(sum(b["slots"] * abs(b["predicted"] - b["observed"]) for b in curve) / slots)
