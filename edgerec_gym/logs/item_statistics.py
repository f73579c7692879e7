"""Learn the item table from a log: how much better or worse an item does than the cloud's score tells.

A click depends on where an item was shown, to whom, and beside what. The statistics are therefore random
effects of items in regressions that know position, type, the shipped score and the match with the session so
far, so that an item gains nothing from being ranked high or being shown to those who like its kind. Effects
are shrunk by empirical Bayes (a normal prior, its variance estimated): an item with few exposures falls back
on its category and on what the cloud ships of it (price, base rates, freshness, type, embedding), and one
that was never shown has nothing else.

| column | content |
| --- | --- |
| click_lift | log-odds of a click beyond the regression, / 4 |
| look_lift | levels of dwell beyond it, / 4 |
| satisfaction_lift | log-odds of a long page view after a click beyond it, / 4 |
| exposures, page_views | log(1 + count) / 12 |
| co_click_0, ... | singular vectors of the items clicked in the same sessions (positive PMI) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerec_gym.answers import CLICK, DWELL_BUCKETS, LAST_CLICKED, PAGE_AGE, PAGE_VIEW, SLOT
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.cloud.interest import DWELL_CENTRE
from edgerec_gym.cloud.item_table import COUNT_SCALE, LIFT_SCALE, ItemTable
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream, days_of
from edgerec_gym.logs.store import LogReader
from edgerec_gym.spaces import LEAST_CTR

LIFTS = ("click_lift", "look_lift", "satisfaction_lift")
COUNTS = ("exposures", "page_views")
LONG_VIEW = 0.4  # of a page view's duration in 0..1
DECAYS = (0.75, 0.92)  # per slot, of the evidence of a session
PAGE_VIEW_EVIDENCE = 2.0  # a click with a page view of full length, in looks
ROUNDS, ITERATIONS = 3, 15  # of regression and effects in turn; of the effects in a round
RIDGE = 1.0  # prior precision of the coefficients of standardised covariates
LEAST_VARIANCE, MOST_VARIANCE = 1e-4, 4.0  # of the prior of effects
MOST_STEP = 1.0  # of an effect in an iteration


@dataclass(frozen=True)
class _Answers:
    """The answered slots of a log (P): what regressions explain, and by what."""

    session: np.ndarray  # (P,) ids
    item: np.ndarray  # (P,) rows of the catalogue
    covariates: np.ndarray  # (P, X) float32, standardised; the first is 1
    click: np.ndarray  # (P,) 0 or 1
    look: np.ndarray  # (P,) level of dwell
    long_view: np.ndarray  # (P,) 0 or 1

    def select(self, rows: np.ndarray) -> _Answers:
        return _Answers(*(values[rows] for values in vars(self).values()))


def learn_items(
    reader: LogReader, *, folds: int = 5, co_click_size: int = 0, held_out_from: int | None = None
) -> ItemTable:
    """Learn the item table of a log.

    Args:
        reader: the log.
        folds: K; the table is also learned K times without a K-th of the sessions, for what is trained on
            the same log. 0 leaves this out.
        co_click_size: number of singular vectors of co-clicks; 0 for none.
        held_out_from: first day that the folds leave out, too, as :func:`edgerec_gym.simulator.fit.fit` does.

    Raises:
        InputError: bad arguments, or a log without answers.
    """
    if not 0 <= folds <= 50 or folds == 1:
        raise InputError(f"folds = {folds} must be 0, or 2 to 50")
    most = min(len(reader.catalog) - 1, 128)
    if not 0 <= co_click_size <= most:
        raise InputError(f"co_click_size = {co_click_size} is out of range; allowed: 0 to {most}")
    if held_out_from is None:
        held_out_from = reader.provenance.get("first_validation_day")
    early, late = _read(reader, held_out_from)
    every = _joined([early, late])
    if every is None or early is None:
        raise InputError(f"{reader.folder} has no answered slot to learn items from")
    about = _about(reader.catalog)
    names = (*LIFTS, *COUNTS, *(f"co_click_{k}" for k in range(co_click_size)))

    def columns(answers: _Answers) -> np.ndarray:
        found = _columns(answers, about, reader.catalog.category, frozenset(reader.unidentified))
        if co_click_size:
            found = np.concatenate([found, co_click_vectors(answers, len(found), co_click_size)], axis=1)
        return found

    without = [columns(early.select(early.session % folds != k)) for k in range(folds)]
    n = len(reader.catalog)
    stacked = np.stack(without, axis=1) if folds else np.zeros((n, 0, len(names)), np.float32)
    return ItemTable(names, columns(every), stacked)


def _read(reader: LogReader, held_out_from: int | None) -> tuple[_Answers | None, _Answers | None]:
    """Read the answered slots before a day, and from it on."""
    days, held_out_from = days_of(reader, held_out_from)
    parts = []
    for chosen in (
        [d for d in days if held_out_from is None or d < held_out_from],
        [d for d in days if held_out_from is not None and d >= held_out_from],
    ):
        stream = SessionStream(reader, chosen, cached_slots=0) if chosen else None
        chunks = [_answers(chunk, reader.config) for chunk in stream.chunks()] if stream else []
        parts.append(_joined(chunks))
    return parts[0], parts[1]


def _joined(parts: Sequence[_Answers | None]) -> _Answers | None:
    found = [part for part in parts if part is not None and len(part.item)]
    if not found:
        return None
    return _Answers(
        *(np.concatenate(values) for values in zip(*(vars(p).values() for p in found), strict=True))
    )


def _answers(sessions: LoggedSessions, config: FeedConfig) -> _Answers:
    """Compute the answered slots of a chunk with their covariates."""
    rows = sessions.answered_rows(np.arange(len(sessions)))
    catalog, item, actions = sessions.catalog, sessions.item[rows], sessions.actions[rows]
    ctr = np.clip(sessions.scalars[rows, 1].astype(np.float64), LEAST_CTR, 1 - LEAST_CTR)
    context, embedding = sessions.context[rows], catalog.embeddings[item]
    session = sessions.session_of(rows)
    user = sessions.user[session, : config.embedding_size]
    types = np.eye(config.n_types)[catalog.card_type[item]][:, 1:]
    columns = [
        np.ones(len(rows)),
        np.log(ctr / (1 - ctr)),
        (user * embedding).sum(axis=1),
        *(_match(sessions, decay)[rows] for decay in DECAYS),
        context[:, SLOT] / config.max_slots,
        context[:, PAGE_AGE] / config.page_size,
        context[:, LAST_CLICKED],
        *types.T,
    ]
    return _Answers(
        session=sessions.session[session],
        item=item,
        covariates=np.column_stack(columns).astype(np.float32),
        click=actions[:, CLICK].astype(np.float64),
        look=actions[:, 0] * (DWELL_BUCKETS - 1.0),
        long_view=(actions[:, PAGE_VIEW] > LONG_VIEW).astype(np.float64),
    )


def _match(sessions: LoggedSessions, decay: float) -> np.ndarray:
    """Return how well each placed slot's item matches the session's earlier answers, (P,)."""
    actions, embeddings = sessions.actions, sessions.catalog.embeddings
    evidence = (
        actions[:, 0] - DWELL_CENTRE + actions[:, CLICK] * (1 + PAGE_VIEW_EVIDENCE * actions[:, PAGE_VIEW])
    )
    length = sessions.answered
    interest = np.zeros((len(length), embeddings.shape[1]))
    match = np.zeros(len(sessions.item))
    for slot in range(int(length.max(initial=0))):
        alive = np.flatnonzero(length > slot)
        rows = sessions.starts[alive] + slot
        seen, known = embeddings[sessions.item[rows]], interest[alive]
        match[rows] = (seen * known).sum(axis=1) / (1 + np.linalg.norm(known, axis=1))
        interest[alive] = decay * known + evidence[rows, None] * seen
    return match


def _about(catalog: Catalog) -> np.ndarray:
    """Return what the cloud ships of the items, standardised, (n, Z); the first column is 1."""
    cvr = np.clip(catalog.scalars[:, 2:3].astype(np.float64), LEAST_CTR, 1 - LEAST_CTR)
    types = np.eye(int(catalog.card_type.max()) + 1)[catalog.card_type][:, 1:]
    told = np.concatenate(
        [catalog.scalars, np.log(cvr / (1 - cvr)), types, catalog.embeddings], axis=1, dtype=np.float64
    )
    spread = told.std(axis=0)
    told = (told - told.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    return np.concatenate([np.ones((len(told), 1)), told], axis=1)


def _columns(
    answers: _Answers, about: np.ndarray, category: np.ndarray, unidentified: frozenset[str]
) -> np.ndarray:
    """Return the lifts and counts, (n, 5) float32; 0 where the log does not identify one."""
    n, item = len(about), answers.item
    look = np.zeros(n)
    if "exposure_actions" not in unidentified:
        look = item_effects(item, answers.look, answers.covariates, about, category, binary=False)
    # A look tells more than a click, so the looks at an item are part of the prior of its clicks.
    prior = np.concatenate([about, (look / max(look.std(), 1e-9))[:, None]], axis=1)
    click = item_effects(item, answers.click, answers.covariates, prior, category, binary=True)
    opened = answers.select(answers.click > 0)
    satisfaction = np.zeros(n)
    if "page_view_duration" not in unidentified and len(opened.item):
        satisfaction = item_effects(
            opened.item, opened.long_view, opened.covariates, about, category, binary=True
        )
    lifts = np.column_stack([click, look, satisfaction]) / LIFT_SCALE
    counts = np.column_stack([np.bincount(item, minlength=n), np.bincount(opened.item, minlength=n)])
    return np.clip(np.concatenate([lifts, np.log1p(counts) / COUNT_SCALE], axis=1), -1, 1).astype(np.float32)


def item_effects(
    item: np.ndarray,
    outcome: np.ndarray,
    covariates: np.ndarray,
    about: np.ndarray,
    category: np.ndarray,
    *,
    binary: bool,
) -> np.ndarray:
    """Return each item's effect on an outcome beyond what covariates explain (empirical Bayes).

    Logistic or linear regression with normal random effects of items, fitted by Laplace's approximation. The
    mean of an effect is linear in what is known about the item, plus an effect of its category; the variances
    are estimated.

    Args:
        item: (P,) rows of the n items.
        outcome: (P,) 0 or 1 if `binary`, else any numbers.
        covariates: (P, X), the first column 1.
        about: (n, Z), the first column 1; the rest standardised.
        category: (n,) int.
        binary: whether the regression is logistic.

    Returns:
        (n,) float64, with mean 0 over the slots: posterior means, in log-odds if `binary`.
    """
    n = len(about)
    effect, mean, variance, category_variance = np.zeros(n), np.zeros(n), 0.25, 0.05
    weights = np.zeros(covariates.shape[1])
    seen = np.bincount(item, minlength=n) > 0
    for _ in range(ROUNDS):
        weights, noise = _regress(covariates, outcome, effect[item], weights, binary)
        offset = covariates @ weights
        for _ in range(ITERATIONS if binary else 5):
            score, information = _information(item, outcome, offset + effect[item], noise, n, binary)
            weight = np.where(seen, information, 1.0)
            observed = np.where(seen, effect + score / weight, 0.0)  # a measurement of variance 1 / weight
            precision = np.where(seen, 1 / (variance + 1 / weight), 0.0)
            mean, category_variance = _prior_mean(observed, precision, about, category, category_variance)
            spread = 1 / (information + 1 / variance)
            wanted = spread * (information * observed + mean / variance)
            # A full step of Newton's method can overshoot to where the curvature is 0, and then diverges.
            effect += np.clip(wanted - effect, -MOST_STEP, MOST_STEP)
            if seen.any():
                told = float((np.square(effect - mean) + spread)[seen].mean())
                variance = min(MOST_VARIANCE, max(LEAST_VARIANCE, told))
    return effect - effect[item].mean()


def _regress(
    covariates: np.ndarray, outcome: np.ndarray, offset: np.ndarray, weights: np.ndarray, binary: bool
) -> tuple[np.ndarray, float]:
    """Fit the coefficients with fixed item effects; returns them and the variance of the noise (linear)."""
    penalty = RIDGE * np.eye(covariates.shape[1])
    penalty[0, 0] = 0.0
    if not binary:
        gram = covariates.T.astype(np.float64) @ covariates + penalty
        weights = np.linalg.solve(gram, covariates.T @ (outcome - offset))
        return weights, max(1e-6, float(np.var(outcome - offset - covariates @ weights)))
    for _ in range(10):
        p = 1 / (1 + np.exp(-np.clip(covariates @ weights + offset, -30, 30)))
        curvature = (covariates * (p * (1 - p))[:, None]).T.astype(np.float64) @ covariates + penalty
        curvature[0, 0] += 1e-6
        step = np.linalg.solve(curvature, covariates.T @ (outcome - p) - penalty @ weights)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-4:
            break
    return weights, 1.0


def _information(
    item: np.ndarray, outcome: np.ndarray, fitted: np.ndarray, noise: float, n: int, binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return gradient and curvature of the log likelihood in each item's effect, (n,) each."""
    if not binary:
        return (
            np.bincount(item, outcome - fitted, n) / noise,
            np.bincount(item, minlength=n) / noise,
        )
    p = 1 / (1 + np.exp(-np.clip(fitted, -30, 30)))
    return np.bincount(item, outcome - p, n), np.maximum(np.bincount(item, p * (1 - p), n), 1e-9)


