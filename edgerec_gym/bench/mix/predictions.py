"""ESAN's click predictions for randomly inserted cards, scored on held-out days of a log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edgerec_gym.agents.data.exposed_lists import ListBatch, exposed_lists
from edgerec_gym.agents.data.moments import split_moments
from edgerec_gym.agents.insertion.esan import ESAN
from edgerec_gym.agents.insertion.train import load_network
from edgerec_gym.agents.learning.epochs import moment_settings
from edgerec_gym.agents.lists.evaluator import CLICK
from edgerec_gym.agents.lists.evaluator_training import judge_all
from edgerec_gym.agents.rerank.train import SCORE_BATCH
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import LEVEL, RESAMPLES, Interval
from edgerec_gym.logs.store import LogReader

MOST_LISTS = 40_000
BINS = 10  # of the calibration error, with equal numbers of cards


class HeldCards(NamedTuple):
    """C cards inserted in held-out sessions; a card counts once for every list that holds it."""

    batches: list[ListBatch]
    click: np.ndarray  # (C,) float64, 0 or 1
    session: np.ndarray  # (C,) int64, from 0


def held_cards(logs: str | Path, network: ESAN, most: int = MOST_LISTS) -> HeldCards:
    """Read the first `most` lists of the held-out days; networks with the same horizon get the same lists."""
    reader = LogReader(logs)
    _, _, stream = split_moments(reader, **moment_settings(network.settings, 0))
    batches: list[ListBatch] = []
    sessions: list[np.ndarray] = []
    left = most
    for chunk in stream.chunks():
        index = np.arange(min(left, len(chunk)))
        for at in range(0, len(index), SCORE_BATCH):
            part = index[at : at + SCORE_BATCH]
            batches.append(exposed_lists(chunk, part, network.list_size))
            sessions.append(chunk.log.sessions.session[chunk.session[part]])
        left -= len(index)
        if not left:
            break
    inserted = [_inserted(batch, network) for batch in batches]
    if not any(where.any() for where in inserted):
        raise InputError(f"{reader.folder} has no cards on its held-out days")
    session = [np.repeat(ids, where.sum(1)) for ids, where in zip(sessions, inserted, strict=True)]
    click = [b.outcomes[:, : w.shape[1], CLICK][w] for b, w in zip(batches, inserted, strict=True)]
    _, index = np.unique(np.concatenate(session), return_inverse=True)
    return HeldCards(batches, np.concatenate(click).astype(np.float64), index)


def _inserted(batch: ListBatch, network: ESAN) -> np.ndarray:
    """Return which of the judged places hold answered mix-in cards, (B, T) bool."""
    n_slots = network.settings.horizon
    cards = batch.cards[:, :n_slots, network.config.n_item_features + 1 :].any(axis=2)
    return cards & batch.answered[:, :n_slots]


def click_probabilities(held: HeldCards, network: ESAN) -> np.ndarray:
    """Return the predicted click probabilities (C,) float64 of the held-out cards."""
    with torch.inference_mode():
        p = network.probabilities(judge_all(network, held.batches).logits)[..., CLICK].double().numpy()
    where = np.concatenate([_inserted(batch, network) for batch in held.batches])
    return p[where]


def auc(p: np.ndarray, click: np.ndarray, weight: np.ndarray) -> float:
    """Return the area under the ROC curve of weighted cards; ties count half."""
    order = np.argsort(p, kind="stable")
    p, positive, negative = p[order], (weight * click)[order], (weight * (1 - click))[order]
    _, first = np.unique(p, return_index=True)
    hit, miss = np.add.reduceat(positive, first), np.add.reduceat(negative, first)
    below = np.cumsum(miss) - miss
    return float((hit * (below + 0.5 * miss)).sum() / (hit.sum() * miss.sum()))


def calibration_error(p: np.ndarray, click: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted mean absolute difference of predicted and true rates over equal-sized bins."""
    parts = np.array_split(np.argsort(p, kind="stable"), BINS)
    return sum(abs((weight[i] * (p[i] - click[i])).sum()) for i in parts) / weight.sum()


def log_loss(p: np.ndarray, click: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted mean negative log-likelihood."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-(weight * (click * np.log(p) + (1 - click) * np.log(1 - p))).sum() / weight.sum())


FIGURES = {"auc": auc, "calibration_error": calibration_error, "log_loss": log_loss}


def score(
    logs: str | Path, runs: dict[str, Sequence[Path]], full: str, resamples: int = RESAMPLES // 5
) -> tuple[dict[str, dict[str, Interval]], int]:
    """Score several variants on the same held-out cards, and their differences from one of them.

    Args:
        logs: a log folder with randomised insertions.
        runs: run folders of each variant, one per training seed; the same number for each variant.
        full: variant that the others are compared with.
        resamples: number of bootstrap resamples.

    Returns:
        For each variant auc, calibration_error and log_loss, and with the suffix `_minus_full` their
        differences from `full`: the mean over seeds with a 95 % bootstrap interval over training seeds and
        sessions. Then the number of sessions.
    """
    config = LogReader(logs).config
    networks = {name: [load_network(folder, config) for folder in folders] for name, folders in runs.items()}
    held = held_cards(logs, networks[full][0])
    p = {name: [click_probabilities(held, network) for network in seeds] for name, seeds in networks.items()}
    n_seeds, n_sessions = len(p[full]), int(held.session.max()) + 1
    rng = np.random.default_rng(0)
    ones = np.ones(n_sessions)
    draws = [(np.arange(n_seeds), ones)]  # the first draw is the sample itself
    for _ in range(resamples):
        counts = rng.multinomial(n_sessions, ones / n_sessions).astype(np.float64)
        draws.append((rng.integers(n_seeds, size=n_seeds), counts))
    values = {
        (name, figure): np.array([_mean(function, p[name], held, *draw) for draw in draws])
        for name in p
        for figure, function in FIGURES.items()
    }
    found: dict[str, dict[str, Interval]] = {name: {} for name in p}
    for (name, figure), drawn in values.items():
        found[name][figure] = _interval(drawn)
        if name != full:
            found[name][f"{figure}_minus_full"] = _interval(drawn - values[full, figure])
    return found, n_sessions


def _mean(function, p: list[np.ndarray], held: HeldCards, seeds: np.ndarray, counts: np.ndarray) -> float:
    weight = counts[held.session]
    each = {seed: function(p[seed], held.click, weight) for seed in set(seeds.tolist())}
    return float(np.mean([each[seed] for seed in seeds.tolist()]))


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}
