"""Entry point of the attainable policy's kernels: bring beliefs up to date and value the candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.agents.attainable.answers import learn
from edgerec_gym.agents.attainable.arrays import Belief
from edgerec_gym.agents.attainable.items import expect_rates, look_up, recognise_good
from edgerec_gym.agents.attainable.particles import begin
from edgerec_gym.agents.attainable.requests import weigh_request
from edgerec_gym.agents.attainable.values import (
    average_leave,
    expect_interest,
    recognise_page,
    value_candidates,
    value_places,
)
from edgerec_gym.compiled.arrays import reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, kernel, source_digest
from edgerec_gym.spaces import CONTEXT

_KERNELS = ("answers.py", "arrays.py", "items.py", "kernels.py", "particles.py", "requests.py", "values.py")
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
    _recognise_screen(b, row, placed, answered)
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


@kernel
def _recognise_screen(b, row, placed, answered):
    """Note the cards on screen as shown."""
    n_screen = b.seen.screen.shape[1]
    for slot in range(answered, placed):
        at = n_screen - placed + slot
        if at >= 0:
            b.shown[row, slot] = look_up(b.know, b.seen.screen[row], at)


EXPECT, CONSIDER, PLACE, REQUEST, INTEREST = range(5)  # tasks of the entry point


def _entry_point(digest: str) -> Any:
    # The digest is part of numba's cache key: see jit. One entry point compiles faster than five.
    @entry_point
    def run(address, task, choice, cards, goods, number):
        """Carry out a task for all rows.

        EXPECT: write what is expected of the catalogue's goods. CONSIDER: bring the beliefs up to date and
        value the candidates. PLACE: value `cards` (B, M, T) and `goods` (B, T) at the slots ahead with the
        pool in the order `choice` (B, N); `number` (B,) gets the probability of leaving. REQUEST: `number`
        gets the gain of a request where choice[:, 0] is not 0, with pages in the cloud's order where it is 2.
        INTEREST: `goods` (B, P + K) gets the particles' interest in candidate choice[:, 0].
        """
        _ = digest
        b = read_belief(address)
        if task == EXPECT:
            for item in range(b.know.catalogue.shape[0]):
                recognise_good(b.know, item, b.know.expected, item)
                expect_rates(b.know, b.know.expected, item, b.know.expected_rate)
            return
        for row in range(b.slot.shape[0]):
            if task == CONSIDER:
                if follow(b, row):
                    value_candidates(b, row, b.slot[row])
            elif task == PLACE:
                number[row] = average_leave(b, row)
                value_places(b, row, b.slot[row], choice, cards, goods)
            elif task == REQUEST:
                number[row] = 0.0
                if choice[row, 0] > 0:
                    number[row] = weigh_request(b, row, b.slot[row], choice[row, 0] == 2)
            else:
                expect_interest(b, row, b.slot[row], choice[row, 0], goods)

    return run


_FOLDER = Path(__file__).parent
CODE = source_digest(_FOLDER, ("belief.py", "knowledge.py", "policy.py", *_KERNELS))  # how it plays
run = _entry_point(SOURCE_DIGEST + source_digest(_FOLDER, _KERNELS))
