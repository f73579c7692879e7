"""Scales of charts: ranges that cover the data, round ticks, short labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

STEPS = (1, 2, 2.5, 5, 10)


class Scale(NamedTuple):
    """Maps low..high to start..end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def fit(values: Iterable[float], start: float, end: float, zero: bool = False) -> Scale:
    """Return the scale that covers all values with a small margin, and 0 if `zero`."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low if zero and low == 0 else low - room, high + room, start, end)


def ticks(scale: Scale, wanted: int = 5) -> list[float]:
    """Return about `wanted` round numbers inside a scale, in rising order."""
    span = scale.high - scale.low
    magnitude = 10 ** math.floor(math.log10(span / wanted))
    step = next(s * magnitude for s in STEPS if span / (s * magnitude) <= wanted)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def label(value: float, percent: bool = False, digits: int = 7) -> str:
    """Return a number's text, 10,000 as 10k and shares as per cent; round ticks print short at 7 digits."""
    if percent:
        return f"{100 * value:.{digits}g}%"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.{digits}g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.{digits}g}k"
    return f"{value:.{digits}g}"
