"""NDCG@10 at page arrivals of sessions that nothing was trained on, by the truth and by clicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.data.event_sequences import SequenceStream
from edgerec_gym.agents.data.judged_pages import JudgedPages, click_ndcg, read_pages
from edgerec_gym.bench.distil.truth import TruePages
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.evaluation.ranking import ndcg

Scorer = Callable[[JudgedPages], np.ndarray]


@dataclass(frozen=True)
class Judge:
    """Page arrivals with the truth.

    Attributes:
        name: which users and days they are of.
        pages: in order.
        truth: (R, N) float32 true click probabilities of the pool rows.
    """

    name: str
    pages: list[JudgedPages]
    truth: np.ndarray

    @classmethod
    def read(cls, name: str, stream: SequenceStream, truth: TruePages) -> Judge:
        """Read the page arrivals of a stream."""
        pages = read_pages(stream, clicked=False)
        parts = [truth.of(part.session, part.slot) for part in pages]
        return cls(name, pages, np.concatenate(parts))

    def ndcg(self, score: Scorer) -> dict[str, np.ndarray]:
        """Return the NDCG@10 of each page, (R,) by "truth" and "clicks"; NaN where undefined."""
        scores = np.concatenate([score(part) for part in self.pages])
        present = np.concatenate([part.pages.ids > 0 for part in self.pages])
        return {"truth": ndcg(scores, self.truth, present), "clicks": click_ndcg(self.pages, score)}

    @property
    def sessions(self) -> np.ndarray:
        """Session of each page as 0, 1, ..., (R,) int64."""
        own = np.concatenate([part.session for part in self.pages])
        return np.unique(own, return_inverse=True)[1].astype(np.int64)

    @property
    def later(self) -> np.ndarray:
        """Which pages are not the first of their session, (R,) bool: something is known of the mood."""
        return np.concatenate([part.slot for part in self.pages]) > 0


def session_sums(values: np.ndarray, session: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of values (seeds, R) by session (seeds, S), and the number of defined ones (1, S)."""
    defined = np.isfinite(values[0])
    size = int(session.max()) + 1
    sums = [np.bincount(session[defined], row[defined], minlength=size) for row in values]
    return np.stack(sums), np.bincount(session[defined], minlength=size)[None].astype(np.float64)


def mean_ndcg(values: np.ndarray, session: np.ndarray) -> Interval:
    """Return the mean of values (seeds, R) over pages, with a bootstrap over seeds and sessions."""
    sums, count = session_sums(values, session)
    return seeds_interval([sums, count], lambda m: m[..., 0] / m[..., 1])


def ndcg_difference(one: np.ndarray, other: np.ndarray, session: np.ndarray) -> Interval:
    """Return the mean of `one` less that of `other`, (seeds, R) each, paired by seed and session."""
    (first, count), (second, _) = session_sums(one, session), session_sums(other, session)
    return seeds_interval([first, second, count], lambda m: (m[..., 0] - m[..., 1]) / m[..., 2])


def ndcg_loss(student: np.ndarray, teacher: np.ndarray, session: np.ndarray) -> Interval:
    """Return 1 - NDCG(student) / NDCG(teacher), of values (seeds, R)."""
    (own, _), (best, _) = session_sums(student, session), session_sums(teacher, session)
    return seeds_interval([own, best], lambda m: 1 - m[..., 0] / m[..., 1])
