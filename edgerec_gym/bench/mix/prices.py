"""The price at which an insertion policy shows the same share of cards as a reference policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgerec_gym.bench.rows import cards_seen
from edgerec_gym.documents import Document, read_document
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, Progress, content_key, run_jobs
from edgerec_gym.evaluation.play import Sessions, play
from edgerec_gym.files import make_folder, write_json

LOWEST, HIGHEST = -0.7, 1.5  # search range of a price, in reward units
TOLERANCE = 3e-4  # of the share
MOST_TRIALS = 14


class Found(Document):
    """A price that was found, in the cache."""

    price: float
    share: float


def at_price(entry: Entry, price: float) -> Entry:
    """Return the entry with its `make` called at this price."""
    return replace(entry, arguments=entry.arguments | {"price": price})


def share_of(sessions: Sessions) -> float:
    """Return the realised share: exposed cards over exposed slots."""
    return float(cards_seen(sessions).sum() / sessions["exposures"].sum())


def play_share(entry: Entry, place: Place) -> float:
    """Return the share of cards that an entry shows on the split `train` of a place."""
    return share_of(
        play(
            entry.make(place, **entry.arguments),
            env_id=place.env_id,
            scenario=place.scenario,
            users=place.users,
            sessions=place.sessions,
            seed=place.seed,
            num_envs=place.num_envs,
            config=place.config,
            split="train",
        )
    )


def find_price(entry: Entry, place: Place, target: float) -> float:
    """Find the price at which an entry shows a given share of cards on the split `train` of a place.

    The share falls as the price rises, so regula falsi (Illinois variant) finds it. All trials play the same
    sessions.

    Raises:
        InputError: no price gives this share.
    """

    def excess(price: float) -> float:
        return play_share(at_price(entry, price), place) - target

    low, high = 0.0, 0.1
    above, below = excess(low), excess(high)
    while above < 0 and low > LOWEST:
        low, high, below = 2 * low - 0.1, low, above
        above = excess(low)
    while below > 0 and high < HIGHEST:
        low, high, above = high, 2 * high, below
        below = excess(high)
    if above < 0 or below > 0:
        raise InputError(f"{entry}: no price in {LOWEST} to {HIGHEST} gives a share of {target:.2%}")
    side = 0
    for _ in range(MOST_TRIALS):
        price = low + (high - low) * above / (above - below)
        found = excess(price)
        if abs(found) < TOLERANCE:
            break
        if found > 0:
            low, above, below, side = price, found, below / (2 if side > 0 else 1), 1
        else:
            high, below, above, side = price, found, above / (2 if side < 0 else 1), -1
    return price


def find_prices(
    entries: Sequence[Entry],
    reference: Entry,
    place: Place,
    cache: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[Entry]:
    """Bring entries to the share of cards of a reference, reusing prices found before.

    Args:
        entries: policies whose `make` takes a price.
        reference: policy whose share is matched, such as fixed slots.
        place: place whose `train` sessions determine the share.
        cache: folder of prices.
        workers: number of processes.
        progress: called with (done, total, text).

    Returns:
        The entries at their prices.
    """
    folder = make_folder(cache)
    target = play_share(reference, place)
    files = [folder / f"{content_key(entry, place)}.json" for entry in entries]
    waiting = [
        (entry, place, target, file)
        for entry, file in zip(entries, files, strict=True)
        if not file.exists() or read_document(file, Found).share != target
    ]
    for done, index in enumerate(run_jobs(_price_one, waiting, workers), 1):
        if progress:
            progress(done, len(waiting), f"priced {waiting[index][0]}")
    return [
        at_price(entry, read_document(file, Found).price) for entry, file in zip(entries, files, strict=True)
    ]


def _price_one(entry: Entry, place: Place, target: float, file: Path) -> None:
    write_json(file, {"price": find_price(entry, place, target), "share": target})
