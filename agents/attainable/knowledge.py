"""What the attainable policy knows before a session, from the users' configuration and their world.

Distributions only: how latent traits and tastes go with what the cloud ships, over all items and users. The
traits of single items are included only on request (``items="known"``), those of single users never.
"""

from __future__ import annotations

import math

import numpy as np

from edgerec_gym.agents.attainable.arrays import LOWEST, N_POINTS, N_RATES, REACH, STEP, Knowledge
from edgerec_gym.cloud.item_table import COUNT_SCALE
from edgerec_gym.cloud.wire import CloudArrays
from edgerec_gym.config import FeedConfig
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.users.synthetic_kernels import ACTIVE_SHARE

INTENT_OFFSET = 0.35  # length of an intent's personal offset (users/synthetic_kernels.py)
BASE_LOGIT, BASE_CVR = 1, 2  # item columns after the embedding
CONTRAST = 0.12  # logits per unit of attractiveness above a neighbour's
_WEIGHTS = (
    "click_bias", "taste", "intent", "intent_switch", "intent_drift", "satiation", "weariness",
    "pseudo_click", "surroundings", "type_taste", "fatigue", "patience", "purchase", "refresh", "day_drift",
    "long_term_noise",
)  # fmt: skip
_CLOUD = (
    "long_term_weight", "recent_weight", "score_offset", "interest_decay", "dwell_weight", "click_weight",
    "page_view_weight",
)  # fmt: skip


def regressors(columns: np.ndarray) -> np.ndarray:
    """Return (n, 1 + X) regressors from the item columns after the embedding, (n, X).

    These are a constant and the columns, with base ctr already as a logit and base cvr turned into one.
    """
    columns = np.asarray(columns, np.float64)
    cvr = np.clip(columns[:, BASE_CVR], 1e-6, 1 - 1e-6)
    found = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    found[:, 1 + BASE_CVR] = np.log(cvr / (1 - cvr))
    return found


def gather(users: SyntheticUsers, wire: CloudArrays, config: FeedConfig, exact: bool) -> Knowledge:
    """Collect the knowledge; what is expected of the catalogue's goods is filled in later.

    Args:
        users: the users that will be played; only their config and world are read.
        wire: the cloud, with its items: embedding, price level, base logit, base cvr, freshness, and the
            columns of the item table.
        config: the feed.
        exact: whether the true factors and traits of the items are known.
    """
    world, own = users.world, users.config
    d, cloud = config.embedding_size, config.cloud
    items = np.concatenate([wire.items, wire.item_columns], axis=1)
    n_goods = int(wire.type_bounds[1])
    factor = _factor_model(world.factors, items[:, :d], world.centres, world.category)
    x = regressors(items[:, d:])
    traits = np.stack([world.attractiveness, world.quality], axis=1).astype(np.float64)
    often = _how_often(wire.item_columns, config)
    root = np.sqrt(often)[:, None]
    coefficients = np.linalg.lstsq(x * root, traits * root, rcond=None)[0]
    left = np.zeros_like(traits) if exact else traits - x @ coefficients
    covariance = (left * often[:, None]).T @ left
    factor_variance = 0.0 if exact else factor["variance"]
    length = math.sqrt(1 + INTENT_OFFSET**2)
    offset_variance = INTENT_OFFSET**2 / d / length**2
    spread = own.intent**2 * offset_variance + (own.intent**2 + own.taste**2) * factor_variance

    def deviation(neighbours: int) -> float:
        contrast = CONTRAST * own.surroundings
        slope = own.pseudo_click + contrast * neighbours
        return math.sqrt(spread + (slope**2 + contrast**2 * neighbours) * covariance[0, 0])

    order = np.argsort(items[:, 0], kind="stable")
    known = np.concatenate([traits, world.category[:, None]], axis=1).astype(np.float32)
    points = LOWEST + STEP * np.arange(N_POINTS)
    smooth_next = smoothing(deviation(1))
    hints, hint_root = _hint_model(world.type_taste, world.refresh, world.patience, world.profile)
    other = 1.2 * (own.activity - ACTIVE_SHARE)
    return Knowledge(
        **{name: float(getattr(own, name)) for name in _WEIGHTS},
        **{name: float(getattr(cloud, name)) for name in _CLOUD},
        max_slots=config.max_slots,
        page_size=config.page_size,
        lookahead=config.lookahead,
        latency=config.request_latency,
        upload_period=cloud.sync_period if cloud.sync == "periodic" else 0,
        n_features=config.n_item_features,
        n_types=config.n_types,
        click_value=config.reward.click,
        purchase_value=config.reward.purchase,
        insert_value=config.reward.insert_click,
        centres=np.ascontiguousarray(world.centres, np.float32),
        type_effect=np.ascontiguousarray(world.type_effect, np.float32),
        sharpness=factor["sharpness"],
        of_centre=factor["of_centre"],
        of_shipped=factor["of_shipped"],
        regression=np.ascontiguousarray(coefficients.T, np.float32),
        trait_variance=np.array([covariance[0, 0], covariance[1, 1], covariance[0, 1]]),
        factor_variance=factor_variance,
        offset_variance=offset_variance,
        centre_share=1 / length,
        exact=int(exact),
        factors=np.ascontiguousarray(world.factors[: len(items) * exact], np.float32),
        traits=known[: len(items) * exact],
        shipped=np.ascontiguousarray(items[order, :d], np.float32),
        row_of=order.astype(np.int64),
        catalogue=np.ascontiguousarray(items[:n_goods], np.float32),
        expected=np.zeros((n_goods, d + 3), np.float32),
        expected_rate=np.zeros((n_goods, 2 * N_RATES), np.float32),
        centroids=wire.centroids,
        group_bounds=wire.group_bounds[: len(wire.centroids) + 1],
        noise=cloud.noise,
        probed_categories=cloud.probed_categories,
        scan_limit=cloud.scan_limit,
        hints=hints,
        hint_root=hint_root,
        active=own.activity * (1 - 0.3 * (own.activity - ACTIVE_SHARE)),
        leave_active=own.leave_bias,
        leave_other=own.leave_bias + other,
        smooth_answer=smoothing(deviation(2)),
        smooth_next=smooth_next,
        click=smoothed(1 / (1 + np.exp(-(points + own.click_bias))), smooth_next),
    )


