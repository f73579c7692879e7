"""What the ground truth says of the pages of a synthetic log: only to judge, never to learn from.

A log of synthetic users can be played again: sessions are functions of their keys, and the log holds every
action. While it plays, the true click probability of each candidate is read at every page arrival.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import FeedConfig, SyntheticUserConfig
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.store import LogReader
from edgerec_gym.users.synthetic import SyntheticUsers


@dataclass(frozen=True)
class TruePages:
    """True click probabilities at page arrivals.

    Attributes:
        session: (G,) int64 ids in the log.
        slot: (G,) int64.
        click: (G, N) float32 of the pool rows; 0 where there is none.
    """

    session: np.ndarray
    slot: np.ndarray
    click: np.ndarray

    def of(self, session: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Return the probabilities (R, N) at page arrivals (R,); InputError if one was not replayed."""
        most = int(max(self.slot.max(initial=0), slot.max(initial=0))) + 1
        known = self.session * most + self.slot
        order = np.argsort(known)
        at = np.minimum(np.searchsorted(known[order], session * most + slot), len(known) - 1)
        found = order[at]
        missing = np.flatnonzero((self.session[found] != session) | (self.slot[found] != slot))
        if len(missing):
            raise InputError(f"session {session[missing[0]]} has no page at slot {slot[missing[0]]}")
        return self.click[found]


def true_pages(folder: str | Path, days: list[int] | None = None) -> TruePages:
    """Play a synthetic log again and read the truth at page arrivals.

    Args:
        folder: a log of :func:`~edgerec_gym.logs.collect.collect`.
        days: days to play; None plays all.

    Raises:
        InputError: the log is not of synthetic users, or does not replay.
    """
    reader = LogReader(folder)
    told = reader.provenance
    if told.get("source") != "synthetic" or not isinstance(told.get("synthetic"), dict):
        raise InputError(f"{folder} is no log of synthetic users; only they have a ground truth")
    config = FeedConfig.from_dict(reader.header["config"])  # as it was played, without the item table
    catalog = Catalog.load(Path(folder) / "catalog.parquet", config.embedding_size, config.item_columns)
    users = SyntheticUserConfig.from_dict(told["synthetic"])
    split = str(told.get("split", "log"))
    size = int(told["sessions_per_part"])
    seed = int(told["seed"]) * CLI_SEED_STRIDE
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for table in reader.batches(["session", "slot", "action", "item"], days):
        session, slot = table["session"].to_numpy(), table["slot"].to_numpy()
        action, item = table["action"].to_numpy(), table["item"].to_numpy()
        for part in np.unique(session // size):
            rows = session // size == part
            played = [values[rows] for values in (session, slot, action, item)]
            batch = FeedBatch(size, "joint", config, catalog, SyntheticUsers(users, config), split=split)
            parts.append(_replay(batch, seed, int(part) * size, played, str(folder)))
    if not parts:
        raise InputError(f"{folder} has no session on the days {days}")
    return TruePages(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _replay(
    batch: FeedBatch, seed: int, first: int, played: list[np.ndarray], told: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Play the sessions of one part that were chosen; return session, slot and truth of their pages."""
    session, slot, action, item = played
    size, n_pool, users = batch.num_envs, batch.config.pool_size, batch.users
    assert isinstance(users, SyntheticUsers)
    batch.reset(np.arange(size), seed + first + np.arange(size))
    length = int(slot.max()) + 1
    actions, items = np.full((2, size, length), -1, np.int64)
    actions[session - first, slot], items[session - first, slot] = action, item
    arrays = batch.arrays
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for at in range(length):
        live = actions[:, at] >= 0
        rows = np.flatnonzero(live & (arrays.page_age == 0))
        if len(rows):
            click = users.true_values(arrays)[rows, :n_pool, 0].astype(np.float32)
            found.append((first + rows, np.full(len(rows), at), click))
        batch.step(np.maximum(actions[:, at], 0), ~live)
        wrong = np.flatnonzero(live & (arrays.placed_item != items[:, at]))
        if len(wrong):
            raise InputError(
                f"{told}: session {first + wrong[0]} shows another item at slot {at} when it is played "
                "again; another version collected it"
            )
    session_, slot_, click_ = (np.concatenate(values) for values in zip(*found, strict=True))
    return session_.astype(np.int64), slot_.astype(np.int64), click_
