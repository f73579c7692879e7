"""Scores of simple models on the validation week of EB-NeRD, for comparison with learned users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.evaluation.ranking import grouped_auc
from edgerec_gym.files import atomic_path
from edgerec_gym.logs.ebnerd_features import REFERENCE_FEATURES, ItemSignals
from edgerec_gym.logs.ebnerd_source import SPLITS, Bundle
from edgerec_gym.parquet import check_parquet

REFERENCE_FILE = "reference.parquet"
REFERENCE_TREES = 200


def write_reference(log_folder: Path, bundle: Bundle, rows: ItemSignals) -> None:
    """Write what :func:`ebnerd_reference` needs to know about every slot into the log folder."""
    reads = pl.concat(
        bundle.reads[split].select("user", "article", validation=pl.lit(split == "validation"))
        for split in SPLITS
    ).unique()
    slots = pl.DataFrame(
        {
            "user": bundle.column("user"),
            "article": bundle.articles[bundle.item],
            "validation": bundle.column("validation"),
        }
    )
    read = slots.join(
        reads.with_columns(read=pl.lit(True)), on=slots.columns, how="left", maintain_order="left"
    )
    inputs = (
        rows.sums[:, 3],
        rows.sums[:, 2],
        *rows.sums[:, 4:].T,
        rows.age,
        rows.repeats,
        (read["read"].fill_null(False).to_numpy() | (rows.clicks_before > 0)).astype(np.float32),
    )
    frame = slots.select("validation").with_columns(
        impression=bundle.page_row,
        click=bundle.click,
        logit=rows.logit,
        **dict(zip(REFERENCE_FEATURES, inputs, strict=True)),
    )
    with atomic_path(log_folder / REFERENCE_FILE) as temporary:
        frame.write_parquet(temporary, compression="zstd")


def ebnerd_reference(log_folder: str | Path) -> dict[str, dict[str, float]]:
    """Score reference models for learned users on the validation week.

    Args:
        log_folder: folder written by :func:`convert_ebnerd`.

    Returns:
        By model, `impression_auc` (mean AUC over the impressions of the validation week) and `click_auc`
        (over all its slots). "popularity" ranks by base_ctr alone. The others are 200 LightGBM trees trained
        on the train week: "boosted_trees" uses seven streaming features of one article, "lambdarank_trees"
        uses the same features with the lambdarank objective (Burges, 2010), and "lambdarank_trees_page" adds
        the features' means over the impression and its size. Lambdarank scores are comparable only within an
        impression, so their `click_auc` means little.

    Raises:
        InputError: the folder is not a converted bundle.
        MissingExtraError: LightGBM is not installed.
    """
    path = Path(log_folder) / REFERENCE_FILE
    check_parquet(path)
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"{path} is not readable; convert the bundle again: {message}") from None
    means = [pl.col(name).mean().over("impression").alias(f"page_{name}") for name in REFERENCE_FEATURES]
    page = frame.select(*REFERENCE_FEATURES, *means, size=pl.len().over("impression"))
    own = frame.select(REFERENCE_FEATURES)
    late = frame["validation"].to_numpy()
    scores = {
        "popularity": frame["logit"].to_numpy()[late],
        "boosted_trees": _tree_scores(own, frame, "binary"),
        "lambdarank_trees": _tree_scores(own, frame, "lambdarank"),
        "lambdarank_trees_page": _tree_scores(page, frame, "lambdarank"),
    }
    click, impression = frame["click"].to_numpy()[late], frame["impression"].to_numpy()[late]
    return {
        name: {
            "impression_auc": grouped_auc(score, click, impression),
            "click_auc": grouped_auc(score, click, np.zeros_like(impression)),
        }
        for name, score in scores.items()
    }


def _tree_scores(inputs: pl.DataFrame, frame: pl.DataFrame, objective: str) -> np.ndarray:
    """Train on the train week and score the slots of the validation week."""
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("the EB-NeRD reference", "train") from None
    settings = {
        "objective": objective,
        "num_leaves": 15,
        "learning_rate": 0.05,
        "seed": 0,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    late, values = frame["validation"].to_numpy(), inputs.to_numpy()
    early = frame.filter(~late)
    group = None
    if objective == "lambdarank":  # rows of an impression are contiguous
        group = early["impression"].rle().struct.field("len").to_numpy()
    data = lightgbm.Dataset(values[~late], early["click"].cast(pl.Float32).to_numpy(), group=group)
    return np.asarray(lightgbm.train(settings, data, REFERENCE_TREES).predict(values[late]))