def _how_often(columns: np.ndarray, config: FeedConfig) -> np.ndarray:
    """Return the share of each item (n,) in what is shown, if the item table tells; else all are alike."""
    often = np.ones(len(columns))
    if "exposures" in config.item_columns:
        often += np.expm1(COUNT_SCALE * columns[:, config.item_columns.index("exposures")].astype(np.float64))
    return often / often.sum()


def smoothing(deviation: float) -> np.ndarray:
    """Return (2 REACH + 1,) float32 weights of a normal distribution on the points of a table.

    A deviation below a third of a step counts as none.
    """
    steps = np.arange(-REACH, REACH + 1) * STEP
    weights = (steps == 0).astype(np.float64)
    if deviation > STEP / 3:
        weights = np.exp(-0.5 * (steps / deviation) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def smoothed(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the expectation of a table (G,) under the uncertainty `weights` around each point, float32."""
    padded = np.pad(table, REACH, mode="edge")
    return np.convolve(padded, weights, mode="valid").astype(np.float32)


def _factor_model(
    factors: np.ndarray, shipped: np.ndarray, centres: np.ndarray, category: np.ndarray
) -> dict[str, float]:
    """Return how factors and categories go with shipped embeddings, over the catalogue."""
    factors, shipped, centres = (np.asarray(v, np.float64) for v in (factors, shipped, centres))
    own = centres[category]
    along = float((shipped * own).sum(axis=1).mean())
    variance = float(((shipped - along * own) ** 2).mean())
    sharpness = along / max(variance, 1e-6)
    logits = sharpness * (shipped @ centres.T)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = (odds / odds.sum(axis=1, keepdims=True)) @ centres
    columns = np.stack([expected.ravel(), shipped.ravel()], axis=1)
    of_centre, of_shipped = np.linalg.lstsq(columns, factors.ravel(), rcond=None)[0]
    left = factors - of_centre * expected - of_shipped * shipped
    return {
        "sharpness": sharpness,
        "of_centre": float(of_centre),
        "of_shipped": float(of_shipped),
        "variance": float((left**2).mean()),
    }


def _hint_model(
    type_taste: np.ndarray, refresh: np.ndarray, patience: np.ndarray, profile: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of type tastes, refresh and patience given a profile, and the root of what is left."""
    hints = np.column_stack([type_taste[:, 1:], refresh, patience]).astype(np.float64)
    x = np.column_stack([np.ones(len(hints)), np.arctanh(np.clip(profile, -0.9999, 0.9999))])
    coefficients = np.linalg.lstsq(x, hints, rcond=None)[0]
    left = hints - x @ coefficients
    root = np.linalg.cholesky(left.T @ left / len(left) + 1e-9 * np.eye(hints.shape[1]))
    return coefficients.T.astype(np.float32, order="C"), root.astype(np.float32, order="C")
