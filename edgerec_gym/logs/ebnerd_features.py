"""What EB-NeRD tells about an article at the time of an impression, from earlier events only.

Popularity and repeats are streaming: sums of decayed views and clicks over the impressions of earlier
seconds (impressions in the same second do not see each other). Embeddings are derived from what users read
before the week in question. Hence no number in a row depends on that row's second or anything later.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from edgerec_gym.compiled.jit import cached
from edgerec_gym.errors import MissingExtraError

HOUR = 3600.0
FOREVER = np.inf  # half-life of a plain count
# (1 = clicks or 0 = views, half-life in seconds) of the sums kept for each article
SUMS = ((1, 4 * HOUR), (0, 2 * HOUR), (0, HOUR / 2), (1, HOUR), (1, 24 * HOUR), (0, 24 * HOUR))
TRAFFIC = SUMS[:3]  # these sums are also kept over all articles
PAIR_SUMS = ((0, FOREVER), (1, FOREVER))  # of one user and one article
# Popularity: INTERCEPT + SLOPE * (log click share - log(view share) / 2). The form and the half-lives have
# the best impression-level AUC on the train week of the demo bundle; a logistic regression on that week
# gave intercept and slope. Shares do not depend on the volume of the bundle.
CLICK_SHARE_PRIOR, VIEW_SHARE_PRIOR = 1e-4, 1e-3
INTERCEPT, SLOPE = -0.87, 0.49
EXPOSURE_PRIOR = 2.5e-4  # share of views; smaller shares are hard to tell apart
FRESH_SECONDS = 24 * HOUR
MOST_REPEATS = 4
MIN_READERS = 3  # articles with fewer readers get no embedding
REFERENCE_FEATURES = (
    "clicks_1h",
    "views_30min",
    "clicks_24h",
    "views_24h",
    "age",
    "views_by_user",
    "read_by_user",
)


class ItemSignals(NamedTuple):
    """Streaming signals of n (impression, article) pairs, or of articles at one time; float32.

    Attributes:
        logit: (n,) popularity, a click logit.
        exposure: (n,) share of all recent views, on a logarithmic scale in 0..1.
        age: (n,) seconds since the article was first seen.
        repeats: (n,) earlier views by this user.
        clicks_before: (n,) earlier clicks by this user.
        sums: (n, 6) decayed sums, columns of SUMS.
    """

    logit: np.ndarray
    exposure: np.ndarray
    age: np.ndarray
    repeats: np.ndarray
    clicks_before: np.ndarray
    sums: np.ndarray

    def scalars(self) -> np.ndarray:
        """Return price_level, base logit, base_cvr and freshness of logs and catalogue, (n, 4) float32."""
        columns = (
            self.exposure,
            self.logit,
            np.minimum(self.repeats, MOST_REPEATS) / MOST_REPEATS,
            np.exp(-self.age / FRESH_SECONDS),
        )
        return np.stack(columns, axis=1).astype(np.float32)


def decayed_before(
    seconds: np.ndarray, key: np.ndarray, weight: np.ndarray, half_life: np.ndarray
) -> np.ndarray:
    """Sum the weights of strictly earlier events of the same key, halved every `half_life` seconds.

    Args:
        seconds: (n,) int64 times, in any order.
        key: (n,) int64 from 0.
        weight: (n, k) float64.
        half_life: (k,) float64 seconds, inf = no decay.

    Returns:
        (n, k) float64; events in the same second do not see each other.
    """
    order = np.argsort(seconds, kind="stable")
    totals = np.zeros((int(key.max()) + 1, len(half_life)))
    return _decayed_before(order, seconds, key, weight, 1.0 / half_life, totals)


@cached()
def _decayed_before(order, seconds, key, weight, rate, totals):
    n, width = weight.shape
    last = np.zeros(len(totals), np.int64)
    out = np.empty((n, width))
    start = 0
    while start < n:
        now = seconds[order[start]]
        stop = start
        while stop < n and seconds[order[stop]] == now:  # read all events of this second before adding any
            row = order[stop]
            for c in range(width):
                out[row, c] = totals[key[row], c] * 2.0 ** (-(now - last[key[row]]) * rate[c])
            stop += 1
        for row in order[start:stop]:
            for c in range(width):
                kept = totals[key[row], c] * 2.0 ** (-(now - last[key[row]]) * rate[c])
                totals[key[row], c] = kept + weight[row, c]
            last[key[row]] = now
        start = stop
    return out


def item_signals(
    seconds: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    click: np.ndarray,
    first_read: np.ndarray,
    moment: int,
) -> tuple[ItemSignals, ItemSignals]:
    """Compute the signals of all impressions in order of time.

    Args:
        seconds: (n,) int64 time of the impression of each viewed article.
        user: (n,) int64 from 0.
        item: (n,) int64 from 0 to A - 1.
        click: (n,) bool.
        first_read: (A,) float64 second at which an article was first read before the train week, or inf.
        moment: second at which the catalogue is taken.

    Returns:
        The signals of the n rows, and those of the A articles at `moment`.
    """
    n, n_items = len(item), len(first_read)
    # One event of weight 0 per article reads its sums at `moment`.
    seconds = np.concatenate([seconds, np.full(n_items, moment)])
    item = np.concatenate([item, np.arange(n_items)])
    view = np.concatenate([np.ones(n), np.zeros(n_items)])
    click = np.concatenate([click, np.zeros(n_items)])

    def sums(key: np.ndarray, kinds: tuple[tuple[int, float], ...]) -> np.ndarray:
        weight = np.stack([click if is_click else view for is_click, _ in kinds], axis=1)
        return decayed_before(seconds, key, weight, np.array([half_life for _, half_life in kinds]))

    article, traffic = sums(item, SUMS), sums(np.zeros_like(item), TRAFFIC)
    _, pair = np.unique(user * n_items + item[:n], return_inverse=True)
    repeats, clicks_before = sums(np.concatenate([pair, np.full(n_items, pair.max() + 1)]), PAIR_SUMS).T
    first_seen = first_read.copy()
    np.minimum.at(first_seen, item[:n], seconds[:n])
    share = article[:, :3] / np.maximum(traffic, 1.0)
    logit = INTERCEPT + SLOPE * (
        np.log(share[:, 0] + CLICK_SHARE_PRIOR) - np.log(share[:, 1] + VIEW_SHARE_PRIOR) / 2
    )
    signals = (
        logit,
        np.log1p(np.minimum(share[:, 2], 1.0) / EXPOSURE_PRIOR) / np.log1p(1 / EXPOSURE_PRIOR),
        np.maximum(seconds - first_seen[item], 0.0),  # articles first seen after `moment` have age 0
        repeats,
        clicks_before,
        article,
    )
    rows, catalogue = (
        [values.astype(np.float32)[part] for values in signals] for part in (np.s_[:n], np.s_[n:])
    )
    return ItemSignals(*rows), ItemSignals(*catalogue)


def article_embeddings(
    train_reads: pl.DataFrame, validation_reads: pl.DataFrame, shown_in_train: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factorise the user x article reads from before each week.

    A truncated SVD of the reads before the train week gives each user a vector; an article's embedding is the
    sum of its readers' vectors, scaled to length 1. Articles shown in the train week use only reads from
    before that week, even if later reads are known, because one catalogue row serves both weeks. Articles
    never shown in the train week also use the reads before the validation week.

    Args:
        train_reads: distinct (user, article) rows from before the train week.
        validation_reads: distinct (user, article) rows from before the validation week.
        shown_in_train: ids of articles shown in the train week.
        size: d.

    Returns:
        Sorted article ids (k,) and embeddings (k, d) float32 of the articles with at least MIN_READERS.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from scipy import sparse
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        raise MissingExtraError("deriving item embeddings", "train") from None
    users, user = np.unique(train_reads["user"].to_numpy(), return_inverse=True)
    later = validation_reads.filter(
        ~pl.col("article").is_in(shown_in_train) & pl.col("user").is_in(users.tolist())
    )
    reads = pl.concat([train_reads, later]).unique().sort("user", "article")
    articles, article = np.unique(reads["article"].to_numpy(), return_inverse=True)
    if not len(articles):
        return articles, np.zeros((0, size), np.float32)

    def matrix(frame: pl.DataFrame) -> sparse.csr_matrix:
        place = (
            np.searchsorted(users, frame["user"].to_numpy()),
            np.searchsorted(articles, frame["article"].to_numpy()),
        )
        return sparse.csr_matrix((np.ones(len(place[0])), place), shape=(len(users), len(articles)))

    factors = min(size, len(users), len(articles))
    left, strength, _ = randomized_svd(matrix(train_reads), factors, random_state=0)
    readers = matrix(reads)
    vectors = np.zeros((len(articles), size))
    vectors[:, :factors] = readers.T @ (left / np.maximum(strength, 1e-9))
    known = np.asarray(readers.sum(axis=0))[0] >= MIN_READERS
    return articles[known], unit_length(vectors[known])


def mean_embeddings(
    reads: pl.DataFrame, users: np.ndarray, articles: np.ndarray, embeddings: np.ndarray
) -> np.ndarray:
    """Average what each user read, scaled to length 1.

    Args:
        reads: distinct (user, article) rows.
        users: (n,) ids.
        articles: (k,) sorted ids with an embedding.
        embeddings: (k, d).

    Returns:
        (n, d) float32; zero for users who read nothing that has an embedding.
    """
    kept = reads.filter(pl.col("article").is_in(articles.tolist()) & pl.col("user").is_in(users.tolist()))
    order = np.argsort(users)
    row = order[np.searchsorted(users, kept["user"].to_numpy(), sorter=order)]
    total = np.zeros((len(users), embeddings.shape[1]))
    np.add.at(total, row, embeddings[np.searchsorted(articles, kept["article"].to_numpy())])
    return unit_length(total)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1 (float32); zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 1e-9, length, np.inf)).astype(np.float32)


def clusters(embeddings: np.ndarray, fit_on: np.ndarray, n_known: int, n_unknown: int) -> np.ndarray:
    """Make stand-in categories: k-means of the embeddings; articles without one are dealt out evenly.

    Dealing them out in order of id gives each of these categories articles of every age.

    Args:
        embeddings: (A, d), zero where unknown, in order of id.
        fit_on: (A,) bool, the articles that the centres are fitted on.
        n_known: number of clusters of articles with an embedding.
        n_unknown: number of categories of the other articles.

    Returns:
        (A,) int32 category.
    """
    from sklearn.cluster import KMeans

    known = embeddings.any(axis=1)
    category = np.zeros(len(embeddings), np.int32)
    centres = embeddings[known & fit_on]
    n_known = min(n_known, len(np.unique(centres, axis=0)))
    if n_known:
        model = KMeans(n_known, n_init=4, random_state=0).fit(centres)
        category[known] = model.predict(embeddings[known])
    category[~known] = n_known + np.arange((~known).sum()) % n_unknown
    return category
