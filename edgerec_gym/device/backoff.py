"""Waits between connections: random, so that phones that were cut off together do not return together."""

from __future__ import annotations

import math

import numpy as np


class Backoff:
    """Draws waits whose upper end doubles until a connection was of use.

    Args:
        generator: draws them.
        first: upper end of the first wait, seconds.
        longest: where it stops doubling, seconds.
        longest_told: the longest that the cloud may send a phone away for, seconds.

    Attributes:
        told: seconds that the cloud has told to stay away for, before the next wait; 0 for none.
    """

    def __init__(
        self, generator: np.random.Generator, first: float, longest: float, longest_told: float
    ) -> None:
        self._generator, self._first, self._longest = generator, first, longest
        self._longest_told = longest_told
        self._tries = 0
        self.told = 0.0

    def tell(self, seconds: str) -> None:
        """Take what the cloud says; anything else than seconds changes nothing."""
        try:
            told = float(seconds)
        except ValueError:
            return
        if math.isfinite(told) and told > 0:
            self.told = min(told, self._longest_told)

    def was_useful(self) -> None:
        """Begin with short waits again."""
        self._tries = 0

    def draw(self) -> float:
        """Return the seconds to wait before the next connection: what was told, and a random time more."""
        upper = min(self._first * 2 ** min(self._tries, 60), self._longest)
        self._tries += 1
        told, self.told = self.told, 0.0
        return told + float(self._generator.uniform(0, upper))
