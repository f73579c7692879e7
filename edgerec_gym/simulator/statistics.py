"""Statistics from one pass over a log before fitting: units of the inputs, session starts and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgerec_gym.answers import HOUR, PAGE_SUMMARY
from edgerec_gym.config import FeedConfig
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.simulator.inputs import numbers
from edgerec_gym.spaces import LEAST_CTR

MOST_STARTS = 2000  # rows of the table of session starts
MOST_NUMBERS = 20_000  # slots that quantiles are computed on


class LogStatistics:
    """Collects statistics of a log, chunk by chunk.

    Args:
        config: config of the feed.
        seed: seed of the sample of session starts.

    Attributes:
        slots: number of answered slots.
        sessions: number of sessions with an answered slot.
        ended: number of those that ended before the feed's limit.
    """

    def __init__(self, config: FeedConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.slots = self.sessions = self.ended = 0
        self._scalars = slice(config.embedding_size, config.n_item_features)  # and item columns
        self._moments: dict[str, list[Any]] = {}
        self._starts = (np.zeros(0), np.zeros((0, config.n_user_features), np.float32), np.zeros(0, np.int32))
        self._numbers = (np.zeros(0), np.zeros((0, 0), np.float32))

    def add(self, chunk: LoggedSessions) -> None:
        """Add a chunk."""
        ctr = np.clip(chunk.scalars[:, 1], LEAST_CTR, 1 - LEAST_CTR)
        self._count("card", chunk.cards(np.arange(len(chunk.item))))
        self._count("logit", np.log(ctr / (1 - ctr))[:, None])
        self._count("context", chunk.context)
        self._count("user", chunk.user)
        answered = chunk.answered > 0
        self.slots += int(chunk.answered.sum())
        self.sessions += int(answered.sum())
        # A session as long as the feed allows was truncated.
        self.ended += int((np.diff(chunk.starts)[answered] < self.config.max_slots).sum())
        self._sample_starts(chunk)
        self._sample_numbers(chunk)

    def _count(self, name: str, values: np.ndarray) -> None:
        values = values.astype(np.float64)
        new = [len(values), values.sum(0), (values**2).sum(0), values.min(0), values.max(0)]
        old = self._moments.get(name)
        if old is not None:
            new = [
                *(a + b for a, b in zip(old[:3], new[:3], strict=True)),
                np.minimum(old[3], new[3]),
                np.maximum(old[4], new[4]),
            ]
        self._moments[name] = new

    def _spread(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, standard deviation, and whether the values varied at all."""
        n, total, squares, low, high = self._moments[name]
        mean = total / n
        return mean, np.sqrt(np.maximum(squares / n - mean**2, 1e-12)), low != high

    def scales(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the arguments of :meth:`InputEncoder.set_scales`."""
        _, deviation, varied = self._spread("card")
        card = varied.astype(np.float64)
        card[self._scalars] /= np.maximum(deviation[self._scalars], 0.05)
        mean, deviation, moved = self._spread("logit")
        logit = np.concatenate([mean, moved / np.maximum(deviation, 0.1)])
        return (
            _tensor(card),
            _tensor(logit),
            _tensor(self._spread("context")[2]),
            _tensor(self._user_factors()),
        )

    def _user_factors(self) -> np.ndarray:
        """Return 1 for the embedding, and 1 over the spread of the profile; 0 where nothing varies."""
        _, deviation, varied = self._spread("user")
        factors = varied.astype(np.float64)
        profile = slice(self.config.embedding_size, None)
        factors[profile] /= np.maximum(deviation[profile], 0.05)
        return factors

    def _sample_numbers(self, chunk: LoggedSessions) -> None:
        """Keep the answered slots with the lowest random numbers, and what their bins are made of."""
        draw = np.random.default_rng([self.seed, 4, int(chunk.session[0])]).random(chunk.slots)
        lowest = np.argsort(draw, kind="stable")[:MOST_NUMBERS]
        rows = chunk.answered_rows(np.arange(len(chunk)))[lowest]
        found = chunk.cards(rows), chunk.user[chunk.session_of(rows)], chunk.summary[rows]
        sample = numbers(self.config, *map(torch.from_numpy, found)).numpy()
        draws, kept = self._numbers
        draws = np.concatenate([draws, draw[lowest]])
        lowest = np.argsort(draws, kind="stable")[:MOST_NUMBERS]
        self._numbers = draws[lowest], np.concatenate([kept, sample] if len(kept) else [sample])[lowest]

    def bins(self, bins: int, page: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the arguments of :meth:`InputEncoder.set_bins` for bins with equally many answered slots.

        The numbers are those of inputs.py, with the page's if `page`. Those with fewer than three values have
        no bins, and those with frequent values have fewer.
        """
        sample = self._numbers[1][:, : None if page else -len(PAGE_SUMMARY)].astype(np.float64)
        start, factor = np.zeros((2, sample.shape[1], bins))
        for k, values in enumerate(sample.T):
            edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
            if len(edges) > 1 and ((values > values.min()) & (values < values.max())).any():
                start[k, : len(edges) - 1] = edges[:-1]
                factor[k, : len(edges) - 1] = 1 / np.diff(edges)
        return _tensor(start), _tensor(factor)

    @property
    def hazard(self) -> float:
        """Probability per answered slot that a session ends without being truncated."""
        return min(0.5, max(self.ended, 1) / self.slots)

    def _sample_starts(self, chunk: LoggedSessions) -> None:
        """Keep the sessions with the lowest random numbers: a sample without replacement, in one pass."""
        draw = np.random.default_rng([self.seed, 3, int(chunk.session[0])]).random(len(chunk))
        hour = chunk.context[chunk.starts[:-1], HOUR].astype(np.int32)
        draws, features, hours = self._starts
        draws, features = np.concatenate([draws, draw]), np.concatenate([features, chunk.user])
        lowest = np.argsort(draws, kind="stable")[:MOST_STARTS]
        self._starts = draws[lowest], features[lowest], np.concatenate([hours, hour])[lowest]

    @property
    def starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Table of session starts: features (S, U) float32, hour (S,) int32; at most MOST_STARTS rows."""
        return self._starts[1:]


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