def _prior_mean(
    observed: np.ndarray, precision: np.ndarray, about: np.ndarray, category: np.ndarray, variance: float
) -> tuple[np.ndarray, float]:
    """Regress measurements of effects on what is known about the items, then on their category."""
    penalty = RIDGE * np.eye(about.shape[1])
    weighted = about * precision[:, None]
    mean = about @ np.linalg.solve(weighted.T @ about + penalty, weighted.T @ observed)
    n = int(category.max()) + 1
    total = np.bincount(category, precision, n)
    residual = np.bincount(category, precision * (observed - mean), n)
    spread = 1 / (total + 1 / variance)
    effect = spread * residual
    return mean + effect[category], max(LEAST_VARIANCE, float((effect**2 + spread)[total > 0].mean()))


def co_click_vectors(answers: _Answers, n: int, size: int) -> np.ndarray:
    """Return item vectors from items clicked in the same sessions, (n, size) float32; 0 without clicks.

    Singular vectors of the positive pointwise mutual information (Levy and Goldberg, NeurIPS'14), each
    weighted by the root of its singular value and shrunk where an item has few clicks; the longest has
    length 1.
    """
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import svds

    opened = answers.click > 0
    _, session = np.unique(answers.session[opened], return_inverse=True)
    item = answers.item[opened]
    clicked = coo_matrix((np.ones(len(item)), (session, item)), (int(session.max(initial=-1)) + 1, n)).tocsr()
    together = (clicked.T @ clicked).tocoo()
    apart = together.row != together.col
    row, col, count = together.row[apart], together.col[apart], together.data[apart]
    if not len(count):
        return np.zeros((n, size), np.float32)
    total = np.bincount(row, count, n)
    pmi = np.log(count * total.sum() / (total[row] * total[col]))
    matrix = coo_matrix((np.maximum(pmi, 0.0), (row, col)), (n, n)).tocsr()
    start = np.random.default_rng(0).standard_normal(n)
    left, singular, _ = svds(matrix, k=size, v0=start)
    clicks = np.bincount(item, minlength=n)
    vectors = diags(clicks / (clicks + 10.0)) @ (left[:, ::-1] * np.sqrt(singular[::-1]))
    sign = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(size)])  # svds leaves it open
    vectors = vectors * np.where(sign == 0, 1, sign)
    return (vectors / max(float(np.linalg.norm(vectors, axis=1).max()), 1e-9)).astype(np.float32)
