"""What a logged feed had on offer: its visits, with the pages that were shown, as shipped at that time.

A catalogue of all days is not what a feed could show on one of them. An imported scenario therefore keeps a
sample of logged visits. An episode draws a visit, of the held-out period in the split `eval`, else of the
period before it. The visit gives the user's features and the hour, where the log does not tell who left also
the number of slots, and with `supply` of the config:

- "logged": the visit's own pages in their order, then those of the visits after it;
- "daily": pages drawn from what was shown on the visit's day, each item as often as it was shown;
- "catalogue": pages that the cloud retrieves from the whole catalogue (retrieval.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.random_stream import PAGE_OFFSET, SPLITS, VISIT_PICK, below
from edgerec_gym.config import SUPPLIES
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path
from edgerec_gym.tensors import read_tensors

SUPPLY_FILE = "supply.safetensors"
SUPPLY_CATALOGUE, SUPPLY_DAILY, SUPPLY_LOGGED = range(len(SUPPLIES))
EVAL_SPLIT = SPLITS.index("eval")
TRIES = 4  # draws for each place of a page's pool, since items repeat
VALUES = 4  # price level, base ctr, base cvr, freshness; then the item columns


@dataclass(frozen=True)
class Supply:
    """Logged visits in order of time (V visits, G pages, E entries, U user features, C item columns).

    Attributes:
        features: (V, U) float32 in -1..1, as shipped when the visit began.
        hour: (V,) int32 in 0..23.
        day: (V,) int32, increasing within each period.
        slots: (V,) int32, answered slots; 0 where the log tells who left, so that users decide.
        first_page: (V + 1,) int64, first page of each visit; each has at least one.
        first_entry: (G + 1,) int64, first entry of each page; each has at least one.
        item: (E,) int32, rows of the catalogue.
        known: (E,) bool, whether the item's embedding was known at that time.
        values: (E, 4 + C) float32, price level, base ctr, base cvr and freshness in 0..1, item columns in
            -1..1, as shipped with the page.
        held_out: visits from this one on are of the held-out period.
    """

    features: np.ndarray
    hour: np.ndarray
    day: np.ndarray
    slots: np.ndarray
    first_page: np.ndarray
    first_entry: np.ndarray
    item: np.ndarray
    known: np.ndarray
    values: np.ndarray
    held_out: int

    def __post_init__(self) -> None:
        visits, entries = len(self.hour), len(self.item)
        for name, size, low, high in (
            ("features", visits, -1, 1),
            ("hour", visits, 0, 23),
            ("day", visits, 0, 2**31 - 1),
            ("slots", visits, 0, 2**31 - 1),
            ("item", entries, 0, 2**31 - 1),
            ("known", entries, 0, 1),
            ("values", entries, -1, 1),
        ):
            found = getattr(self, name)
            if len(found) != size or not size:
                raise InputError(f"supply: {name} has {len(found)} rows, not {size}")
            margin = 1e-3 if name in ("features", "values") else 0  # rounding
            if not ((found >= low - margin) & (found <= high + margin)).all():  # false for NaN
                raise InputError(f"supply: {name} must lie in {low}..{high}")
        if self.values.shape[1] < VALUES or not (self.values[:, :VALUES] >= 0).all():
            raise InputError(f"supply: values must have at least {VALUES} columns, the first ones in 0..1")
        for name, groups, end in (("first_page", visits, None), ("first_entry", None, entries)):
            bounds = getattr(self, name)
            groups = len(bounds) - 1 if groups is None else groups
            end = len(self.first_entry) - 1 if end is None else end
            if (
                len(bounds) != groups + 1
                or bounds[0]
                or bounds[-1] != end
                or (bounds[1:] <= bounds[:-1]).any()
            ):
                raise InputError(f"supply: {name} must rise from 0 to {end}")
        if not 1 <= self.held_out < visits:
            raise InputError(f"supply: held_out = {self.held_out} leaves no visits on one side of {visits}")
        for period in (slice(0, self.held_out), slice(self.held_out, None)):
            if (np.diff(self.day[period]) < 0).any():
                raise InputError("supply: visits must be in the order of their days")

    @property
    def pages(self) -> int:
        """Number of pages (G)."""
        return len(self.first_entry) - 1

    @property
    def most_entries(self) -> int:
        """Number of entries of the longest page."""
        return int(np.diff(self.first_entry).max())

    def day_entries(self) -> np.ndarray:
        """Return the first entry of each visit's day and the one after its last, (V, 2) int64."""
        bounds = np.zeros((len(self.day), 2), np.int64)
        for begin, end in ((0, self.held_out), (self.held_out, len(self.day))):
            day = self.day[begin:end]
            low = begin + np.searchsorted(day, day, "left")
            high = begin + np.searchsorted(day, day, "right")
            bounds[begin:end, 0] = self.first_entry[self.first_page[low]]
            bounds[begin:end, 1] = self.first_entry[self.first_page[high]]
        return bounds

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in KINDS if name != "held_out"}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(arrays | {"held_out": np.array([self.held_out], np.int64)}))

    @classmethod
    def load(cls, path: str | Path) -> Supply:
        """Read and check the file; InputError names it and what is wrong."""
        tensors = read_tensors(path, KINDS)
        held_out = int(tensors.pop("held_out")[0])
        try:
            found = cls(**tensors, held_out=held_out)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        for values in tensors.values():
            values.flags.writeable = False  # kernels and all environments of the process read them
        return found


KINDS: dict[str, tuple[type, tuple[int | None, ...]]] = {
    "features": (np.float32, (None, None)),
    "hour": (np.int32, (None,)),
    "day": (np.int32, (None,)),
    "slots": (np.int32, (None,)),
    "first_page": (np.int64, (None,)),
    "first_entry": (np.int64, (None,)),
    "item": (np.int32, (None,)),
    "known": (np.bool_, (None,)),
    "values": (np.float32, (None, None)),
    "held_out": (np.int64, (1,)),
}


@kernel
def draw_visit(key, split, held_out, n_visits):
    """Return the logged visit that an episode plays; users and feed draw the same one."""
    if split == EVAL_SPLIT:
        return held_out + below(n_visits - held_out, key, 0, VISIT_PICK, 0)
    return below(held_out, key, 0, VISIT_PICK, 0)


@kernel
def logged_page(cloud, visit, page):
    """Return a visit's logged page 0, 1, ...; after the last of its period, the first."""
    first, end = 0, cloud.visit_pages[cloud.held_out]
    if visit >= cloud.held_out:
        first, end = end, cloud.page_entries.shape[0] - 1
    return first + (cloud.visit_pages[visit] - first + page) % (end - first)


@kernel
def draw_entry(cloud, visit, key, slot, j):
    """Return an entry of the visit's day: draw j for the page built at `slot`."""
    first = cloud.day_entries[visit, 0]
    return first + below(cloud.day_entries[visit, 1] - first, key, slot, PAGE_OFFSET, j)
