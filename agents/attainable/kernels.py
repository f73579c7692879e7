"""Entry point of the attainable policy's kernels: bring beliefs up to date and value the candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.attainable.answers import learn
from edgerec_gym.agents.attainable.arrays import Belief
from edgerec_gym.agents.attainable.particles import begin
from edgerec_gym.agents.attainable.values import recognise_page, value_candidates
from edgerec_gym.compiled.arrays import reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, kernel, source_digest
from edgerec_gym.spaces import CONTEXT

_KERNELS = ("answers.py", "arrays.py", "items.py", "kernels.py", "particles.py", "values.py")
_SLOT, _EXPOSURES, _PAGE_AGE, _REQUESTED = (
    CONTEXT.index(name) for name in ("slot", "exposures", "page_age", "page_requested")
)

read_belief = reader(Belief)


@kernel
def follow(b, row):
    """Bring the belief about one session up to date; returns whether anything has happened."""
    know, context = b.know, b.seen.context
    placed = int(round(float(context[row, _SLOT]) * know.max_slots))
    answered = int(round(float(context[row, _EXPOSURES]) * know.max_slots))
    if placed == b.slot[row]:
        return False
    if placed < b.slot[row] or b.slot[row] < 0:
        begin(b, row)
    arrival = placed - int(round(float(context[row, _PAGE_AGE]) * know.page_size))
    _learn_all(b, row, placed, answered)
    for slot in range(placed, know.max_slots):
        b.page_of[row, slot] = arrival
        b.asked_for[row, slot] = 1 if context[row, _REQUESTED] > 0.5 else 0
    if arrival != b.arrival[row]:
        b.arrival[row] = arrival
        recognise_page(b, row)
    b.slot[row] = placed
    return True


@kernel
def _learn_all(b, row, placed, answered):
    """Learn from the answers that are new in the histories."""
    n_exposures, n_views = b.seen.exposures.shape[1], b.seen.page_views.shape[1]
    last = b.seen.page_views.shape[2] - 1
    for slot in range(b.answered[row], answered):
        exposure = slot - max(0, answered - n_exposures)
        if exposure < 0:  # it has left the history unseen
            continue
        view = -1
        for r in range(n_views):
            stamp = b.seen.page_views[row, r, last] * b.know.max_slots
            if int(round(float(stamp))) == slot and not _unused(b, row, r):
                view = r
        learn(b, row, slot, placed, answered, exposure, view)


@kernel
def _unused(b, row, r):
    """Whether a row of the page views is padding."""
    for k in range(b.query.shape[0]):
        if b.seen.page_views[row, r, k] != 0.0:
            return False
    return True


def _entry_points(digest: str) -> Any:
    # The digest is part of numba's cache key: see jit.
    @entry_point
    def consider(address, retention):
        _ = digest
        b = read_belief(address)
        for row in range(b.slot.shape[0]):
            if follow(b, row):
                value_candidates(b, row, b.slot[row], retention)

    return consider


consider = _entry_points(SOURCE_DIGEST + source_digest(Path(__file__).parent, _KERNELS))
